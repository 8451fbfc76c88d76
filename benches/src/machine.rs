//! The facts about the machine without which a number says nothing, and whether others are at work
//! on it. It must never change anything.

use nix::sys::utsname::uname;
use serde::Serialize;
use std::fmt;
use std::fs;
use std::path::Path;

/// Part of a core that others may use before a warning.
const LOAD_MOST: f64 = 0.25;

/// Where a run takes place.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The product's version.
    pub redoubt_version: &'static str,
    /// Whether the harness, and so most likely the product beside it, is built to be fast.
    pub is_release_build: bool,
    /// The kernel's release.
    pub kernel: String,
    /// The processor's own name.
    pub processor: String,
    /// Processors that run.
    pub cores: usize,
    /// Memory.
    pub memory_bytes: u64,
    /// Where sources and sinks stand.
    pub directory: String,
    /// The file system there, and what it stands on.
    pub filesystem: String,
    /// The load average of the last minute, when the run began.
    pub load_average: f64,
}

impl Machine {
    /// As it is now.
    pub fn look(directory: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let kernel = uname().map(|name| name.release().to_string_lossy().into_owned());
        let memory = after(&text("/proc/meminfo"), "MemTotal")
            .and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        let load = text("/proc/loadavg");
        let load = load.split_whitespace().next().and_then(|word| word.parse().ok());
        let mounts = text("/proc/self/mounts");
        Self {
            redoubt_version: env!("CARGO_PKG_VERSION"),
            is_release_build: !cfg!(debug_assertions),
            kernel: kernel.unwrap_or_default(),
            processor: after(&text("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory.unwrap_or_default() << 10,
            directory: directory.display().to_string(),
            filesystem: filesystem(&mounts, directory).unwrap_or_else(|| "unknown".to_owned()),
            load_average: load.unwrap_or_default(),
        }
    }

    /// Why what is measured here may be worth less than it looks.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.is_release_build {
            warnings.push(
                "a build for tests: these numbers mean nothing; build with --release".to_owned(),
            );
        }
        if self.load_average > LOAD_MOST * self.cores as f64 {
            warnings.push(format!(
                "others are at work here (load average {} on {} cores): wait until it is quiet, \
                 or believe the ratios only, and those little",
                self.load_average, self.cores
            ));
        }
        if self.filesystem.starts_with("tmpfs") {
            warnings.push("in memory nothing is ever synced: give --directory on a disk".into());
        }
        warnings
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let build = if self.is_release_build { "release" } else { "TEST BUILD" };
        let memory = self.memory_bytes >> 20;
        writeln!(out, "redoubt     {} ({build})", self.redoubt_version)?;
        writeln!(out, "kernel      {}", self.kernel)?;
        writeln!(out, "processor   {}, {} cores", self.processor, self.cores)?;
        writeln!(out, "memory      {memory} MiB")?;
        writeln!(out, "directory   {} on {}", self.directory, self.filesystem)?;
        write!(out, "load        {} when it began", self.load_average)?;
        for warning in self.warnings() {
            write!(out, "\nWARNING     {warning}")?;
        }
        Ok(())
    }
}

/// What stands behind a name and a colon.
fn after(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// The last mount on the longest way to the directory is the one that it stands on.
fn filesystem(mounts: &str, directory: &Path) -> Option<String> {
    let mut best: Option<(usize, String)> = None;
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(device), Some(place), Some(kind)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let is_better = best.as_ref().is_none_or(|(length, _)| place.len() >= *length);
        if directory.starts_with(place) && is_better {
            best = Some((place.len(), format!("{kind} ({device})")));
        }
    }
    best.map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mount_names_the_filesystem() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /var/tmp tmpfs rw 0 0\n/dev/b /var xfs rw 0 0\n";
        let found = |path: &str| filesystem(mounts, Path::new(path)).unwrap();
        assert_eq!(found("/var/tmp/x"), "tmpfs (tmpfs)");
        assert_eq!(found("/var/lib"), "xfs (/dev/b)");
        assert_eq!(found("/various"), "ext4 (/dev/a)");
    }

    #[test]
    fn a_busy_machine_and_a_test_build_are_warned_of() {
        let mut machine = Machine::look(Path::new("/"));
        assert!(machine.cores > 0 && machine.memory_bytes > 0 && !machine.kernel.is_empty());
        (machine.is_release_build, machine.cores, machine.load_average) = (true, 2, 0.1);
        machine.filesystem = "ext4 (/dev/a)".to_owned();
        assert!(machine.warnings().is_empty(), "{:?}", machine.warnings());
        (machine.is_release_build, machine.load_average) = (false, 3.0);
        assert_eq!(machine.warnings().len(), 2);
        assert!(machine.to_string().contains("WARNING"));
    }
}
