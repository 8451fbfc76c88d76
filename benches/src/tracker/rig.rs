//! One disk that is brought into each mode of tracking, and back. It must never leave the tracker's
//! programs, nor a trace, behind in the kernel.

use super::programs;
use crate::place::Source;
use crate::process::{Running, command, missing};
use crate::watched::Watched;
use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use redoubt_e2e::disk::keep_mounts_private;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// As operators run it.
const POINT_INTERVAL: &str = "5s";

/// Initial sync and catch-up of a small disk.
const STREAMING_WITHIN: Duration = Duration::from_secs(600);

/// Where blktrace has its files.
const DEBUGFS: &str = "/sys/kernel/debug";

/// Who watches the writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Nobody: no program of the tracker is attached.
    Untracked,
    /// blktrace, its events thrown away.
    Blktrace,
    /// The tracker without an agent: the bitmap alone.
    Bitmap,
    /// The agent, with every write on its way to a target on this machine.
    Data,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Untracked, Self::Blktrace, Self::Bitmap, Self::Data];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Untracked => "untracked",
            Self::Blktrace => "blktrace",
            Self::Bitmap => "bitmap",
            Self::Data => "data, streaming",
        }
    }

    /// What it needs and is not here.
    pub fn missing(self) -> Option<String> {
        if self != Self::Blktrace {
            return None;
        }
        missing(self.name(), &[("blktrace", "blktrace")]).or_else(|| {
            let is_there = Path::new(DEBUGFS).join("block").exists();
            (!is_there).then(|| format!("{}: this kernel traces no block devices", self.name()))
        })
    }
}

/// Mounts debugfs where it is missing, in mounts of this process's own, which end with it.
pub fn mount_debugfs() -> Result<()> {
    keep_mounts_private()?;
    if std::fs::read_dir(DEBUGFS).is_ok_and(|mut entries| entries.next().is_none()) {
        let kind = Some("debugfs");
        // Where it cannot be had blktrace cannot run, which is then told.
        mount(kind, DEBUGFS, kind, MsFlags::empty(), None::<&str>).ok();
    }
    Ok(())
}

/// The disk, and who watches it.
pub struct Rig<'a> {
    pub source: &'a Source,
    pub room: &'a Path,
    pub site: Watched,
    trace: Option<Running>,
    pins: Option<PathBuf>,
    is_running: bool,
}

impl<'a> Rig<'a> {
    /// A disk that nobody watches yet, and a target.
    pub fn new(source: &'a Source, room: &'a Path) -> Result<Self> {
        let site = Watched::prepare(room, source.device(), POINT_INTERVAL, &[])?;
        Ok(Self { source, room, site, trace: None, pins: None, is_running: false })
    }

    /// Brings the disk into a mode; with a target, once all of it is there.
    pub fn enter(&mut self, mode: Mode) -> Result<()> {
        match mode {
            Mode::Untracked => self.detach(),
            Mode::Blktrace => {
                self.detach()?;
                let mut trace = command(&[], "blktrace")?;
                trace.args(["-o", "-", "-d"]).arg(self.source.device());
                let log = self.room.join("blktrace.log");
                let (trace, _) = Running::start_between("blktrace", &mut trace, None, false, &log)?;
                self.trace = Some(trace);
                Ok(())
            }
            Mode::Bitmap if self.pins.is_some() && !self.is_running => Ok(()),
            Mode::Bitmap => {
                self.stream()?;
                self.site.stop_agent()?;
                self.is_running = false;
                Ok(())
            }
            Mode::Data => self.stream(),
        }
    }

    /// Ends what only one run has; a disk that streams must be equal to its replica by then.
    pub fn leave(&mut self) -> Result<()> {
        if let Some(mut trace) = self.trace.take() {
            trace.expect_alive()?;
            trace.end()?;
        }
        if self.is_running {
            self.site.wait_for_streaming(STREAMING_WITHIN)?;
            let replica = self.site.wait_for_replica(STREAMING_WITHIN)?;
            self.source.expect_equal(&replica)?;
        }
        Ok(())
    }

    /// Where the tracker's programs are pinned.
    pub fn pins(&self) -> Result<&Path> {
        self.pins.as_deref().context("the tracker is not attached")
    }

    /// Ends all of it.
    pub fn end(self) -> Result<()> {
        self.site.end()
    }

    fn stream(&mut self) -> Result<()> {
        if !self.is_running {
            self.site.start_agent()?;
            self.is_running = true;
        }
        if self.pins.is_none() {
            let [agent, _] = self.site.processes()?;
            self.pins = Some(programs::pins_of(agent)?);
        }
        self.site.wait_for_streaming(STREAMING_WITHIN)?;
        self.site.wait_for_replica(STREAMING_WITHIN).map(drop)
    }

    fn detach(&mut self) -> Result<()> {
        if self.is_running {
            self.site.stop_agent()?;
            self.is_running = false;
        }
        if self.pins.take().is_some() {
            self.site.detach()?;
        }
        Ok(())
    }
}
