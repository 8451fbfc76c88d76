//! The disks of this machine: which are protected, under which number and name, and whether their
//! tracking can be taken up again. Whatever it cannot prove makes the whole disk be read again,
//! with the reason.

use crate::error::AgentError;
use crate::frame_log::FrameLog;
use crate::own_state;
use crate::pace::{Pace, Rate};
use crate::presence::{Absent, Present};
use crate::snapshot::DiskSnapshot;
use crate::state::{EndedDisk, ProtectedDisk, State};
use crate::unprotect::Which;
use crate::verify::Untracked;
use redoubt_control::options::DiskArgument;
use redoubt_log::{DiskIndex, DiskSet, GapReason, Name, Sequence};
use redoubt_protocol::message::{DiskDescription, KnownDisk, Welcome};
use redoubt_protocol::{AgentPast, PauseWord};
use redoubt_tracker::device::BlockDevice;
use redoubt_tracker::probe::{Attached, DiskIdentity};
use redoubt_tracker::{LogSink, ReadOrder, Tracking};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// One protected disk of this run.
struct Disk {
    presence: Result<Present, Absent>,
    /// Whether it was whole in the log at any time since the log has told of it.
    was_whole: bool,
    read_error: Option<String>,
    /// A verify has found a difference that was not read again yet.
    differs: bool,
    written: Rate,
    logged: Rate,
}

/// What the disks are told of, to tell how they stand.
pub(crate) struct Seen<'a> {
    pub source: &'a Attached,
    pub tracking: &'a Tracking,
    pub log: Option<&'a FrameLog>,
    /// Skipped runs of the programs that concerned every disk, in this run.
    pub skipped: u64,
    /// Whether the order of events was proven when the tracker was attached.
    pub order_proven: bool,
}

/// All protected disks, and the state file that remembers them.
pub(crate) struct ProtectedDisks {
    directory: PathBuf,
    pub state: State,
    disks: Vec<Disk>,
    /// Disks that are being let go.
    released: Vec<(DiskIndex, Disk)>,
    turn: usize,
    /// Skipped runs that nobody has answered yet.
    missed_events: Option<u64>,
}

impl ProtectedDisks {
    /// Resolves and locks the disks that were asked for and those that the state remembers. A disk
    /// that is new must be there; one that was protected before and is not there does not stop the
    /// others.
    pub fn open(directory: &Path, asked: &[DiskArgument]) -> Result<Self, AgentError> {
        let mut state = State::load(directory)?;
        let remembered = state.disks.len();
        for argument in asked {
            take_in(&mut state, argument)?;
        }
        if state.disks.is_empty() {
            return Err(AgentError::NoDisk);
        }
        let has_log = state.generation.is_some();
        let mut disks: Vec<Disk> = Vec::new();
        for (at, known) in state.disks.iter_mut().enumerate() {
            let is_new = at >= remembered;
            let held = disks.iter().filter_map(|disk| disk.presence.as_ref().ok());
            let presence = match Present::hold(known, has_log && !is_new, directory, held) {
                Err(error) if !is_new => Err(Absent::because(known, error)?),
                held => Ok(held?),
            };
            disks.push(Disk {
                presence,
                was_whole: false,
                read_error: None,
                differs: false,
                written: Rate::default(),
                logged: Rate::default(),
            });
        }
        Ok(Self {
            directory: directory.to_owned(),
            state,
            disks,
            released: Vec::new(),
            turn: 0,
            missed_events: None,
        })
    }

    /// Whether every disk is there.
    pub fn all_present(&self) -> bool {
        self.disks.iter().all(|disk| disk.presence.is_ok())
    }

    /// The disks that were there and are not what they were, and why.
    pub fn changed(&self) -> Vec<(DiskIndex, AgentError)> {
        let changed = |(known, disk): (&ProtectedDisk, &Disk)| {
            let error = disk.presence.as_ref().ok()?.check(known).err()?;
            Some((known.index, error))
        };
        self.state.disks.iter().zip(&self.disks).filter_map(changed).collect()
    }

    /// Nobody protects the disk any more in this run; the state remembers it.
    pub fn lose(&mut self, index: DiskIndex, error: AgentError) -> Result<(), AgentError> {
        if let Some(at) = self.position(index) {
            self.disks[at].presence = Err(Absent::because(&self.state.disks[at], error)?);
        }
        Ok(())
    }

    /// Remembers the disks from now on: a start that fails before this leaves no trace of them.
    pub fn keep(&self) -> Result<(), AgentError> {
        self.state.save(&self.directory)
    }

    /// Says of which disk the agent's own state is a part.
    pub fn warn_of_own_state(&self) {
        for (known, disk) in self.state.disks.iter().zip(&self.disks) {
            let present = disk.presence.as_ref().ok();
            if present.is_some_and(|present| own_state::is_on(&self.directory, &present.device)) {
                tracing::warn!(
                    disk = %known.name,
                    state = %self.directory.display(),
                    "this disk holds the agent's own state: its few writes are shipped, too"
                );
            }
        }
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

    /// The numbers of the protected disks, be they there or not.
    pub fn indexes(&self) -> DiskSet {
        let mut all = DiskSet::default();
        self.state.disks.iter().for_each(|disk| all.insert(disk.index));
        all
    }

    /// The protected disks of which nothing is tracked, and why.
    pub fn untracked(&self, tracking: &Tracking) -> Vec<Untracked> {
        let disks = self.state.disks.iter().zip(&self.disks);
        let disks = disks.filter(|(known, _)| tracking.size(known.index).is_none());
        let why = |(known, disk): (&ProtectedDisk, &Disk)| Untracked {
            name: known.name.clone(),
            size: known.size,
            reason: match &disk.presence {
                Err(absent) => absent.reason.clone(),
                Ok(_) => "its tracking has not begun".to_owned(),
            },
        };
        disks.map(why).collect()
    }

    /// The disks that are there, open for the reads of `D`; for one caller.
    pub fn take_files(&mut self) -> Vec<(DiskIndex, File)> {
        let disks = self.state.disks.iter().zip(&mut self.disks);
        let file = |(known, disk): (&ProtectedDisk, &mut Disk)| {
            let file = disk.presence.as_mut().ok()?.file.take()?;
            Some((known.index, file))
        };
        disks.filter_map(file).collect()
    }

    /// Programs that were adopted may have been skipped while nobody looked: then the marks do not
    /// say everything, and no disk's tracking is taken up. Returns how many skipped runs were
    /// answered before this run.
    pub fn look_for_skipped(&mut self, adopted: bool, skipped: u64) -> Result<u64, AgentError> {
        let answered = if adopted { self.state.skipped_runs } else { skipped };
        self.missed_events = (skipped != answered).then_some(skipped);
        if !adopted {
            self.remember_skipped(skipped)?;
        }
        Ok(answered)
    }

    /// Skipped runs were answered, on every disk that is there: the marks of the others say no more
    /// all that changed.
    pub fn remember_skipped(&mut self, skipped: u64) -> Result<(), AgentError> {
        self.state.skipped_runs = skipped;
        for (known, disk) in self.state.disks.iter_mut().zip(&self.disks) {
            if disk.presence.is_err() {
                known.tracked = None;
            }
        }
        self.state.save(&self.directory)
    }

    /// Unmarked completions were answered.
    pub fn remember_unmarked(&mut self, tracking: &Tracking) -> Result<(), AgentError> {
        let mut news = false;
        for known in &mut self.state.disks {
            if let Some(progress) = tracking.progress(known.index) {
                news |= known.unmarked != progress.unmarked;
                known.unmarked = progress.unmarked;
            }
        }
        if news { self.state.save(&self.directory) } else { Ok(()) }
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
        self.change(|state| state.acknowledged = sequence.0)
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
            let known = &self.state.disks[at];
            let index = known.index;
            let Ok(Present { device, .. }) = &self.disks[at].presence else {
                // Whatever happens to it, this log does not tell.
                log.gap(index, GapReason::DeviceMissing);
                continue;
            };
            let size = device.length;
            log.disk_added(index, known.name.as_str(), size, known.logical_block_bytes);
            let at_target = welcome.disks.iter().find(|theirs| theirs.index == index);
            let has_data = at_target.is_some_and(|theirs| theirs.has_data);
            let identity = device.identity();
            let doubt = self.doubt(at, &identity, source, welcome, resync, has_data);
            self.disks[at].was_whole = doubt.is_none();
            match doubt {
                None if running => {}
                None => {
                    let reason = GapReason::AgentRestarted;
                    let answered = self.state.disks[at].unmarked;
                    tracking.adopt(source, index, size, answered, reason, log)?;
                }
                Some(reason) => {
                    tracing::info!(disk = %index, %reason, "the whole disk is read");
                    self.track_anew(at, &identity, source, running)?;
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
        if let Some(skipped) = self.missed_events.take() {
            self.remember_skipped(skipped)?;
        }
        self.remember_unmarked(tracking)
    }

    /// Why the marks of a disk do not say all that changed since the target's position, if they do
    /// not.
    fn doubt(
        &self,
        at: usize,
        identity: &DiskIdentity,
        source: &Attached,
        welcome: &Welcome,
        resync: bool,
        has_data: bool,
    ) -> Option<GapReason> {
        let known = &self.state.disks[at];
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
            (Some(_), Some(pinned)) if pinned.identity != *identity => {
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
        identity: &DiskIdentity,
        source: &mut Attached,
        running: bool,
    ) -> Result<(), AgentError> {
        if self.state.disks[at].tracked.take().is_some() {
            self.state.save(&self.directory)?;
        }
        let index = self.state.disks[at].index;
        let pinned = source.disks().into_iter().find(|pinned| pinned.disk == index);
        if running && pinned.is_some() {
            return Ok(());
        }
        if pinned.is_some() {
            source.remove_disk(index)?;
        }
        source.add_disk(index, identity)?;
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
    pub fn tell(&mut self, seen: &Seen<'_>, pace: &Pace, now: Instant) -> Vec<DiskSnapshot> {
        let elapsed = pace.elapsed(now);
        let mut told = Vec::new();
        for (known, disk) in self.state.disks.iter().zip(&mut self.disks) {
            let progress = seen.tracking.progress(known.index);
            if progress.is_some_and(|progress| progress.settled) {
                disk.was_whole = true;
                (disk.read_error, disk.differs) = (None, false);
            }
            let logged = seen.log.map_or(0, |log| log.bytes_of(known.index).logged);
            let absent = disk.presence.as_ref().err();
            let written = match absent {
                None => seen.source.disk_counters(known.index).submitted_bytes,
                Some(_) => 0,
            };
            let gap = progress.and_then(|progress| progress.gap).unwrap_or(GapReason::FirstSync);
            let why = if disk.differs { "verify-difference".to_owned() } else { gap.to_string() };
            told.push(DiskSnapshot {
                index: known.index,
                name: known.name.clone(),
                absent: absent.map(|absent| absent.reason.clone()),
                order_proven: seen.order_proven,
                misses: seen.skipped + progress.map_or(0, |progress| progress.missed),
                gaps: seen.tracking.gaps(known.index),
                progress,
                was_whole: disk.was_whole,
                why: disk.read_error.clone().unwrap_or(why),
                written_per_second: disk.written.over(written, elapsed),
                logged_per_second: disk.logged.over(logged, elapsed),
                size: known.size,
                to_come: None,
            });
        }
        told
    }

    /// Whether the operator has paused the machine.
    pub fn is_paused(&self) -> bool {
        self.state.pause.paused
    }

    /// What the operator said of a pause, durably.
    pub fn remember_pause(&mut self, word: PauseWord) -> Result<(), AgentError> {
        self.change(|state| state.pause = word)
    }

    /// Whether no disk is protected.
    pub fn is_empty(&self) -> bool {
        self.state.disks.is_empty()
    }

    /// The protected disks that are meant.
    pub fn chosen(&self, which: &Which) -> Vec<(DiskIndex, Name)> {
        let is_meant = |disk: &&ProtectedDisk| match which {
            Which::All => true,
            Which::Named(name) => disk.name == *name,
            Which::Told(disks) => disks.contains(disk.index),
        };
        let named = |disk: &ProtectedDisk| (disk.index, disk.name.clone());
        self.state.disks.iter().filter(is_meant).map(named).collect()
    }

    /// A disk's protection has ended, durably; its lock is held until [`Self::release`].
    pub fn remember_end(&mut self, index: DiskIndex) -> Result<(), AgentError> {
        let Some(at) = self.position(index) else { return Ok(()) };
        self.change(|state| {
            let ProtectedDisk { index, name, .. } = state.disks.remove(at);
            state.ended.push(EndedDisk { index, name });
        })?;
        let disk = self.disks.remove(at);
        self.released.push((index, disk));
        Ok(())
    }

    /// Nothing of the disk is used any more: its lock goes.
    pub fn release(&mut self, index: DiskIndex) {
        self.released.retain(|(released, _)| *released != index);
    }

    /// The target has these ends.
    pub fn forget_ends(&mut self, indexes: &[DiskIndex]) -> Result<(), AgentError> {
        self.change(|state| state.ended.retain(|ended| !indexes.contains(&ended.index)))
    }

    /// No index that the target knows is given again, and of what it does not know it need not
    /// learn the end.
    pub fn learn_indexes(&mut self, known: &[KnownDisk]) -> Result<(), AgentError> {
        let is_known = |index| known.iter().any(|disk| disk.index == index);
        let least = known.iter().map(|disk| disk.index.0.saturating_add(1)).max().unwrap_or(0);
        self.change(|state| {
            state.next_index = state.next_index.max(least);
            state.ended.retain(|ended| is_known(ended.index));
        })
    }

    /// Changes the state, durably; where that fails nothing has changed.
    fn change(&mut self, change: impl FnOnce(&mut State)) -> Result<(), AgentError> {
        let mut next = self.state.clone();
        change(&mut next);
        if next != self.state {
            next.save(&self.directory)?;
            self.state = next;
        }
        Ok(())
    }

    fn position(&self, index: DiskIndex) -> Option<usize> {
        self.state.disks.iter().position(|disk| disk.index == index)
    }
}

/// Adds a disk that was asked for, unless it is known already. One that is known need not be there.
fn take_in(state: &mut State, argument: &DiskArgument) -> Result<(), AgentError> {
    let resolved = BlockDevice::resolve(&argument.device);
    let stable = resolved.as_ref().ok().and_then(|device| device.stable_name.clone());
    let path = stable.unwrap_or_else(|| argument.device.clone());
    let known = |disk: &&mut ProtectedDisk| {
        // A name may stand for another device by now: it counts only where it stands for none.
        let by_name = resolved.is_err() && disk.asked.as_ref() == Some(&argument.device);
        disk.device == path || disk.device == argument.device || by_name
    };
    if let Some(disk) = state.disks.iter_mut().find(known) {
        if argument.name.as_ref().is_some_and(|name| *name != disk.name) {
            return Err(AgentError::NameTaken { name: disk.name.to_string() });
        }
        disk.asked = (disk.device != argument.device).then(|| argument.device.clone());
        return Ok(());
    }
    let device = resolved?;
    let derived = || {
        let text = path.file_name().unwrap_or_default().to_string_lossy();
        Name::derive(&text).ok()
    };
    let name = argument.name.clone().or_else(derived);
    let name = name.ok_or_else(|| AgentError::NameTaken { name: device.name.clone() })?;
    if state.disks.iter().any(|disk| disk.name == name) {
        return Err(AgentError::NameTaken { name: name.to_string() });
    }
    // The last number is the canary's.
    let limit = DiskIndex::LIMIT - 1;
    let index = state.new_index(limit).ok_or(AgentError::TooManyDisks { limit })?;
    state.disks.push(ProtectedDisk {
        index,
        name,
        asked: (path != argument.device).then(|| argument.device.clone()),
        device: path,
        size: device.length,
        logical_block_bytes: device.logical_block_bytes,
        tracked: None,
        unmarked: 0,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state directory that remembers a disk that is gone.
    fn remembered(device: &str, asked: Option<&str>) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let mut state = State::load(directory.path()).unwrap();
        state.disks.push(ProtectedDisk {
            index: DiskIndex(0),
            name: "gone".parse().unwrap(),
            device: device.into(),
            asked: asked.map(PathBuf::from),
            size: 1 << 20,
            logical_block_bytes: 512,
            tracked: None,
            unmarked: 0,
        });
        state.save(directory.path()).unwrap();
        directory
    }

    #[test]
    fn a_remembered_disk_that_is_gone_ends_nothing() {
        let directory = remembered("/dev/disk/by-id/no-such", Some("/dev/no-such"));
        for asked in
            [&[][..], &["/dev/no-such".parse().unwrap()], &["/dev/no-such=gone".parse().unwrap()]]
        {
            let disks = ProtectedDisks::open(directory.path(), asked).unwrap();
            assert!(!disks.all_present());
            assert_eq!(disks.descriptions()[0].size_bytes, 1 << 20);
        }
    }

    #[test]
    fn a_new_disk_that_is_not_there_is_an_error_and_leaves_no_trace() {
        let directory = remembered("/dev/no-such", None);
        let before = State::load(directory.path()).unwrap();
        for asked in ["/dev/none-either", "/dev/none-either=gone", "/dev/null"] {
            let asked = [asked.parse().unwrap()];
            let error = ProtectedDisks::open(directory.path(), &asked).err().unwrap();
            assert!(matches!(error, AgentError::Device(_)), "{error}");
        }
        assert_eq!(State::load(directory.path()).unwrap(), before);
    }
}
