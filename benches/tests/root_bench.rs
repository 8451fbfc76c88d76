//! The harness itself, in its smallest form: everybody who is here takes part and everybody else is
//! named, what is counted is counted on the right disk, and an interrupted run leaves nothing.
//! Needs root. It must never look at a speed.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redoubt_e2e::command::{finish, output, wait_until};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const BPF_FS: &str = "/sys/fs/bpf";
const WITHIN: Duration = Duration::from_secs(120);

fn harness(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redoubt-benches"));
    command.args(arguments).stderr(Stdio::inherit());
    command
}

fn answer(arguments: &[&str]) -> Result<Value> {
    let report: Value = serde_json::from_str(&finish(&mut harness(arguments))?)?;
    Ok(report["questions"][0].clone())
}

/// The rows of a table.
fn rows<'a>(question: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    let tables = question["tables"].as_array().context("no tables")?;
    let table = tables.iter().find(|table| table["name"] == name).context(name.to_owned())?;
    table["rows"].as_array().context("no rows")
}

fn names(directory: &str, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    names
}

#[test]
fn who_is_here_copies_the_disk_and_who_is_not_is_named() -> Result<()> {
    let small = ["sync", "--size", "16MiB", "--rounds", "1", "--content", "half-empty", "--json"];
    let question = answer(&small)?;
    let copied = rows(&question, "initial sync, half empty")?;
    let not_run = question["not_run"].as_array().context("not_run")?;
    ensure!(copied.len() + not_run.len() == 6, "{question}");
    let named = not_run.iter().filter_map(Value::as_str);
    ensure!(named.clone().all(|why| why.contains("apt-get install")), "{not_run:?}");
    let ours = copied.iter().find(|row| row["contender"] == "redoubt").context("not ours")?;
    for measured in ["bytes_per_second", "streaming_after_seconds", "own_resident_bytes"] {
        let least = ours[measured]["least"].as_f64().context(measured)?;
        ensure!(least > 0.0, "{measured}: {ours}");
    }
    let threads = rows(&question, "redoubt's processor time by thread, half empty")?;
    let start =
        |role: &str| threads.iter().any(|row| row["role"] == role && row["thread"] == "(start)");
    ensure!(start("agent"), "{threads:?}");
    Ok(())
}

#[test]
fn the_kernel_counts_the_programs_on_the_disk_that_is_written() -> Result<()> {
    let switch = || std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled");
    let before = switch()?;
    let small = ["tracker", "--rounds", "1", "--seconds", "1", "--size", "16MiB", "--json"];
    let question = answer(&small)?;
    ensure!(switch()? == before, "the switch of the statistics was not put back");
    let counts = rows(&question, "the kernel's own counts")?;
    let submitted = counts.iter().filter(|row| row["program"] == "submitted");
    let runs: Vec<f64> =
        submitted.filter_map(|row| row["runs_per_write"]["least"].as_f64()).collect();
    // Once for the loop disk, once for what it stands on.
    ensure!(runs.len() == 2 && runs.iter().all(|runs| *runs > 1.9), "{counts:?}");
    Ok(())
}

/// Kills the harness if a test fails; what it started dies with it.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn an_interrupted_run_leaves_nothing() -> Result<()> {
    let long = ["rpo", "--rate", "5", "--seconds", "120", "--rounds", "1", "--size", "64MiB"];
    let before = names(BPF_FS, "redoubt-");
    let mut started = Started(harness(&long).stdout(Stdio::null()).spawn()?);
    let id = started.0.id();
    let prefix = format!("redoubt-bench-{id}-");
    // The load runs: everything that there can be is there.
    let directory = wait_until("a load", WITHIN, || {
        ensure!(started.0.try_wait()?.is_none(), "the harness has ended");
        let directory = names("/var/tmp", &prefix).pop();
        let Some(directory) = directory.map(|name| Path::new("/var/tmp").join(name)) else {
            return Ok(None);
        };
        let mut rooms = std::fs::read_dir(&directory)?.flatten();
        Ok(rooms.any(|room| room.path().join("fio.log").exists()).then_some(directory))
    })?;
    let pins = || names(BPF_FS, "redoubt-").into_iter().filter(|name| !before.contains(name));
    let ours: Vec<String> = pins().collect();
    ensure!(!ours.is_empty(), "no pins while it runs");
    kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGTERM)?;
    let status = wait_until("the end of the harness", WITHIN, || Ok(started.0.try_wait()?))?;
    ensure!(status.code() == Some(1), "{status}");
    ensure!(!directory.exists(), "{} is left", directory.display());
    ensure!(!pins().any(|name| ours.contains(&name)), "{ours:?} are left");
    wait_until("the loop device's end", WITHIN, || {
        let loops = output(Command::new("losetup").args(["--list", "--noheadings"]))?;
        let text = String::from_utf8_lossy(&loops.stdout).into_owned();
        Ok((!text.contains(&prefix)).then_some(()))
    })?;
    let cgroups = names("/sys/fs/cgroup", &prefix);
    ensure!(cgroups.is_empty(), "{cgroups:?}");
    Ok(())
}
