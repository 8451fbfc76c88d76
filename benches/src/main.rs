//! The benchmark harness: runs Redoubt and its peers in one run, alternating, and prints the ratio
//! with its spread. It must never claim a speed that it did not measure.

mod apply;
mod report;
mod seal;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures Redoubt against its peers; build it with --release.
#[derive(Debug, Parser)]
#[command(name = "redoubt-benches")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
    /// Prints JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Applying journalled writes to a replica disk, against a plain program that writes them.
    Apply(apply::ApplyBench),
    /// Gathering and sealing frames, against lz4_flex alone on the same bytes.
    Seal(seal::SealBench),
}

fn main() -> Result<()> {
    let Arguments { bench, json } = Arguments::parse();
    if cfg!(debug_assertions) {
        eprintln!("a build for tests: these numbers mean nothing; use cargo run --release");
    }
    let rows = match bench {
        Bench::Apply(bench) => bench.run()?,
        Bench::Seal(bench) => bench.run()?,
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        report::print_table(&rows);
    }
    Ok(())
}

#[test]
fn the_command_line_holds_together() {
    use clap::CommandFactory;
    Arguments::command().debug_assert();
}
