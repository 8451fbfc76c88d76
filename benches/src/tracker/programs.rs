//! What the kernel itself counts for the tracker's programs: runs, their time, and runs that it
//! skipped. It only reads, but for the switch of the statistics, which it puts back.

use anyhow::{Context, Result, bail, ensure};
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

/// Where the programs that an agent's process holds are pinned: another agent may run beside it.
pub fn pins_of(process: i32) -> Result<PathBuf> {
    let held = held_by(process)?;
    for entry in fs::read_dir(BPF_FS).context(BPF_FS)? {
        let path = entry?.path();
        let pinned: Vec<u32> = match links(&path) {
            Ok(links) => links.into_iter().map(|(_, id)| id).collect(),
            // Another agent's directory may go meanwhile, and not everything here is one.
            Err(_) => continue,
        };
        if !pinned.is_empty() && pinned.iter().all(|id| held.contains(id)) {
            return Ok(path);
        }
    }
    bail!("no directory in {BPF_FS} has the programs of process {process}")
}

/// The programs that a process has open.
fn held_by(process: i32) -> Result<Vec<u32>> {
    let directory = format!("/proc/{process}/fdinfo");
    let mut held = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| directory.clone())? {
        // A descriptor may be closed meanwhile.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        held.extend(number(&text, "prog_id").and_then(|id| u32::try_from(id).ok()));
    }
    Ok(held)
}

/// The links pinned in a directory: the program's name, and its id.
fn links(pins: &Path) -> Result<Vec<(String, u32)>> {
    let mut links = Vec::new();
    for entry in fs::read_dir(pins).with_context(|| pins.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(program) = name.strip_prefix("link_") else { continue };
        let link = Link::open(entry.path()).with_context(|| format!("pin {name}"))?;
        let id = link.info().with_context(|| format!("pin {name}"))?.prog_id;
        links.push((program.to_owned(), id));
    }
    Ok(links)
}

/// The counts of every program whose link is pinned there, by name.
pub fn read(pins: &Path) -> Result<Vec<Counts>> {
    let mut counts = Vec::new();
    for (program, id) in links(pins)? {
        let descriptor = Program::fd_from_id(id).with_context(|| format!("program {id}"))?;
        let path = format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd());
        let text = fs::read_to_string(path)?;
        counts.push(parse(&program, &text).with_context(|| format!("counts of {program}"))?);
    }
    ensure!(!counts.is_empty(), "no program is pinned in {}", pins.display());
    counts.sort_by(|one, other| one.program.cmp(&other.program));
    Ok(counts)
}

fn parse(program: &str, text: &str) -> Option<Counts> {
    Some(Counts {
        program: program.to_owned(),
        runs: number(text, "run_cnt")?,
        nanoseconds: number(text, "run_time_ns")?,
        skipped: number(text, "recursion_misses")?,
    })
}

/// A number in a descriptor's information.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().parse().ok()
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
