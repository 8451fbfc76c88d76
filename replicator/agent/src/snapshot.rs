//! How the agent stands, as its threads share it: the owner of the tracker writes, the session and
//! the socket read.

use redoubt_control::status as shown;
use redoubt_log::{DiskIndex, Name, Sequence};
use redoubt_protocol::message as wire;
use redoubt_tracker::DiskProgress;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One disk.
#[derive(Clone, Debug)]
pub(crate) struct DiskSnapshot {
    pub index: DiskIndex,
    pub name: Name,
    pub progress: Option<DiskProgress>,
    pub was_whole: bool,
    pub why: String,
    pub written_per_second: u64,
    pub logged_per_second: u64,
    pub size: u64,
}

/// The agent.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// When the oldest record was drained that is not acknowledged.
    pub oldest: Option<Instant>,
    pub logging: bool,
    pub by_operator: bool,
    pub overloaded: bool,
    pub sealed: Sequence,
    pub disks: Vec<DiskSnapshot>,
}

/// The snapshot, shared.
#[derive(Clone)]
pub(crate) struct SharedSnapshot(Arc<Mutex<Snapshot>>);

impl SharedSnapshot {
    /// Nothing is known yet.
    pub fn new() -> Self {
        let nothing = Snapshot {
            oldest: None,
            logging: false,
            by_operator: false,
            overloaded: false,
            sealed: Sequence(0),
            disks: Vec::new(),
        };
        Self(Arc::new(Mutex::new(nothing)))
    }

    /// The snapshot itself: a plain value, whole even if a holder of the lock has panicked.
    pub fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the connection to the target stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkState {
    pub connected: bool,
    /// Why the target takes nothing, if it does not.
    pub hindrance: Option<String>,
    /// Whether a session ever stood in this run.
    pub ever: bool,
}

/// The link's state, shared.
#[derive(Clone, Default)]
pub(crate) struct SharedLink(Arc<Mutex<LinkState>>);

impl SharedLink {
    /// As it is now.
    pub fn get(&self) -> LinkState {
        self.lock().clone()
    }

    /// A session stands.
    pub fn started(&self, full: Option<String>) {
        *self.lock() = LinkState { connected: true, hindrance: full, ever: true };
    }

    /// The connection has ended.
    pub fn ended(&self) {
        self.lock().connected = false;
    }

    /// The target refuses.
    pub fn refused(&self, why: String) {
        let mut link = self.lock();
        (link.connected, link.hindrance) = (false, Some(why));
    }

    /// The target has no room, or has it again.
    pub fn full(&self, why: Option<String>) {
        self.lock().hindrance = why;
    }

    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Frames sealed and not acknowledged: the last sequence of each, and when its first record was
/// drained.
#[derive(Debug, Default)]
pub(crate) struct Unsealed {
    frames: VecDeque<(Sequence, Instant)>,
    end: Sequence,
}

impl Unsealed {
    /// A frame was handed on.
    pub fn sealed(&mut self, last: Sequence, since: Instant) {
        self.frames.push_back((last, since));
        self.end = last;
    }

    /// Everything up to `sequence` is durable.
    pub fn acknowledged(&mut self, sequence: Sequence) {
        while self.frames.front().is_some_and(|(last, _)| *last <= sequence) {
            self.frames.pop_front();
        }
    }

    /// When the oldest record was drained that is not durable.
    pub fn oldest(&self) -> Option<Instant> {
        self.frames.front().map(|(_, since)| *since)
    }

    /// The last sequence handed on.
    pub fn end(&self) -> Sequence {
        self.end
    }
}

impl Snapshot {
    /// The agent's part of the RPO: the age of the oldest change that is not durable at the target.
    pub fn rpo(&self, now: Instant) -> Duration {
        self.oldest.map_or(Duration::ZERO, |oldest| now.saturating_duration_since(oldest))
    }

    /// What goes on with a disk, and why it does not simply stream.
    pub fn state_of(
        &self,
        disk: &DiskSnapshot,
        link: &LinkState,
    ) -> (wire::DiskState, Option<String>) {
        let settled = disk.progress.is_some_and(|progress| progress.settled);
        let behind =
            if disk.was_whole { wire::DiskState::CatchUp } else { wire::DiskState::InitialSync };
        if self.by_operator {
            (wire::DiskState::Paused, Some("by-operator".to_owned()))
        } else if !link.connected || !self.logging {
            let refused = link.hindrance.as_ref().map(|_| "target-refuses");
            let why = refused.unwrap_or("target-unreachable");
            (wire::DiskState::Paused, Some(why.to_owned()))
        } else if link.hindrance.is_some() {
            (wire::DiskState::Paused, Some("target-full".to_owned()))
        } else if self.overloaded {
            (wire::DiskState::CatchUp, Some("line-too-slow".to_owned()))
        } else if settled {
            (wire::DiskState::Streaming, None)
        } else {
            (behind, Some(disk.why.clone()))
        }
    }

    /// The report to the target.
    pub fn report(&self, acknowledged: Sequence, link: &LinkState, now: Instant) -> wire::Report {
        let milliseconds = self.rpo(now).as_millis();
        wire::Report {
            rpo_milliseconds: u64::try_from(milliseconds).unwrap_or(u64::MAX),
            sequence: self.sealed,
            acknowledged,
            disks: self.disks.iter().map(|disk| self.report_of(disk, link)).collect(),
        }
    }

    fn report_of(&self, disk: &DiskSnapshot, link: &LinkState) -> wire::DiskReport {
        let (state, reason) = self.state_of(disk, link);
        let progress = disk.progress;
        wire::DiskReport {
            index: disk.index,
            state,
            reason: reason.unwrap_or_default(),
            bytes_remaining: disk.remaining(),
            eta_seconds: disk.eta(),
            churn_bytes_per_second: disk.written_per_second,
            sent_bytes_per_second: disk.logged_per_second,
            tracker: wire::TrackerReport {
                mode: if progress.is_some_and(|progress| progress.capturing) {
                    wire::TrackerMode::Data
                } else {
                    wire::TrackerMode::Bitmap
                },
                losses: progress.map_or(0, |progress| progress.lost),
                misses: progress.map_or(0, |progress| progress.missed),
                verdict: disk.verdict().as_str().to_owned(),
            },
        }
    }

    /// The disks as the status shows them.
    pub fn shown(
        &self,
        link: &LinkState,
        position: Option<shown::PositionStatus>,
    ) -> Vec<shown::DiskStatus> {
        let show = |disk: &DiskSnapshot| {
            let (state, reason) = self.state_of(disk, link);
            let report = self.report_of(disk, link);
            shown::DiskStatus {
                name: disk.name.clone(),
                state: match state {
                    wire::DiskState::InitialSync => shown::DiskState::InitialSync,
                    wire::DiskState::Streaming => shown::DiskState::Streaming,
                    wire::DiskState::CatchUp => shown::DiskState::CatchUp,
                    wire::DiskState::Verifying => shown::DiskState::Verifying,
                    wire::DiskState::Paused => shown::DiskState::Paused,
                },
                reason,
                bytes_remaining: report.bytes_remaining,
                eta_seconds: report.eta_seconds,
                churn_bytes_per_second: report.churn_bytes_per_second,
                sent_bytes_per_second: report.sent_bytes_per_second,
                tracker: Some(shown::TrackerStatus {
                    mode: match report.tracker.mode {
                        wire::TrackerMode::Bitmap => shown::TrackerMode::Bitmap,
                        wire::TrackerMode::Metadata => shown::TrackerMode::Metadata,
                        wire::TrackerMode::Data => shown::TrackerMode::Data,
                    },
                    losses: report.tracker.losses,
                    misses: report.tracker.misses,
                    verdict: disk.verdict(),
                }),
                position,
                replica_path: None,
                applied_point: None,
                last_point: None,
            }
        };
        self.disks.iter().map(show).collect()
    }
}

impl DiskSnapshot {
    fn remaining(&self) -> u64 {
        self.progress.map_or(self.size, |progress| progress.demand_bytes)
    }

    /// At the present rate of what is logged beyond what the machine writes.
    fn eta(&self) -> Option<u64> {
        let rate = self.logged_per_second.saturating_sub(self.written_per_second);
        (rate > 0).then(|| self.remaining() / rate)
    }

    fn verdict(&self) -> shown::TrackerVerdict {
        match self.progress {
            Some(progress) if progress.settled => shown::TrackerVerdict::Proven,
            _ => shown::TrackerVerdict::Suspect,
        }
    }
}
