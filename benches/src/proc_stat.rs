//! What /proc tells of processes and threads: processor time and memory. A process that has just
//! gone is none, never an error.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The name of a process's first thread, which the kernel calls after the program.
const MAIN: &str = "main";

/// Processor time, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// In the program.
    pub user_seconds: f64,
    /// In the kernel on its behalf.
    pub system_seconds: f64,
}

impl Usage {
    /// Both together.
    pub fn seconds(self) -> f64 {
        self.user_seconds + self.system_seconds
    }

    /// Both sums.
    pub fn plus(self, other: Self) -> Self {
        Self {
            user_seconds: self.user_seconds + other.user_seconds,
            system_seconds: self.system_seconds + other.system_seconds,
        }
    }

    /// What is left of it without the other; never below zero.
    pub fn minus(self, other: Self) -> Self {
        Self {
            user_seconds: (self.user_seconds - other.user_seconds).max(0.0),
            system_seconds: (self.system_seconds - other.system_seconds).max(0.0),
        }
    }
}

/// Resident memory of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub resident_bytes: u64,
    /// Anonymous and shared memory: neither files nor mapped kernel memory.
    pub own_bytes: u64,
}

/// A line of `stat`: the name, the parent, and the time.
struct Stat {
    name: String,
    parent: i32,
    usage: Usage,
}

/// A process's time, its threads that have ended included.
pub fn usage(process: i32) -> Option<Usage> {
    read(Path::new(&format!("/proc/{process}/stat"))).map(|stat| stat.usage)
}

/// The time of a process's threads by their names, the first one's as `main`, and under `(ended)`
/// that of threads that have gone.
pub fn threads(process: i32) -> Vec<(String, Usage)> {
    let mut threads: BTreeMap<String, Usage> = BTreeMap::new();
    let directory = format!("/proc/{process}/task");
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Some(stat) = read(&entry.path().join("stat")) else { continue };
        let is_first = entry.file_name().to_str() == Some(&*process.to_string());
        let name = if is_first { MAIN } else { without_number(&stat.name) };
        let sum = threads.entry(name.to_owned()).or_default();
        *sum = sum.plus(stat.usage);
    }
    let living = threads.values().fold(Usage::default(), |sum, usage| sum.plus(*usage));
    let ended = usage(process).unwrap_or_default().minus(living);
    threads.insert("(ended)".to_owned(), ended);
    threads.into_iter().collect()
}

/// Workers of one kind count together: the kernel numbers those of a ring (`iou-wrk-4711`).
fn without_number(name: &str) -> &str {
    name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-')
}

/// A process's memory.
pub fn memory(process: i32) -> Option<Memory> {
    fs::read_to_string(format!("/proc/{process}/status")).ok().map(|text| parse_memory(&text))
}

/// All processes below this one.
pub fn descendants() -> Vec<i32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        if let Some(stat) = read(&entry.path().join("stat")) {
            parents.push((process, stat.parent));
        }
    }
    let mut found: Vec<i32> = i32::try_from(std::process::id()).into_iter().collect();
    let mut looked_at = 0;
    while let Some(parent) = found.get(looked_at).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(process, _)| *process));
        looked_at += 1;
    }
    found.split_off(1.min(found.len()))
}

fn read(path: &Path) -> Option<Stat> {
    parse_stat(&fs::read_to_string(path).ok()?, ticks_per_second())
}

/// The name stands in parentheses and may hold any of them: the last one ends it.
fn parse_stat(text: &str, ticks: f64) -> Option<Stat> {
    let (before, after) = text.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let words: Vec<&str> = after.split_whitespace().collect();
    let seconds = |index: usize| Some(words.get(index)?.parse::<f64>().ok()? / ticks);
    let usage = Usage { user_seconds: seconds(11)?, system_seconds: seconds(12)? };
    Some(Stat { name, parent: words.get(1)?.parse().ok()?, usage })
}

fn parse_memory(text: &str) -> Memory {
    let bytes = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or_default() << 10
    };
    Memory { resident_bytes: bytes("VmRSS"), own_bytes: bytes("RssAnon") + bytes("RssShmem") }
}

fn ticks_per_second() -> f64 {
    use nix::unistd::{SysconfVar, sysconf};
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    ticks.map_or(100.0, |ticks| ticks as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let line = "17 (a) b (c) S 4 17 17 0 -1 4194304 9 0 0 0 150 50 0 0 20 0 1 0 9 9 9";
        let stat = parse_stat(line, 100.0).unwrap();
        assert_eq!((stat.name.as_str(), stat.parent), ("a) b (c", 4));
        assert_eq!(stat.usage, Usage { user_seconds: 1.5, system_seconds: 0.5 });
        assert!(parse_stat("17 (cut", 100.0).is_none());
    }

    #[test]
    fn numbered_workers_are_of_one_kind() {
        assert_eq!(without_number("iou-wrk-4711"), "iou-wrk");
        assert_eq!(without_number("seal"), "seal");
    }

    #[test]
    fn memory_of_files_is_not_its_own() {
        let text = "Name:\tx\nVmRSS:\t 100 kB\nRssAnon:\t  60 kB\nRssFile:\t 30 kB\n\
                    RssShmem:\t 10 kB\n";
        assert_eq!(parse_memory(text), Memory { resident_bytes: 102_400, own_bytes: 71_680 });
    }

    #[test]
    fn the_threads_make_up_the_process() {
        let me = i32::try_from(std::process::id()).unwrap();
        let (told, heard) = std::sync::mpsc::channel::<()>();
        let (runs, running) = std::sync::mpsc::channel();
        let work = move || {
            // A thread gives itself its name before this.
            runs.send(()).unwrap();
            heard.recv()
        };
        let worker = std::thread::Builder::new().name("busy".to_owned()).spawn(work).unwrap();
        running.recv().unwrap();
        let threads = threads(me);
        for expected in ["busy", MAIN] {
            assert!(threads.iter().any(|(name, _)| name == expected), "{threads:?}");
        }
        drop(told);
        worker.join().unwrap().unwrap_err();
        let sum: f64 = threads.iter().map(|(_, usage)| usage.seconds()).sum();
        assert!(sum <= usage(me).unwrap().seconds() + 0.1, "{threads:?}");
    }

    #[test]
    fn a_child_is_below_us_and_a_stranger_is_not() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let id = i32::try_from(child.id()).unwrap();
        let found = descendants();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&id) && !found.contains(&1), "{found:?}");
    }
}
