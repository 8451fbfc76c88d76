//! The product's own initial sync: a master target, and an agent that starts when the clock does.

use super::{Job, Own, Sample};
use crate::proc_stat::{self, Usage};
use crate::watched::Watched;
use anyhow::Result;
use std::time::Instant;

/// As operators run it.
const POINT_INTERVAL: &str = "5s";

/// What a role used until the agent answered; loading the programs is the most of it.
const START: &str = "(start)";

/// Until the replica disk is equal; the point that says so is asked for as soon as the disk
/// streams.
pub fn copy(job: &Job<'_>) -> Result<Sample> {
    let launcher = job.group.launcher();
    let mut site = Watched::prepare(job.room, job.source.device(), POINT_INTERVAL, &launcher)?;
    let meter = job.group.measure();
    let began = Instant::now();
    site.start_agent()?;
    let answering = began.elapsed();
    let processes = site.processes()?;
    let before = processes.map(proc_stat::threads);
    site.wait_for_streaming(job.within)?;
    let streaming = began.elapsed();
    let replica = site.wait_for_replica(job.within)?;
    let whole = began.elapsed();
    let cost = meter.finish()?;
    let after = processes.map(proc_stat::threads);
    site.end()?;
    job.source.expect_equal(&replica)?;
    let roles = ["agent", "target"].into_iter().zip(before.into_iter().zip(after));
    let threads = roles.flat_map(|(role, (before, after))| since(role, before, after)).collect();
    Ok(Sample { whole, cost, own: Some(Own { answering, streaming, threads }) })
}

/// What each thread of a role has used since `before`, and what all of them had until then.
fn since(
    role: &'static str,
    before: Vec<(String, Usage)>,
    after: Vec<(String, Usage)>,
) -> Vec<(&'static str, String, Usage)> {
    let start = before.iter().fold(Usage::default(), |sum, (_, usage)| sum.plus(*usage));
    let used_before = |name: &str| {
        let found = before.iter().find(|(thread, _)| thread == name);
        found.map_or(Usage::default(), |(_, usage)| *usage)
    };
    let later = after.into_iter().map(|(name, usage)| {
        let used = usage.minus(used_before(&name));
        (role, name, used)
    });
    std::iter::once((role, START.to_owned(), start)).chain(later).collect()
}

#[test]
fn the_start_is_kept_apart() {
    let used = |seconds| Usage { user_seconds: seconds, system_seconds: 0.0 };
    let before = vec![("main".to_owned(), used(2.0))];
    let after = vec![("main".to_owned(), used(2.5)), ("seal".to_owned(), used(1.0))];
    let threads = since("agent", before, after);
    let found: Vec<_> = threads.iter().map(|(_, name, used)| (&**name, used.seconds())).collect();
    assert_eq!(found, [(START, 2.0), ("main", 0.5), ("seal", 1.0)]);
}
