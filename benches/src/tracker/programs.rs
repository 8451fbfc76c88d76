//! What the kernel itself counts for the tracker's programs: runs, their time, and runs that it
//! skipped. It only reads, but for the switch of the statistics, which it puts back.

use anyhow::{Context, Result, ensure};
use libbpf_rs::{Link, Program};
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Where BPF pins stand.
const BPF_FS: &str = "/sys/fs/bpf";

/// The switch of run times, which cost some nanoseconds a run themselves.
const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// The counts of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Its name.
    pub program: String,
    /// Runs while the statistics were on.
    pub runs: u64,
    /// The time of these.
    pub nanoseconds: u64,
    /// Runs that the kernel left out: missed writes.
    pub skipped: u64,
}

impl Counts {
    /// What was added since `before`, of the same program.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            program: self.program.clone(),
            runs: self.runs.saturating_sub(before.runs),
            nanoseconds: self.nanoseconds.saturating_sub(before.nanoseconds),
            skipped: self.skipped.saturating_sub(before.skipped),
        }
    }
}

/// The product's pin directories.
pub fn pin_directories() -> Vec<PathBuf> {
    let entries = fs::read_dir(BPF_FS).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("redoubt-"));
    ours.map(|entry| entry.path()).collect()
}

/// The one that was not there before.
pub fn new_pin_directory(before: &[PathBuf]) -> Result<PathBuf> {
    let new: Vec<_> = pin_directories().into_iter().filter(|path| !before.contains(path)).collect();
    ensure!(new.len() == 1, "{} new pin directories: does another agent start here?", new.len());
    new.into_iter().next().context("one")
}

/// The counts of every program whose link is pinned there, by name.
pub fn read(pins: &Path) -> Result<Vec<Counts>> {
    let mut counts = Vec::new();
    for entry in fs::read_dir(pins).with_context(|| pins.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(program) = name.strip_prefix("link_") else { continue };
        let link = Link::open(entry.path()).with_context(|| format!("pin {name}"))?;
        let id = link.info().with_context(|| format!("pin {name}"))?.prog_id;
        let descriptor = Program::fd_from_id(id).with_context(|| format!("program {id}"))?;
        let path = format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd());
        let text = fs::read_to_string(path)?;
        counts.push(parse(program, &text).with_context(|| format!("counts of {program}"))?);
    }
    ensure!(!counts.is_empty(), "no program is pinned in {}", pins.display());
    counts.sort_by(|one, other| one.program.cmp(&other.program));
    Ok(counts)
}

fn parse(program: &str, text: &str) -> Option<Counts> {
    let number = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().parse().ok()
    };
    Some(Counts {
        program: program.to_owned(),
        runs: number("run_cnt")?,
        nanoseconds: number("run_time_ns")?,
        skipped: number("recursion_misses")?,
    })
}

/// The kernel's statistics, on while this lives.
pub struct Statistics {
    before: String,
}

impl Statistics {
    /// Switches them on.
    pub fn on() -> Result<Self> {
        let before = fs::read_to_string(SWITCH).context(SWITCH)?;
        fs::write(SWITCH, "1").context(SWITCH)?;
        Ok(Self { before })
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SWITCH, self.before.trim()) {
            eprintln!("cannot write {} to {SWITCH} again: {error}", self.before.trim());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_and_subtracted() {
        let text = "pos:\t0\nprog_id:\t7\nrun_time_ns:\t900\nrun_cnt:\t3\nrecursion_misses:\t1\n";
        let counts = parse("submitted", text).unwrap();
        assert_eq!((counts.runs, counts.nanoseconds, counts.skipped), (3, 900, 1));
        let before = Counts { runs: 1, nanoseconds: 400, skipped: 1, ..counts.clone() };
        let since = counts.since(&before);
        assert_eq!((since.runs, since.nanoseconds, since.skipped), (2, 500, 0));
        assert!(parse("submitted", "prog_id:\t7\n").is_none());
    }
}
