//! How the agent stands, as its threads share it: the owner of the tracker writes, the session and
//! the socket read.

use redoubt_control::chronicle::{DiskSight, MachineSight};
use redoubt_control::status as shown;
use redoubt_log::{DiskIndex, Name, Sequence};
use redoubt_protocol::message as wire;
use redoubt_tracker::{CaptureMode, DiskProgress};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How old a snapshot may be before nothing that it says of a disk is shown as good: its maker runs
/// every few milliseconds, or something is wrong with it.
const STALE_AFTER: Duration = Duration::from_secs(5);

/// One disk.
#[derive(Clone, Debug)]
pub(crate) struct DiskSnapshot {
    pub index: DiskIndex,
    pub name: Name,
    /// Why nobody protects it in this run.
    pub absent: Option<String>,
    /// Whether the order of its events was proven when the tracker was attached.
    pub order_proven: bool,
    /// Submissions and completions that were missed, and runs of the programs that were skipped.
    pub misses: u64,
    /// Gaps of its log in this run.
    pub gaps: u64,
    pub progress: Option<DiskProgress>,
    pub was_whole: bool,
    pub why: String,
    pub written_per_second: u64,
    pub logged_per_second: u64,
    pub size: u64,
    /// What has to be read of it before it streams, where its writes are only marked.
    pub to_come: Option<u64>,
}

/// The agent.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// When it was made.
    pub taken: Instant,
    /// Nothing that is logged and not acknowledged was written before this.
    pub oldest: Option<Instant>,
    /// Everything that was written before this is logged.
    pub known: Instant,
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
        let now = Instant::now();
        let nothing = Snapshot {
            taken: now,
            oldest: None,
            known: now,
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
    /// Disks whose replicas the target does not bring forward, and why.
    pub standstill: BTreeMap<DiskIndex, String>,
    /// Whether the target has let this machine go.
    pub removed: bool,
    /// Sessions that stood in this run.
    pub sessions: u64,
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
        let mut link = self.lock();
        let sessions = link.sessions + 1;
        let connected = true;
        *link = LinkState { connected, hindrance: full, sessions, ..LinkState::default() };
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

    /// The target has let this machine go; whether that is news.
    pub fn removed(&self) -> bool {
        !std::mem::replace(&mut self.lock().removed, true)
    }

    /// Of these disks, and of no others, the target does not bring the replicas forward.
    pub fn standstill(&self, disks: Vec<wire::DiskStandstill>) {
        let disks = disks.into_iter().map(|disk| (disk.index, disk.reason));
        self.lock().standstill = disks.collect();
    }

    /// The target has no room, or has it again.
    pub fn full(&self, why: Option<String>) {
        self.lock().hindrance = why;
    }

    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Frames sealed and not acknowledged: the last sequence of each, and a time before which nothing
/// in it was written.
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

    /// After which time all was written that is not durable.
    pub fn oldest(&self) -> Option<Instant> {
        self.frames.front().map(|(_, since)| *since)
    }

    /// The last sequence handed on.
    pub fn end(&self) -> Sequence {
        self.end
    }
}

impl Snapshot {
    /// The agent's part of the RPO: the age of the oldest change that may not be durable at the
    /// target. What was written since the log was last known to be complete is not known to be.
    pub fn rpo(&self, now: Instant) -> Duration {
        let since = self.oldest.map_or(self.known, |oldest| oldest.min(self.known));
        now.saturating_duration_since(since)
    }

    /// Whether what it says may still be so.
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.taken) <= STALE_AFTER
    }

    /// Whether the tracker can prove that it missed nothing: not from what nobody has renewed.
    fn verdict(&self, disk: &DiskSnapshot, now: Instant) -> shown::TrackerVerdict {
        match disk.verdict() {
            shown::TrackerVerdict::Proven if !self.is_fresh(now) => shown::TrackerVerdict::Suspect,
            verdict => verdict,
        }
    }

    /// What goes on with a disk, and why it does not simply stream.
    pub fn state_of(
        &self,
        disk: &DiskSnapshot,
        link: &LinkState,
        now: Instant,
    ) -> (wire::DiskState, Option<String>) {
        let settled = disk.progress.is_some_and(|progress| progress.settled);
        let behind =
            if disk.was_whole { wire::DiskState::CatchUp } else { wire::DiskState::InitialSync };
        if link.removed {
            (wire::DiskState::Paused, Some("unprotected".to_owned()))
        } else if let Some(why) = &disk.absent {
            (wire::DiskState::Paused, Some(why.clone()))
        } else if !self.is_fresh(now) {
            (wire::DiskState::Paused, Some("tracker-stalled".to_owned()))
        } else if self.by_operator {
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

    /// The same with what the target has told of its replica. It is not reported back: there it is
    /// known, and known sooner.
    fn told_state_of(
        &self,
        disk: &DiskSnapshot,
        link: &LinkState,
        now: Instant,
    ) -> (wire::DiskState, Option<String>) {
        let (state, reason) = self.state_of(disk, link, now);
        match link.standstill.get(&disk.index).filter(|_| state != wire::DiskState::Paused) {
            Some(why) => (wire::DiskState::Paused, Some(why.clone())),
            None => (state, reason),
        }
    }

    /// The report to the target.
    pub fn report(&self, acknowledged: Sequence, link: &LinkState, now: Instant) -> wire::Report {
        let milliseconds = self.rpo(now).as_millis();
        wire::Report {
            rpo_milliseconds: u64::try_from(milliseconds).unwrap_or(u64::MAX),
            sequence: self.sealed,
            acknowledged,
            disks: self.disks.iter().map(|disk| self.report_of(disk, link, now)).collect(),
        }
    }

    fn report_of(&self, disk: &DiskSnapshot, link: &LinkState, now: Instant) -> wire::DiskReport {
        let (state, reason) = self.state_of(disk, link, now);
        let progress = disk.progress;
        let is_fresh = self.is_fresh(now) && !link.removed;
        let sends = is_fresh && link.connected;
        wire::DiskReport {
            index: disk.index,
            state,
            reason: reason.unwrap_or_default(),
            bytes_remaining: disk.remaining(),
            eta_seconds: disk.eta().filter(|_| sends),
            churn_bytes_per_second: if is_fresh { disk.written_per_second } else { 0 },
            sent_bytes_per_second: if sends { disk.logged_per_second } else { 0 },
            tracker: wire::TrackerReport {
                mode: match progress.map_or(CaptureMode::Bitmap, |progress| progress.mode) {
                    CaptureMode::Bitmap => wire::TrackerMode::Bitmap,
                    CaptureMode::Metadata => wire::TrackerMode::Metadata,
                    CaptureMode::Data => wire::TrackerMode::Data,
                },
                losses: progress.map_or(0, |progress| progress.lost),
                misses: disk.misses,
                verdict: self.verdict(disk, now).as_str().to_owned(),
            },
        }
    }

    /// The machine as its audit log follows it.
    pub fn seen(&self, machine: &Name, link: &LinkState, now: Instant) -> MachineSight {
        let disks = self.shown(link, None, now).into_iter().zip(&self.disks);
        let see = |(shown, disk): (shown::DiskStatus, &DiskSnapshot)| DiskSight {
            name: shown.name,
            state: shown.state,
            reason: shown.reason,
            mode: shown.tracker.map(|tracker| tracker.mode),
            losses: shown.tracker.map_or(0, |tracker| tracker.losses),
            misses: disk.misses,
            gaps: (disk.gaps, disk.why.clone()),
            harm: None,
        };
        MachineSight {
            name: machine.clone(),
            sessions: link.sessions,
            connected: link.connected,
            disks: disks.map(see).collect(),
        }
    }

    /// The disks as the status shows them.
    pub fn shown(
        &self,
        link: &LinkState,
        position: Option<shown::PositionStatus>,
        now: Instant,
    ) -> Vec<shown::DiskStatus> {
        let show = |disk: &DiskSnapshot| {
            let (state, reason) = self.told_state_of(disk, link, now);
            let report = self.report_of(disk, link, now);
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
                    verdict: self.verdict(disk, now),
                }),
                position,
                replica_path: None,
                applied_point: None,
                last_point: None,
                harm: None,
            }
        };
        self.disks.iter().map(show).collect()
    }
}

impl DiskSnapshot {
    fn remaining(&self) -> u64 {
        let demand = self.progress.map_or(self.size, |progress| progress.demand_bytes);
        self.to_come.unwrap_or(demand)
    }

    /// At the present rate of what is logged beyond what the machine writes.
    fn eta(&self) -> Option<u64> {
        let rate = self.logged_per_second.saturating_sub(self.written_per_second);
        (rate > 0).then(|| self.remaining() / rate)
    }

    fn verdict(&self) -> shown::TrackerVerdict {
        match self.progress {
            _ if self.absent.is_some() || !self.order_proven => shown::TrackerVerdict::Unverified,
            Some(progress) if progress.settled => shown::TrackerVerdict::Proven,
            _ => shown::TrackerVerdict::Suspect,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(mode: CaptureMode, settled: bool) -> DiskProgress {
        DiskProgress {
            demand_bytes: 0,
            reads: 0,
            in_flight: 0,
            settled,
            mode,
            lost: 2,
            missed: 3,
            unmarked: 1,
            gap: None,
        }
    }

    fn disk(mode: CaptureMode) -> DiskSnapshot {
        DiskSnapshot {
            index: DiskIndex(0),
            name: "db".parse().unwrap(),
            absent: None,
            order_proven: true,
            misses: 4,
            gaps: 1,
            progress: Some(progress(mode, true)),
            was_whole: true,
            why: String::new(),
            written_per_second: 0,
            logged_per_second: 0,
            size: 1 << 20,
            to_come: None,
        }
    }

    fn snapshot(taken: Instant, disks: Vec<DiskSnapshot>) -> Snapshot {
        Snapshot {
            taken,
            oldest: None,
            known: taken,
            logging: true,
            by_operator: false,
            overloaded: false,
            sealed: Sequence(1),
            disks,
        }
    }

    fn link() -> LinkState {
        LinkState { connected: true, sessions: 1, ..LinkState::default() }
    }

    #[test]
    fn the_rpo_of_a_snapshot_that_nobody_renews_grows() {
        let taken = Instant::now();
        let mut idle = snapshot(taken, vec![disk(CaptureMode::Data)]);
        assert_eq!(idle.rpo(taken), Duration::ZERO);
        assert_eq!(idle.rpo(taken + Duration::from_secs(3)), Duration::from_secs(3));
        // The ring was not drained for a while before.
        idle.known = taken - Duration::from_secs(2);
        assert_eq!(idle.rpo(taken), Duration::from_secs(2));
        idle.oldest = Some(taken - Duration::from_secs(9));
        let report = idle.report(Sequence(1), &link(), taken + Duration::from_secs(1));
        assert_eq!(report.rpo_milliseconds, 10_000);
    }

    #[test]
    fn a_snapshot_that_nobody_renews_shows_no_disk_as_good() {
        let taken = Instant::now();
        let snapshot = snapshot(taken, vec![disk(CaptureMode::Data)]);
        let state = |after| snapshot.state_of(&snapshot.disks[0], &link(), taken + after);
        assert_eq!(state(STALE_AFTER), (wire::DiskState::Streaming, None));
        let stalled = (wire::DiskState::Paused, Some("tracker-stalled".to_owned()));
        assert_eq!(state(STALE_AFTER + Duration::from_millis(1)), stalled);
    }

    #[test]
    fn rates_end_with_what_they_are_of() {
        let taken = Instant::now();
        let busy =
            DiskSnapshot { written_per_second: 5, logged_per_second: 9, ..disk(CaptureMode::Data) };
        let snapshot = snapshot(taken, vec![busy]);
        let told = |link: &LinkState, after| {
            let disk = snapshot.shown(link, None, taken + after).remove(0);
            let verdict = disk.tracker.unwrap().verdict;
            (disk.churn_bytes_per_second, disk.sent_bytes_per_second, disk.eta_seconds, verdict)
        };
        use shown::TrackerVerdict::{Proven, Suspect};
        assert_eq!(told(&link(), Duration::ZERO), (5, 9, Some(0), Proven));
        // The machine writes on, and nothing is sent.
        let cut = LinkState { connected: false, ..link() };
        assert_eq!(told(&cut, Duration::ZERO), (5, 0, None, Proven));
        let removed = LinkState { removed: true, ..link() };
        assert_eq!(told(&removed, Duration::ZERO), (0, 0, None, Proven));
        assert_eq!(told(&link(), STALE_AFTER * 2), (0, 0, None, Suspect));
    }

    #[test]
    fn the_mode_is_what_the_capture_does() {
        let taken = Instant::now();
        for (mode, wire, shown) in [
            (CaptureMode::Bitmap, wire::TrackerMode::Bitmap, "bitmap"),
            (CaptureMode::Metadata, wire::TrackerMode::Metadata, "metadata"),
            (CaptureMode::Data, wire::TrackerMode::Data, "data"),
        ] {
            let snapshot = snapshot(taken, vec![disk(mode)]);
            let tracker = &snapshot.report(Sequence(1), &link(), taken).disks[0].tracker;
            assert_eq!((tracker.mode, tracker.losses, tracker.misses), (wire, 2, 4));
            let status = snapshot.shown(&link(), None, taken).remove(0).tracker.unwrap();
            assert_eq!((status.mode.as_str(), status.misses), (shown, 4));
        }
    }

    #[test]
    fn what_is_not_proven_is_not_called_so() {
        assert_eq!(disk(CaptureMode::Data).verdict(), shown::TrackerVerdict::Proven);
        let unsettled = Some(progress(CaptureMode::Data, false));
        let unsettled = DiskSnapshot { progress: unsettled, ..disk(CaptureMode::Data) };
        assert_eq!(unsettled.verdict(), shown::TrackerVerdict::Suspect);
        let unordered = DiskSnapshot { order_proven: false, ..disk(CaptureMode::Metadata) };
        assert_eq!(unordered.verdict(), shown::TrackerVerdict::Unverified);
    }

    #[test]
    fn a_disk_whose_replica_stands_still_says_so_and_reports_what_the_agent_knows() {
        let taken = Instant::now();
        let snapshot = snapshot(taken, vec![disk(CaptureMode::Data)]);
        for why in ["replica-missing: x", "apply-waits: x"] {
            let standstill = BTreeMap::from([(DiskIndex(0), why.to_owned())]);
            let mut link = LinkState { standstill, ..link() };
            let status = snapshot.shown(&link, None, taken).remove(0);
            let paused = (shown::DiskState::Paused, Some(why));
            assert_eq!((status.state, status.reason.as_deref()), paused);
            let report = snapshot.report(Sequence(1), &link, taken).disks.remove(0);
            assert_eq!((report.state, report.reason.as_str()), (wire::DiskState::Streaming, ""));
            link.connected = false;
            let status = snapshot.shown(&link, None, taken).remove(0);
            assert_eq!(status.reason.as_deref(), Some("target-unreachable"));
        }
    }

    #[test]
    fn an_absent_disk_is_paused_whatever_else_goes_on() {
        let taken = Instant::now();
        let why = "device-missing: /dev/sdz".to_owned();
        let absent =
            DiskSnapshot { absent: Some(why.clone()), progress: None, ..disk(CaptureMode::Data) };
        let snapshot = snapshot(taken, vec![disk(CaptureMode::Data), absent]);
        let status = snapshot.shown(&link(), None, taken);
        assert_eq!(status[0].state, shown::DiskState::Streaming);
        assert_eq!(
            (status[1].state, status[1].reason.as_ref()),
            (shown::DiskState::Paused, Some(&why))
        );
        assert_eq!(status[1].bytes_remaining, 1 << 20);
        assert_eq!(status[1].tracker.unwrap().verdict, shown::TrackerVerdict::Unverified);
    }
}
