//! The tables of the tracker's cost. It must never compare runs of different rounds.

use super::programs::Counts;
use super::{Counted, Mode, Runs};
use crate::report::{Cell, Column, Question, Table};
use crate::spread::Spread;

/// What is measured.
pub const MEASURES: &str = "fio's 4-KiB random direct writes to a loop disk. Untracked: none of \
    the tracker's programs is attached. Bitmap: the agent was stopped, its programs go on marking. \
    Data: the disk streams to a target on this very machine, so that agent and target take \
    processor time from the load, as only the agent would elsewhere; every such run counted only \
    once the replica was equal byte by byte. blktrace writes its events to /dev/null. The ratio is \
    to the untracked run of the same round. The kernel's counts come from runs of their own at \
    depth 16, since kernel.bpf_stats_enabled costs time itself; the programs run for every write \
    of the machine: once for the loop disk, once for the untracked disk below it.";

/// Adds the tables and headlines.
pub fn add(question: &mut Question, runs: &[Runs], counted: &[Counted]) {
    let columns = vec![
        Column::text("depth", "depth"),
        Column::text("mode", "mode"),
        Column::number("writes_per_second", "IOPS", 1.0, 0),
        Column::number("ratio", "by untracked", 1.0, 2),
        Column::number("streaming_part", "streaming %", 0.01, 0),
    ];
    let mut table = Table::new("4-KiB random writes", columns);
    for of in runs {
        let peer = |other: &&Runs| other.depth == of.depth && other.mode == Mode::Untracked;
        let ratio = runs.iter().find(peer).and_then(|peer| Spread::over(ratios(of, peer)));
        table.row(vec![
            Cell::Text(of.depth.to_string()),
            of.mode.name().into(),
            Cell::over(of.samples.iter().map(|sample| sample.per_second)),
            ratio.map_or(Cell::Nothing, Cell::Spread),
            Cell::over(of.samples.iter().filter_map(|sample| sample.streaming)),
        ]);
        if of.mode != Mode::Untracked {
            question.headline(format!("IOPS at depth {}, {}", of.depth, of.mode.name()), ratio);
        }
    }
    question.tables.push(table);
    question.tables.push(programs(counted));
}

fn ratios(of: &Runs, peer: &Runs) -> Vec<f64> {
    let rounds = of.samples.iter().zip(&peer.samples);
    rounds.map(|(sample, peer)| sample.per_second / peer.per_second).collect()
}

fn programs(counted: &[Counted]) -> Table {
    let columns = vec![
        Column::text("mode", "mode"),
        Column::text("program", "program"),
        Column::number("runs_per_write", "runs a write", 1.0, 2),
        Column::number("nanoseconds_per_run", "ns a run", 1.0, 0),
        Column::number("nanoseconds_per_write", "ns a write", 1.0, 0),
        Column::number("skipped_runs", "skipped", 1.0, 0),
    ];
    let mut table = Table::new("the kernel's own counts", columns);
    for mode in [Mode::Bitmap, Mode::Data] {
        let rounds: Vec<&Counted> = counted.iter().filter(|round| round.mode == mode).collect();
        let names = rounds.first().map(|round| &round.counts[..]).unwrap_or_default();
        for Counts { program, .. } in names {
            let of = |value: fn(&Counts, f64) -> f64| {
                let each = rounds.iter().filter_map(|round| {
                    let counts = round.counts.iter().find(|counts| counts.program == *program)?;
                    Some(value(counts, round.writes))
                });
                // A program that never ran has no time of a run.
                Cell::over(each.filter(|value| value.is_finite()))
            };
            table.row(vec![
                mode.name().into(),
                program.as_str().into(),
                of(|counts, writes| counts.runs as f64 / writes),
                of(|counts, _| counts.nanoseconds as f64 / counts.runs as f64),
                of(|counts, writes| counts.nanoseconds as f64 / writes),
                of(|counts, _| counts.skipped as f64),
            ]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::Sample;
    use super::*;

    #[test]
    fn a_ratio_is_that_of_one_round() {
        let sample = |per_second| Sample { per_second, streaming: None };
        let runs =
            |mode, rates: [f64; 2]| Runs { depth: 1, mode, samples: rates.map(sample).into() };
        let (tracked, untracked) =
            (runs(Mode::Bitmap, [90.0, 160.0]), runs(Mode::Untracked, [100.0, 200.0]));
        assert_eq!(ratios(&tracked, &untracked), [0.9, 0.8]);
    }

    #[test]
    fn a_program_that_never_ran_has_no_time() {
        let counts = Counts { program: "split".into(), runs: 0, nanoseconds: 0, skipped: 0 };
        let table = programs(&[Counted { mode: Mode::Data, writes: 10.0, counts: vec![counts] }]);
        assert!(table.render().contains("split    0.00          -  "), "{}", table.render());
    }
}
