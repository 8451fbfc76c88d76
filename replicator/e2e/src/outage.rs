//! A site whose line is cut for a while and comes back, its machine writing on. It must never
//! excuse a point that is not good, nor a log that begins anew.

use crate::command::wait_until;
use crate::disk::{LoopDisk, keep_mounts_private, scratch};
use crate::launch;
use crate::load::RandomWrites;
use crate::network::Line;
use crate::site::{Plan, Role, Site};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};

const DISK_BYTES: u64 = 64 << 20;
const MEGABYTES_PER_SECOND: u32 = 1;
/// Longer than any test.
const LOAD_FOR: Duration = Duration::from_secs(3600);
const STREAMING_WITHIN: Duration = Duration::from_secs(300);
/// A line that is dead is known to be after ten seconds; the rest is the machine's.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

/// What the status of a machine says of its only disk and its RPO.
#[derive(Debug)]
struct Told {
    state: String,
    reason: String,
    rpo: f64,
}

/// Cuts the line for so long.
pub fn cut_for(long: Duration) -> Result<()> {
    keep_mounts_private()?;
    let line = Line::lay()?;
    let scratch = scratch()?;
    let disk = LoopDisk::create(&scratch.path().join("disk.img"), DISK_BYTES)?;
    let plan = Plan { disks: vec![("data", &disk.device)], point_interval: "1s" };
    let launcher = launch::only("agent", &line.words());
    let address = format!("{}:0", line.near_address());
    let mut site = Site::prepare_at(scratch.path(), &plan, &launcher, &address)?;
    site.start_role(Role::Agent)?;
    site.wait_for_streaming(STREAMING_WITHIN)?;
    let log = scratch.path().join("fio.log");
    let mut load = RandomWrites::start(&disk.device, MEGABYTES_PER_SECOND, LOAD_FOR, &log)?;
    site.mark("before the cut", true)?;
    let before = log_of(&site)?;

    line.cut()?;
    let cut = Instant::now();
    wait_until("the cut in the status", TOLD_WITHIN, || {
        let (agent, target) = (told(&site, Role::Agent)?, told(&site, Role::Target)?);
        let paused = [&agent, &target].iter().all(|told| told.state == "paused");
        Ok(paused.then_some(()))
    })?;
    expect_growing_age(&site, cut, long)?;
    ensure!(load.is_running()?, "the machine's writes ended with the line");
    line.mend()?;

    site.wait_for_streaming(STREAMING_WITHIN)?;
    let id = site.mark("after the cut", true)?;
    ensure!(log_of(&site)? == before, "another log, or another run: {before:?} became this");
    let points = site.points()?;
    let good = points.iter().find(|point| point.id == id).context("the point is not listed")?;
    ensure!(good.complete && good.proven, "{good:?}");
    ensure!(points.iter().all(|point| point.proven), "{points:?}");
    drop(load);
    site.wait_for_streaming(STREAMING_WITHIN)?;
    site.expect_equal_replicas()?;
    let said = site.log_of(Role::Agent)?;
    ensure!(said.matches("the whole disk is read").count() == 1, "it was read again:\n{said}");
    site.end()
}

/// As long as the line is cut both sides say why nothing moves, and that what is safe gets older.
fn expect_growing_age(site: &Site, cut: Instant, long: Duration) -> Result<()> {
    let mut last = [0.0, 0.0];
    wait_until("an age of the cut's length", long + TOLD_WITHIN, || {
        for (last, (role, why)) in last
            .iter_mut()
            .zip([(Role::Agent, "target-unreachable"), (Role::Target, "agent-silent")])
        {
            // Nothing that was written since the cut is safe, whatever was before.
            let since = cut.elapsed().as_secs_f64();
            let told = told(site, role)?;
            ensure!((told.state.as_str(), told.reason.as_str()) == ("paused", why), "{told:?}");
            ensure!(told.rpo >= *last, "the age fell from {last} s: {told:?}");
            ensure!(told.rpo + 1.5 >= since, "younger than the cut of {since} s: {told:?}");
            *last = told.rpo;
        }
        Ok(last.iter().all(|rpo| *rpo >= long.as_secs_f64()).then_some(()))
    })
}

fn told(site: &Site, role: Role) -> Result<Told> {
    let machine = site.machine_of(role)?;
    let text = |name: &str| machine["disks"][0][name].as_str().unwrap_or_default().to_owned();
    let rpo = machine["rpo_seconds"].as_f64().with_context(|| format!("no RPO in {machine}"))?;
    ensure!(rpo >= 0.0, "{machine}");
    Ok(Told { state: text("state"), reason: text("reason"), rpo })
}

/// Which log it is, and which run of the agent writes it.
fn log_of(site: &Site) -> Result<(Value, Value)> {
    let position = &site.machine_of(Role::Target)?["disks"][0]["position"];
    Ok((position["generation"].clone(), position["incarnation"].clone()))
}
