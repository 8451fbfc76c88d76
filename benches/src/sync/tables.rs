//! The tables of the initial sync. It must never compare copies of different rounds.

use super::contender::Contender;
use super::{Copies, Own, Sample};
use crate::place::Content;
use crate::proc_stat::Usage;
use crate::report::{Cell, Column, Question, Table};
use crate::spread::Spread;
use std::collections::BTreeMap;
use std::time::Duration;

const MB: f64 = 1e6;
const GB: f64 = 1e9;
const MIB: f64 = 1_048_576.0;

/// Adds the tables and headlines of one content.
pub fn add(question: &mut Question, content: Content, bytes: u64, copies: &[Copies]) {
    let bytes = bytes as f64;
    question.tables.push(speeds(content, bytes, copies));
    let ours = copies.iter().find(|copies| copies.contender == Contender::Redoubt);
    if let Some(ours) = ours {
        question.tables.push(threads(content, &ours.samples));
        let speed = Spread::over(ours.samples.iter().map(|sample| speed(sample, bytes) / MB));
        question.headline(format!("redoubt, {}, MB/s", content.name()), speed);
    }
    for peer in copies.iter().filter(|copies| copies.contender != Contender::Redoubt) {
        let ratios = ours.map(|ours| ratios(&ours.samples, &peer.samples));
        let ratio = ratios.and_then(Spread::over);
        let what = format!("redoubt by {}, {}", peer.contender.name(), content.name());
        question.headline(what, ratio);
    }
}

fn speeds(content: Content, bytes: f64, copies: &[Copies]) -> Table {
    let columns = vec![
        Column::text("contender", "contender"),
        Column::number("bytes_per_second", "MB/s", MB, 0),
        Column::number("speed_by_nbdcopy_tls", "by nbdcopy TLS", 1.0, 2),
        Column::number("answering_after_seconds", "answers after s", 1.0, 2),
        Column::number("streaming_after_seconds", "streams after s", 1.0, 2),
        Column::number("complete_after_seconds", "complete after s", 1.0, 2),
        Column::number("processor_seconds_per_gigabyte", "CPU s/GB", 1.0, 2),
        Column::number("resident_bytes", "peak RSS MiB", MIB, 0),
        Column::number("own_resident_bytes", "of it own MiB", MIB, 0),
    ];
    let mut table = Table::new(format!("initial sync, {}", content.name()), columns);
    let tls = copies.iter().find(|copies| copies.contender == Contender::NbdcopyTls);
    for Copies { contender, samples } in copies {
        let each = |value: fn(&Sample) -> f64| Cell::over(samples.iter().map(value));
        let own = |value: fn(&Own) -> Duration| {
            let owns = samples.iter().filter_map(|sample| sample.own.as_ref());
            Cell::over(owns.map(|own| value(own).as_secs_f64()))
        };
        table.row(vec![
            contender.name().into(),
            Cell::over(samples.iter().map(|sample| speed(sample, bytes))),
            tls.map_or(Cell::Nothing, |tls| Cell::over(ratios(samples, &tls.samples))),
            own(|own| own.answering),
            own(|own| own.streaming),
            each(|sample| sample.whole.as_secs_f64()),
            Cell::over(samples.iter().map(|sample| sample.cost.processor_seconds / (bytes / GB))),
            each(|sample| sample.cost.resident_bytes as f64),
            each(|sample| sample.cost.own_bytes as f64),
        ]);
    }
    table
}

fn speed(sample: &Sample, bytes: f64) -> f64 {
    bytes / sample.whole.as_secs_f64()
}

/// How many times as fast ours were as theirs, round by round.
fn ratios(ours: &[Sample], theirs: &[Sample]) -> Vec<f64> {
    let rounds = ours.iter().zip(theirs);
    rounds.map(|(ours, theirs)| theirs.whole.as_secs_f64() / ours.whole.as_secs_f64()).collect()
}

fn threads(content: Content, samples: &[Sample]) -> Table {
    let columns = vec![
        Column::text("role", "role"),
        Column::text("thread", "thread"),
        Column::number("user_seconds", "user s", 1.0, 2),
        Column::number("system_seconds", "system s", 1.0, 2),
        Column::number("part_of_both_roles", "part of both %", 0.01, 0),
    ];
    let name = format!("redoubt's processor time by thread, {}", content.name());
    let mut table = Table::new(name, columns);
    for ((role, thread), rounds) in by_thread(samples) {
        let used =
            |value: fn(&Usage) -> f64| Cell::over(rounds.iter().map(|(usage, _)| value(usage)));
        table.row(vec![
            role.into(),
            thread.as_str().into(),
            used(|usage| usage.user_seconds),
            used(|usage| usage.system_seconds),
            Cell::over(rounds.iter().map(|(usage, all)| usage.seconds() / all)),
        ]);
    }
    table
}

type Thread = (&'static str, String);

/// What each thread used in each round, beside what both roles used together; a role's busiest
/// first. A thread that was not there has used nothing.
fn by_thread(samples: &[Sample]) -> Vec<(Thread, Vec<(Usage, f64)>)> {
    let mut found: BTreeMap<Thread, Vec<(Usage, f64)>> = BTreeMap::new();
    for (round, own) in samples.iter().map(|sample| sample.own.as_ref()).enumerate() {
        let threads = own.map_or(&[][..], |own| &own.threads);
        let all: f64 = threads.iter().map(|(_, _, usage)| usage.seconds()).sum();
        // Where nothing was used no part of it is anything.
        let all = all.max(f64::MIN_POSITIVE);
        for (role, thread, usage) in threads {
            let nothing = || vec![(Usage::default(), f64::INFINITY); samples.len()];
            let rounds = found.entry((*role, thread.clone())).or_insert_with(nothing);
            rounds[round] = (*usage, all);
        }
    }
    let mut found: Vec<_> = found.into_iter().collect();
    let used = |rounds: &[(Usage, f64)]| rounds.iter().map(|(usage, _)| usage.seconds()).sum();
    found.sort_by(|((role, _), rounds), ((other_role, _), other)| {
        let (mine, others): (f64, f64) = (used(rounds), used(other));
        role.cmp(other_role).then(others.total_cmp(&mine))
    });
    found.retain(|(_, rounds)| rounds.iter().any(|(usage, _)| usage.seconds() > 0.0));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::Cost;

    fn sample(seconds: u64, threads: &[(&'static str, &str, f64)]) -> Sample {
        let usage = |seconds| Usage { user_seconds: seconds, system_seconds: 0.0 };
        let named = |(role, name, seconds): &(&'static str, &str, f64)| {
            (*role, (*name).to_owned(), usage(*seconds))
        };
        let whole = Duration::from_secs(seconds);
        let threads = threads.iter().map(named).collect();
        let own = Own { answering: whole, streaming: whole, threads };
        Sample { whole, cost: Cost::default(), own: Some(own) }
    }

    #[test]
    fn a_ratio_is_that_of_one_round() {
        let ours = [sample(1, &[]), sample(4, &[])];
        let theirs = [sample(2, &[]), sample(4, &[])];
        assert_eq!(ratios(&ours, &theirs), [2.0, 1.0]);
    }

    #[test]
    fn threads_are_joined_over_the_rounds_the_busiest_first() {
        let first = sample(1, &[("agent", "seal", 1.0), ("agent", "tracker", 3.0)]);
        let second = sample(1, &[("agent", "seal", 1.0), ("agent", "late", 1.0)]);
        let found = by_thread(&[first, second]);
        let names: Vec<&str> = found.iter().map(|((_, name), _)| name.as_str()).collect();
        assert_eq!(names, ["tracker", "seal", "late"]);
        let parts = |index: usize| -> Vec<f64> {
            found[index].1.iter().map(|(usage, all)| usage.seconds() / all).collect()
        };
        assert_eq!(parts(0), [0.75, 0.0]);
        assert_eq!(parts(1), [0.25, 0.5]);
    }
}
