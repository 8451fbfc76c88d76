//! `redoubt verify`: proves that disks and replicas agree, or says where they do not. It never
//! prints "equal" for what was not compared.

use crate::arguments::Address;
use crate::progress::Progress;
use crate::table::Table;
use crate::{output, talk};
use clap::Args;
use redoubt_control::{ExitStatus, Request, Response, RuntimeDirectory, VerifyReport};
use redoubt_log::Name;
use std::fmt::Write;

/// Prove that disks and replicas agree, while the machine works.
#[derive(Debug, Args)]
#[command(
    long_about = "Prove that disks and replicas agree, while the machine works.\n\n\
        The agent reads its disks at idle priority and takes recovery points (labelled `verify`); \
        the target compares hashes of what it has at those points. What is written meanwhile is \
        tried again in ever shorter rounds. What differs is read again at once. Ranges that the \
        machine has discarded are left out.\n\n\
        The exit status is 0 where everything was compared and is equal, 3 where something \
        differs, 4 where nothing differs but not all could be compared: it was written in every \
        try, a disk is not tracked now or did not settle for ten minutes, or the target was away. \
        While a disk is not settled verify waits for it.\n\n\
        One verify of a machine runs at a time. It is given up when the command ends (Ctrl-C); \
        what it has found by then is read again all the same, and stands in the audit log of the \
        agent.",
    after_long_help = "Examples:\n  \
        redoubt verify --machine web-01\n  \
        redoubt verify --disk sda --json | jq .differences"
)]
pub struct Verify {
    #[command(flatten)]
    address: Address,

    /// Which disk; without it all of the machine.
    #[arg(long, value_name = "NAME")]
    disk: Option<Name>,

    /// Print the result as a JSON object.
    #[arg(long)]
    json: bool,
}

/// Verifies.
pub fn run(command: &Verify, directory: &RuntimeDirectory) -> anyhow::Result<ExitStatus> {
    let request =
        Request::Verify { machine: command.address.machine.clone(), disk: command.disk.clone() };
    let client = talk::connect(directory, command.address.side)?;
    let what =
        command.disk.as_ref().map_or_else(|| "verify".into(), |disk| format!("verify {disk}"));
    let mut progress = Progress::new(what);
    let response = talk::ask(client, &request, talk::PATIENCE, &mut |response| {
        if let Response::Progress { done_bytes, total_bytes } = response {
            progress.step(*done_bytes, *total_bytes);
        }
    });
    drop(progress);
    match response? {
        Response::Verified { report } => {
            if command.json {
                output::print_json(&report)?;
            } else {
                output::print(&render(&report))?;
            }
            Ok(report.exit_status())
        }
        other => Err(talk::unexpected(&other)),
    }
}

fn render(report: &VerifyReport) -> String {
    let mut text = String::new();
    if !report.differences.is_empty() {
        let mut table = Table::new(["DISK", "OFFSET", "LENGTH"]);
        for range in &report.differences {
            table.row([range.disk.to_string(), range.offset.to_string(), range.length.to_string()]);
        }
        text.push_str(&table.render());
    }
    let mut line = |words: String| writeln!(text, "{words}").expect("a string takes all");
    if report.unlisted_differences > 0 {
        line(format!("and {} ranges more", report.unlisted_differences));
    }
    line(format!("{}: {}", report.machine, report.verdict()));
    line(format!("compared      {}", output::bytes(report.compared_bytes)));
    if report.differing_bytes > 0 {
        line(format!(
            "different     {}: read again now; earlier points may hold it",
            output::bytes(report.differing_bytes)
        ));
    }
    if report.not_compared_bytes > 0 {
        let why =
            report.hindrance.as_deref().map_or("written in every try".into(), output::harmless);
        line(format!("not compared  {}: {why}", output::bytes(report.not_compared_bytes)));
    }
    if report.discarded_bytes > 0 {
        line(format!("discarded     {}: left out", output::bytes(report.discarded_bytes)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use redoubt_control::DifferentRange;

    fn report() -> VerifyReport {
        VerifyReport {
            machine: "web-01".parse().unwrap(),
            equal: true,
            compared_bytes: 1 << 30,
            not_compared_bytes: 0,
            discarded_bytes: 0,
            differing_bytes: 0,
            differences: Vec::new(),
            unlisted_differences: 0,
            point: None,
            hindrance: None,
        }
    }

    #[test]
    fn equal_is_said_only_of_what_was_compared() {
        assert_eq!(render(&report()), "web-01: equal\ncompared      1.0 GiB\n");
        let left = VerifyReport {
            equal: false,
            not_compared_bytes: 4096,
            discarded_bytes: 8192,
            ..report()
        };
        assert_eq!(
            render(&left),
            "web-01: not all compared\ncompared      1.0 GiB\n\
             not compared  4.0 KiB: written in every try\ndiscarded     8.0 KiB: left out\n"
        );
    }

    #[test]
    fn what_differs_is_a_table() {
        let range = DifferentRange { disk: "sda".parse().unwrap(), offset: 4096, length: 512 };
        let report = VerifyReport {
            equal: false,
            differing_bytes: 512,
            differences: vec![range],
            unlisted_differences: 7,
            ..report()
        };
        let text = "DISK  OFFSET  LENGTH\nsda   4096    512\nand 7 ranges more\n\
            web-01: differs\ncompared      1.0 GiB\n\
            different     512 B: read again now; earlier points may hold it\n";
        assert_eq!(render(&report), text);
    }
}
