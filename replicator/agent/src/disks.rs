//! The disks of this machine: which are protected, under which number and name, and whether their
//! tracking can be taken up again. Whatever it cannot prove makes the whole disk be read again,
//! with the reason.

use crate::error::AgentError;
use crate::frame_log::{DiskBytes, FrameLog};
use crate::locks::DiskLock;
use crate::pace::{Pace, Rate};
use crate::reader::open_disk;
use crate::snapshot::DiskSnapshot;
use crate::state::{ProtectedDisk, State};
use redoubt_control::options::DiskArgument;
use redoubt_log::{DiskIndex, GapReason, Name, Sequence};
use redoubt_protocol::AgentPast;
use redoubt_protocol::message::{DiskDescription, Welcome};
use redoubt_tracker::device::BlockDevice;
use redoubt_tracker::probe::Attached;
use redoubt_tracker::{DiskProgress, ReadOrder, Tracking};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// One protected disk of this run.
struct Disk {
    device: BlockDevice,
    /// Whether it was whole in the log at any time since the log has told of it.
    was_whole: bool,
    read_error: Option<String>,
    /// A verify has found a difference that was not read again yet.
    differs: bool,
    written: Rate,
    logged: Rate,
    _lock: DiskLock,
}

/// All protected disks, and the state file that remembers them.
pub(crate) struct ProtectedDisks {
    directory: PathBuf,
    state: State,
    disks: Vec<Disk>,
    turn: usize,
    /// Skipped runs that nobody has answered yet.
    missed_events: Option<u64>,
}

impl ProtectedDisks {
    /// Resolves and locks the disks that were asked for and those that the state remembers.
    pub fn open(directory: &Path, asked: &[DiskArgument]) -> Result<Self, AgentError> {
        let mut state = State::load(directory)?;
        for argument in asked {
            take_in(&mut state, argument)?;
        }
        if state.disks.is_empty() {
            return Err(AgentError::NoDisk);
        }
        let mut disks = Vec::new();
        for known in &mut state.disks {
            let device = BlockDevice::resolve(&known.device)?;
            if !device.request_based {
                return Err(AgentError::BioBased { device: known.device.clone() });
            }
            let lock = DiskLock::take(&known.device, device.diskseq, device.start)?;
            (known.size, known.logical_block_bytes) = (device.length, device.logical_block_bytes);
            disks.push(Disk {
                device,
                was_whole: false,
                read_error: None,
                differs: false,
                written: Rate::default(),
                logged: Rate::default(),
                _lock: lock,
            });
        }
        Ok(Self { directory: directory.to_owned(), state, disks, turn: 0, missed_events: None })
    }

    /// Remembers the disks from now on: a start that fails before this leaves no trace of them.
    pub fn keep(&self) -> Result<(), AgentError> {
        self.state.save(&self.directory)
    }

    /// What the session has to know of earlier runs.
    pub fn past(&self) -> AgentPast {
        self.state.past()
    }

    /// What the target is told of the disks.
    pub fn descriptions(&self) -> Vec<DiskDescription> {
        let describe = |disk: &ProtectedDisk| DiskDescription {
            index: disk.index,
            name: disk.name.clone(),
            size_bytes: disk.size,
            logical_block_bytes: disk.logical_block_bytes,
        };
        self.state.disks.iter().map(describe).collect()
    }

    /// Names and devices, by number.
    pub fn names(&self) -> Vec<(DiskIndex, Name, PathBuf)> {
        let name = |disk: &ProtectedDisk| (disk.index, disk.name.clone(), disk.device.clone());
        self.state.disks.iter().map(name).collect()
    }

    /// Opens every disk for the reads of `D`.
    pub fn open_all(&self) -> Result<Vec<(DiskIndex, File)>, AgentError> {
        let open = |(known, disk): (&ProtectedDisk, &Disk)| {
            open_disk(&disk.device.path).map(|file| (known.index, file))
        };
        self.state.disks.iter().zip(&self.disks).map(open).collect()
    }

    /// Programs that were adopted may have been skipped while nobody looked: then the marks do not
    /// say everything, and no disk's tracking is taken up.
    pub fn look_for_skipped(&mut self, adopted: bool, skipped: u64) -> Result<(), AgentError> {
        let news = adopted && skipped != self.state.skipped_runs;
        self.missed_events = news.then_some(skipped);
        if adopted {
            return Ok(());
        }
        self.remember_skipped(skipped)
    }

    /// Skipped runs were answered.
    pub fn remember_skipped(&mut self, skipped: u64) -> Result<(), AgentError> {
        self.state.skipped_runs = skipped;
        self.state.save(&self.directory)
    }

    /// The session's terms, durably.
    pub fn remember(&mut self, past: AgentPast) -> Result<(), AgentError> {
        if self.state.past() != past {
            self.state.set_past(past);
            self.state.save(&self.directory)?;
        }
        Ok(())
    }

    /// The target has the log up to here: durably, before anything is dropped because of it.
    pub fn remember_acknowledged(&mut self, sequence: Sequence) -> Result<(), AgentError> {
        self.state.acknowledged = sequence.0;
        self.state.save(&self.directory)
    }

    /// Lets every disk's tracking begin, or go on where an earlier run has left it, in a log with
    /// these terms.
    pub fn begin(
        &mut self,
        source: &mut Attached,
        tracking: &mut Tracking,
        log: &mut FrameLog,
        welcome: &Welcome,
        resync: bool,
    ) -> Result<(), AgentError> {
        let running = !tracking.indexes().is_empty();
        for at in 0..self.disks.len() {
            let (known, disk) = (&self.state.disks[at], &self.disks[at]);
            let (index, size) = (known.index, disk.device.length);
            log.disk_added(index, known.name.as_str(), size, known.logical_block_bytes);
            let at_target = welcome.disks.iter().find(|theirs| theirs.index == index);
            let has_data = at_target.is_some_and(|theirs| theirs.has_data);
            let doubt = self.doubt(at, source, welcome, resync, has_data);
            self.disks[at].was_whole = doubt.is_none();
            match doubt {
                None if running => {}
                None => {
                    let reason = GapReason::AgentRestarted;
                    tracking.adopt(source, index, size, reason, log)?;
                }
                Some(reason) => {
                    tracing::info!(disk = %index, %reason, "the whole disk is read");
                    self.track_anew(at, source, running)?;
                    if running {
                        tracking.demand_whole(source, index, reason, log)?;
                    } else {
                        tracking.add_whole(source, index, size, reason, log)?;
                    }
                    self.state.disks[at].tracked = Some(welcome.generation);
                    self.state.save(&self.directory)?;
                }
            }
        }
        if running && !resync {
            tracking.tail_lost(source, GapReason::TargetBehind, log)?;
        }
        match self.missed_events.take() {
            Some(skipped) => self.remember_skipped(skipped),
            None => Ok(()),
        }
    }

    /// Why the marks of a disk do not say all that changed since the target's position, if they do
    /// not.
    fn doubt(
        &self,
        at: usize,
        source: &Attached,
        welcome: &Welcome,
        resync: bool,
        has_data: bool,
    ) -> Option<GapReason> {
        let known = &self.state.disks[at];
        let identity = self.disks[at].device.identity();
        let pinned = source.disks().into_iter().find(|pinned| pinned.disk == known.index);
        match (known.tracked, pinned) {
            _ if resync => Some(GapReason::TargetBehind),
            (None, _) => Some(GapReason::FirstSync),
            _ if self.missed_events.is_some() => Some(GapReason::MissedEvents),
            (Some(generation), _) if generation != welcome.generation => {
                Some(GapReason::TargetBehind)
            }
            (Some(_), None) => Some(GapReason::PinsGone),
            (Some(_), Some(pinned)) if pinned.identity.length != identity.length => {
                Some(GapReason::SizeChanged)
            }
            (Some(_), Some(pinned)) if pinned.identity != identity => {
                Some(GapReason::DeviceReplaced)
            }
            (Some(_), Some(_)) if !has_data => Some(GapReason::TargetBehind),
            (Some(_), Some(_)) => None,
        }
    }

    /// Watches the disk as it is now. That its marks can be built on is remembered only when all of
    /// it is marked.
    fn track_anew(
        &mut self,
        at: usize,
        source: &mut Attached,
        running: bool,
    ) -> Result<(), AgentError> {
        if self.state.disks[at].tracked.take().is_some() {
            self.state.save(&self.directory)?;
        }
        let index = self.state.disks[at].index;
        let identity = self.disks[at].device.identity();
        let pinned = source.disks().into_iter().find(|pinned| pinned.disk == index);
        if running && pinned.is_some() {
            return Ok(());
        }
        if pinned.is_some() {
            source.remove_disk(index)?;
        }
        source.add_disk(index, &identity)?;
        Ok(())
    }

    /// The disks take turns at being read.
    pub fn next_to_read(&mut self, indexes: &[DiskIndex]) -> DiskIndex {
        self.turn = (self.turn + 1) % indexes.len();
        indexes[self.turn]
    }

    /// A read for `D` has failed: it is said once, until the error changes.
    pub fn read_failed(&mut self, order: ReadOrder, error: &io::Error) {
        if let Some(at) = self.position(order.disk) {
            let text = format!("read-error: {error} at {}", order.range);
            if self.disks[at].read_error.as_ref() != Some(&text) {
                tracing::error!(disk = %order.disk, range = %order.range, %error,
                    "a read has failed and is tried again");
            }
            self.disks[at].read_error = Some(text);
        }
    }

    /// A verify has found a difference, which is read again.
    pub fn differs(&mut self, index: DiskIndex) {
        if let Some(at) = self.position(index) {
            self.disks[at].differs = true;
        }
    }

    /// How every disk stands.
    pub fn tell(
        &mut self,
        progress: impl Fn(DiskIndex) -> Option<DiskProgress>,
        bytes: impl Fn(DiskIndex) -> DiskBytes,
        source: &Attached,
        pace: &mut Pace,
        now: Instant,
    ) -> Vec<DiskSnapshot> {
        let elapsed = pace.elapsed(now);
        let mut told = Vec::new();
        for (known, disk) in self.state.disks.iter().zip(&mut self.disks) {
            let progress = progress(known.index);
            let settled = progress.is_some_and(|progress| progress.settled);
            if settled {
                disk.was_whole = true;
                (disk.read_error, disk.differs) = (None, false);
            }
            let logged = bytes(known.index).logged;
            let gap = progress.and_then(|progress| progress.gap).unwrap_or(GapReason::FirstSync);
            let why = if disk.differs { "verify-difference".to_owned() } else { gap.to_string() };
            told.push(DiskSnapshot {
                index: known.index,
                name: known.name.clone(),
                progress,
                was_whole: disk.was_whole,
                why: disk.read_error.clone().unwrap_or(why),
                written_per_second: disk
                    .written
                    .over(source.disk_counters(known.index).submitted_bytes, elapsed),
                logged_per_second: disk.logged.over(logged, elapsed),
                size: disk.device.length,
            });
        }
        told
    }

    fn position(&self, index: DiskIndex) -> Option<usize> {
        self.state.disks.iter().position(|disk| disk.index == index)
    }
}

/// Adds a disk that was asked for, unless it is known already.
fn take_in(state: &mut State, argument: &DiskArgument) -> Result<(), AgentError> {
    let device = BlockDevice::resolve(&argument.device)?;
    let path = device.stable_name.clone().unwrap_or_else(|| argument.device.clone());
    let derived = || {
        let text = path.file_name().unwrap_or_default().to_string_lossy();
        Name::derive(&text).ok()
    };
    let known = |disk: &&mut ProtectedDisk| disk.device == path || disk.device == argument.device;
    if let Some(disk) = state.disks.iter_mut().find(known) {
        if argument.name.as_ref().is_none_or(|name| *name == disk.name) {
            return Ok(());
        }
        return Err(AgentError::NameTaken { name: disk.name.to_string() });
    }
    let name = argument.name.clone().or_else(derived);
    let name = name.ok_or_else(|| AgentError::NameTaken { name: device.name.clone() })?;
    if state.disks.iter().any(|disk| disk.name == name) {
        return Err(AgentError::NameTaken { name: name.to_string() });
    }
    let taken = |index: &DiskIndex| state.disks.iter().all(|disk| disk.index != *index);
    // The last number is the canary's.
    let limit = DiskIndex::LIMIT - 1;
    let index = (0..limit).map(DiskIndex).find(taken);
    let index = index.ok_or(AgentError::TooManyDisks { limit })?;
    state.disks.push(ProtectedDisk {
        index,
        name,
        device: path,
        size: device.length,
        logical_block_bytes: device.logical_block_bytes,
        tracked: None,
    });
    Ok(())
}
