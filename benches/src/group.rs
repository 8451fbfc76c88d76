//! What the processes of one contender cost together: processor time and memory. They stand in a
//! cgroup of their own where there is cgroup v2; else they are the descendants of this process, and
//! what one of them used after the last look at it is missing.

use crate::proc_stat::{self, Usage};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two looks at memory: peaks shorter than this may be missed.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// From the end of a contender's first process to that of its last.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// What a contender has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// User and system time of all its processes.
    pub processor_seconds: f64,
    /// Most resident bytes of all of them at one moment.
    pub resident_bytes: u64,
    /// The part of these that no file and no kernel memory stands behind.
    pub own_bytes: u64,
}

/// The processes of one contender.
pub struct Group {
    cgroup: Option<PathBuf>,
}

impl Group {
    /// An empty one.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("redoubt-bench-{}-{number}", std::process::id());
        let cgroup = mount_of_cgroups().map(|mount| mount.join(name));
        Self { cgroup: cgroup.filter(|path| fs::create_dir(path).is_ok()) }
    }

    /// How it counts, for people.
    pub fn method(&self) -> &'static str {
        match self.cgroup {
            Some(_) => "cgroup v2",
            None => "sampled from /proc, since no cgroup v2 can be made here",
        }
    }

    /// Words before a command that make it one of the group.
    pub fn launcher(&self) -> Vec<OsString> {
        let Some(path) = &self.cgroup else { return Vec::new() };
        let join = r#"echo $$ >"$0" && exec "$@""#;
        vec!["sh".into(), "-c".into(), join.into(), path.join("cgroup.procs").into()]
    }

    /// Counts from now on.
    pub fn measure(&self) -> Meter {
        let cgroup = self.cgroup.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (cgroup, stop) = (cgroup.clone(), stop.clone());
            move || watch(cgroup.as_deref(), &stop)
        });
        let before = cgroup.as_deref().and_then(cgroup_seconds).unwrap_or_default();
        Meter { cgroup, before, stop, thread }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(path) = &self.cgroup else { return };
        let began = Instant::now();
        while !members(path).is_empty() {
            // All of them are of this contender: nobody else is in its cgroup.
            if began.elapsed() > EMPTY_WITHIN {
                for process in members(path) {
                    kill(Pid::from_raw(process), Signal::SIGKILL).ok();
                }
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        if let Err(error) = fs::remove_dir(path) {
            eprintln!("cannot remove {}: {error}", path.display());
        }
    }
}

/// Counts until it is asked.
pub struct Meter {
    cgroup: Option<PathBuf>,
    before: f64,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Cost>,
}

impl Meter {
    /// What was used since it was made.
    pub fn finish(self) -> Result<Cost> {
        let now = self.cgroup.as_deref().map(|path| {
            cgroup_seconds(path).with_context(|| format!("no cpu.stat in {}", path.display()))
        });
        self.stop.store(true, Ordering::Relaxed);
        let mut cost = self.thread.join().map_err(|_| anyhow::anyhow!("the meter has failed"))?;
        if let Some(now) = now {
            cost.processor_seconds = now? - self.before;
        }
        Ok(cost)
    }
}

fn watch(cgroup: Option<&Path>, stop: &AtomicBool) -> Cost {
    let mut cost = Cost::default();
    let mut seen: BTreeMap<i32, (Usage, Usage)> = BTreeMap::new();
    loop {
        let is_last = stop.load(Ordering::Relaxed);
        let processes = cgroup.map_or_else(proc_stat::descendants, members);
        let (mut resident, mut own) = (0, 0);
        for process in processes {
            let memory = proc_stat::memory(process).unwrap_or_default();
            resident += memory.resident_bytes;
            own += memory.own_bytes;
            if cgroup.is_none()
                && let Some(usage) = proc_stat::usage(process)
            {
                seen.entry(process).or_insert((usage, usage)).1 = usage;
            }
        }
        cost.resident_bytes = cost.resident_bytes.max(resident);
        cost.own_bytes = cost.own_bytes.max(own);
        if is_last {
            let used = seen.values().map(|(first, last)| last.seconds() - first.seconds());
            cost.processor_seconds = used.sum();
            return cost;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Where cgroup v2 is mounted.
fn mount_of_cgroups() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    line.split(' ').nth(1).map(PathBuf::from)
}

fn members(cgroup: &Path) -> Vec<i32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn cgroup_seconds(cgroup: &Path) -> Option<f64> {
    let text = fs::read_to_string(cgroup.join("cpu.stat")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    line.trim().parse::<f64>().ok().map(|microseconds| microseconds / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Running, command};

    fn expect_counted(group: Group) {
        let log = tempfile::NamedTempFile::new().unwrap();
        let idle = group.measure().finish().unwrap();
        assert!(idle.processor_seconds < 0.2, "{idle:?}");
        let meter = group.measure();
        let busy = "(i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done); sleep 0.2";
        let mut shell = command(&group.launcher(), "sh").unwrap();
        let running = Running::start("busy", shell.args(["-c", busy]), log.path()).unwrap();
        running.finish(Duration::from_secs(120)).unwrap();
        let cost = meter.finish().unwrap();
        assert!(cost.processor_seconds > 0.01, "{cost:?}");
        assert!(cost.resident_bytes > 100 << 10 && cost.own_bytes > 0, "{cost:?}");
        assert!(cost.own_bytes <= cost.resident_bytes, "{cost:?}");
        let path = group.cgroup.clone();
        drop(group);
        assert!(path.is_none_or(|path| !path.exists()));
    }

    #[test]
    fn a_busy_process_is_counted_with_its_children() {
        expect_counted(Group::new());
    }

    #[test]
    fn it_is_counted_without_a_cgroup_too() {
        expect_counted(Group { cgroup: None });
    }
}
