//! The benchmark harness: runs Redoubt and its peers in one run, alternating, and prints the ratio
//! with its spread. It must never claim a speed that it did not measure.

mod all;
mod apply;
mod fio;
mod group;
mod journal;
mod machine;
mod place;
mod proc_stat;
mod process;
mod report;
mod rpo;
mod seal;
mod spread;
mod stop;
mod sync;
mod tracker;
mod watched;

use anyhow::Result;
use clap::{Parser, Subcommand};
use machine::Machine;
use report::Report;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures Redoubt against its peers; build both with --release.
#[derive(Debug, Parser)]
#[command(name = "redoubt-benches")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
    /// Prints JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
    /// Where disks, sinks and journals stand.
    #[arg(long, global = true, default_value = "/var/tmp", value_name = "DIR")]
    directory: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Bench {
    Sync(sync::SyncBench),
    Rpo(rpo::RpoBench),
    Tracker(tracker::TrackerBench),
    Journal(journal::JournalBench),
    /// Applying journalled writes to a replica disk, against a plain program that writes them.
    Apply(apply::ApplyBench),
    Seal(seal::SealBench),
    All(all::AllBench),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("redoubt-benches: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let Arguments { bench, json, directory } = arguments;
    stop::watch()?;
    let machine = Machine::look(&directory);
    machine.warnings().iter().for_each(|warning| eprintln!("WARNING: {warning}"));
    let questions = match &bench {
        Bench::Sync(bench) => vec![bench.run(&directory)?],
        Bench::Rpo(bench) => vec![bench.run(&directory)?],
        Bench::Tracker(bench) => vec![bench.run(&directory)?],
        Bench::Journal(bench) => vec![bench.run(&directory)?],
        Bench::Apply(bench) => vec![bench.run(&directory)?],
        Bench::Seal(bench) => vec![bench.run()?],
        Bench::All(bench) => bench.questions(&directory)?,
    };
    let report = Report { machine, questions };
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.print();
    }
    if let Bench::All(bench) = &bench {
        if !json {
            report.print_summary();
        }
        bench.finish(&report)?;
    }
    Ok(())
}

#[test]
fn the_command_line_holds_together() {
    use clap::CommandFactory;
    Arguments::command().debug_assert();
}
