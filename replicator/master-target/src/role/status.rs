//! A machine as the status shows it: what the agent last said, how long ago, and what the store
//! has.

use super::protected::{Live, Protected};
use crate::store::{
    DiskStatus as StoredDisk, JournalState, ListedPoint, LostPoints, MachineStatus as Stored,
    Placement, Point, Protection, harmed_disks,
};
use redoubt_control::chronicle::{DiskSight, MachineSight};
use redoubt_control::status::{
    DiskState, DiskStatus, MachineStatus, PlacementStatus, PointKind, PointState, PointStatus,
    PositionStatus, REPLICA_MISSING, TrackerMode, TrackerStatus, TrackerVerdict,
};
use redoubt_control::units::UtcTime;
use redoubt_log::{DiskIndex, DiskSet, Name};
use redoubt_protocol::message::{self as wire, DiskReport};
use std::path::Path;
use std::time::{Duration, Instant};

/// An agent reports every second: one that is silent for longer is not known to be well.
const SILENT_AFTER: Duration = Duration::from_secs(10);

/// The machine, with paths below the data directory.
pub(super) fn of(machine: &Protected, data: &Path) -> MachineStatus {
    let stored = machine.store.status();
    let history = History::of(machine);
    let live = machine.live();
    let now = Instant::now();
    let is_protected = stored.disks.iter().any(|disk| disk.protection.is_active());
    let rpo = rpo(&live, now).filter(|_| is_protected);
    let disks = stored.disks.iter().map(|disk| shown(disk, &stored, &history, &live, data, now));
    MachineStatus {
        id: machine.id.into(),
        name: machine.name.clone(),
        connected: live.connected.is_some(),
        reason: None,
        rpo_seconds: rpo.map(|rpo| rpo.as_secs_f64()),
        disks: disks.collect(),
    }
}

/// A machine's points, and those of them that are lost.
#[derive(Default)]
struct History {
    points: Vec<Point>,
    lost: Vec<LostPoints>,
}

impl History {
    fn of(machine: &Protected) -> Self {
        let points = machine.store.points();
        Self { points, lost: machine.store.lost_points() }
    }

    /// The newest point that is good for a disk.
    fn last(&self, disk: DiskIndex) -> Option<&Point> {
        let has = |point: &&Point| point.disks.contains(disk);
        let last = self.points.iter().rev().find(has);
        last.filter(|point| !harmed_disks(point, &self.lost).contains(disk))
    }
}

/// What of a disk's history is lost, with a reason code; as long as it is the same, the same words.
fn harm(disk: &StoredDisk, lost: &[LostPoints]) -> Option<String> {
    let lost = lost.iter().find(|lost| lost.disk == disk.index)?;
    let until = UtcTime::from_nanoseconds(lost.taken_at.0);
    Some(format!("points-lost: those up to {until}: {}", lost.why))
}

/// A device that waits for its disk.
pub(super) fn placement(waiting: &Placement) -> PlacementStatus {
    PlacementStatus {
        machine: name_of(&waiting.machine),
        disk: name_of(&waiting.disk),
        device: waiting.device.clone(),
    }
}

/// A name of the store's, as the socket shows it.
pub(super) fn name_of(stored: &str) -> Name {
    stored.parse().expect("names come from hellos and orders, where they were checked")
}

/// It grows from the agent's last word on, whoever else may have spoken since.
fn rpo(live: &Live, now: Instant) -> Option<Duration> {
    let said = live.said.as_ref()?;
    let then = Duration::from_millis(said.report.rpo_milliseconds);
    Some(then + now.saturating_duration_since(said.at))
}

fn shown(
    disk: &StoredDisk,
    stored: &Stored,
    history: &History,
    live: &Live,
    data: &Path,
    now: Instant,
) -> DiskStatus {
    let report = live.said.as_ref().map(|said| &said.report);
    let said = said_of(disk, live);
    // Of what was said before the disk has ended, or the agent fell silent, nothing goes on.
    let fresh = said.filter(|_| speaks(live, now) && disk.protection.is_active());
    let (state, reason) = goes_on(disk, stored, live, now);
    let moves = state != DiskState::Paused;
    let last = history.last(disk.index);
    let is_there = !live.missing_replicas.contains_key(&disk.index);
    let applied = last.filter(|_| !disk.ahead_of_point && is_there);
    DiskStatus {
        name: name_of(&disk.name),
        state,
        reason,
        bytes_remaining: remaining(said, disk, moves),
        eta_seconds: said.filter(|_| moves).and_then(|said| said.eta_seconds),
        churn_bytes_per_second: fresh.map_or(0, |said| said.churn_bytes_per_second),
        sent_bytes_per_second: fresh.map_or(0, |said| said.sent_bytes_per_second),
        tracker: fresh.map(tracker_of),
        position: Some(PositionStatus {
            generation: stored.generation.into(),
            incarnation: stored.incarnation.0,
            sequence: report
                .map_or(stored.durable.0, |report| report.sequence.0.max(stored.durable.0)),
            acknowledged: stored.durable.0,
        }),
        replica_path: Some(data.join(&disk.replica)),
        applied_point: applied.map(|point| point.id.into()),
        last_point: last.map(|point| point.id.into()),
        harm: harm(disk, &history.lost),
    }
}

/// The machine as the audit log follows it.
pub(super) fn seen(machine: &Protected, now: Instant) -> MachineSight {
    let stored = machine.store.status();
    let lost = machine.store.lost_points();
    let live = machine.live();
    let see = |disk: &StoredDisk| {
        let (state, reason) = goes_on(disk, &stored, &live, now);
        let tracker = said_of(disk, &live).map(tracker_of);
        DiskSight {
            name: name_of(&disk.name),
            state,
            reason,
            mode: tracker.map(|tracker| tracker.mode),
            losses: tracker.map_or(0, |tracker| tracker.losses),
            misses: tracker.map_or(0, |tracker| tracker.misses),
            // The agent's audit log has them.
            gaps: (0, String::new()),
            harm: harm(disk, &lost),
        }
    };
    MachineSight {
        name: machine.name.clone(),
        sessions: live.sessions,
        connected: live.connected.is_some(),
        disks: stored.disks.iter().map(see).collect(),
    }
}

fn said_of<'a>(disk: &StoredDisk, live: &'a Live) -> Option<&'a DiskReport> {
    let said = live.said.as_ref()?;
    said.report.disks.iter().find(|said| said.index == disk.index)
}

/// The state of a disk, and why it is not simply streaming.
fn goes_on(
    disk: &StoredDisk,
    stored: &Stored,
    live: &Live,
    now: Instant,
) -> (DiskState, Option<String>) {
    match &stored.journal {
        _ if !disk.protection.is_active() => {
            let by_agent = disk.protection == Protection::EndedByAgent;
            let reason = if by_agent { "unprotected-by-agent" } else { "unprotected" };
            (DiskState::Paused, Some(reason.to_owned()))
        }
        JournalState::Failed(why) => (DiskState::Paused, Some(format!("journal-failed: {why}"))),
        JournalState::Ready | JournalState::Full => {
            let still = standstill(disk.index, live);
            let is_missing = live.missing_replicas.contains_key(&disk.index);
            let (state, reason) = state_of(said_of(disk, live), live, now);
            match state {
                _ if is_missing => (DiskState::Paused, still),
                DiskState::Paused => (state, reason.or(still)),
                // The agent knows of its log; that it comes to the replica disks as well is known
                // here.
                _ if still.is_some() => (DiskState::Paused, still),
                _ => (state, reason),
            }
        }
    }
}

/// Why the replica of a disk is not brought forward, with a reason code. There is one log of all
/// disks and one position up to which it is applied: where one disk cannot follow, none does.
pub(super) fn standstill(disk: DiskIndex, live: &Live) -> Option<String> {
    let missing = &live.missing_replicas;
    let own = missing.get(&disk).map(|what| format!("{REPLICA_MISSING}: {what}"));
    let of_another = || missing.values().next().map(|what| format!("apply-waits: {what}"));
    let failed = || live.apply_error.as_ref().map(|error| format!("apply-failed: {error}"));
    own.or_else(of_another).or_else(failed)
}

/// What the agent says while the disk goes on, and else what it said last; but nothing is left only
/// of a disk that is whole.
fn remaining(said: Option<&DiskReport>, disk: &StoredDisk, moves: bool) -> u64 {
    let last = said.map(|said| said.bytes_remaining);
    match last.filter(|last| moves || *last > 0) {
        Some(last) => last,
        None if disk.consistent => 0,
        None => disk.size,
    }
}

/// What is not proven to go on does not go on.
fn state_of(said: Option<&DiskReport>, live: &Live, now: Instant) -> (DiskState, Option<String>) {
    if live.full.is_some() {
        return (DiskState::Paused, Some("target-full".to_owned()));
    }
    let Some(said) = said.filter(|_| speaks(live, now)) else {
        return (DiskState::Paused, Some("agent-silent".to_owned()));
    };
    let state = match said.state {
        wire::DiskState::InitialSync => DiskState::InitialSync,
        wire::DiskState::Streaming => DiskState::Streaming,
        wire::DiskState::CatchUp => DiskState::CatchUp,
        wire::DiskState::Verifying => DiskState::Verifying,
        wire::DiskState::Paused => DiskState::Paused,
    };
    (state, (!said.reason.is_empty()).then(|| said.reason.clone()))
}

/// Whether the agent has said lately, in this session, how it stands: what it said before may be of
/// another log.
fn speaks(live: &Live, now: Instant) -> bool {
    live.said.as_ref().zip(live.connected).is_some_and(|(said, since)| {
        since <= said.at && now.saturating_duration_since(said.at) <= SILENT_AFTER
    })
}

fn tracker_of(said: &DiskReport) -> TrackerStatus {
    let tracker = &said.tracker;
    TrackerStatus {
        mode: match tracker.mode {
            wire::TrackerMode::Bitmap => TrackerMode::Bitmap,
            wire::TrackerMode::Metadata => TrackerMode::Metadata,
            wire::TrackerMode::Data => TrackerMode::Data,
        },
        losses: tracker.losses,
        misses: tracker.misses,
        verdict: match tracker.verdict.as_str() {
            "proven" => TrackerVerdict::Proven,
            "unverified" => TrackerVerdict::Unverified,
            _ => TrackerVerdict::Suspect,
        },
    }
}

/// A machine's points, oldest first.
pub(super) fn points_of(machine: &Protected) -> Vec<PointStatus> {
    let disks = machine.store.status().disks;
    let lost = machine.store.lost_points();
    let named = |set: DiskSet| {
        let named = disks.iter().filter(|disk| set.contains(disk.index));
        named.map(|disk| name_of(&disk.name)).collect()
    };
    let show = |listed: &ListedPoint| PointStatus {
        suspect: listed.suspicion.as_ref().map(|suspicion| machine.reason_of(suspicion)),
        ..shown_point(listed, harmed_disks(&listed.point, &lost), named)
    };
    machine.store.listed_points().iter().map(show).collect()
}

fn shown_point(
    listed: &ListedPoint,
    harmed: DiskSet,
    named: impl Fn(DiskSet) -> Vec<Name>,
) -> PointStatus {
    let point = &listed.point;
    PointStatus {
        id: point.id.into(),
        taken_at: UtcTime::from_nanoseconds(point.taken_at.0),
        kind: match point.kind {
            redoubt_log::PointKind::CrashConsistent => PointKind::CrashConsistent,
            redoubt_log::PointKind::ApplicationConsistent => PointKind::ApplicationConsistent,
        },
        label: (!point.label.is_empty()).then(|| point.label.clone()),
        sequence: point.sequence.0,
        disks: named(DiskSet(point.disks.0 & !harmed.0)),
        complete: point.complete && harmed.is_empty(),
        proven: listed.is_proven(),
        harmed_disks: named(harmed),
        state: if listed.waits { PointState::Waiting } else { PointState::Applied },
        suspect: None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::protected::Said;
    use super::*;
    use redoubt_log::{Generation, Incarnation, MachineId, RoleEpoch, Sequence};
    use redoubt_protocol::PauseWord;
    use redoubt_protocol::message::{Report, TrackerReport};
    use std::collections::BTreeMap;

    const SIZE: u64 = 1 << 30;

    fn stored(consistent: bool) -> Stored {
        Stored {
            machine: MachineId([1; 16]),
            name: "m".to_owned(),
            generation: Generation([2; 16]),
            incarnation: Incarnation(1),
            role_epoch: RoleEpoch(0),
            durable: Sequence(9),
            applied: Sequence(9),
            applying: None,
            pending_bytes: 0,
            last_point: None,
            journal: JournalState::Ready,
            pause: PauseWord::default(),
            disks: vec![StoredDisk {
                index: DiskIndex(0),
                name: "sda".to_owned(),
                size: SIZE,
                has_data: true,
                consistent,
                ahead_of_point: false,
                protection: Protection::Active,
                replica: "disks/0".into(),
            }],
        }
    }

    fn said(at: Instant, state: wire::DiskState, bytes_remaining: u64) -> Said {
        let disk = DiskReport {
            index: DiskIndex(0),
            state,
            reason: String::new(),
            bytes_remaining,
            eta_seconds: Some(5),
            churn_bytes_per_second: 0,
            sent_bytes_per_second: 0,
            tracker: TrackerReport {
                mode: wire::TrackerMode::Data,
                losses: 0,
                misses: 0,
                verdict: "proven".to_owned(),
            },
        };
        let sequence = Sequence(9);
        let disks = vec![disk];
        let report = Report { rpo_milliseconds: 200, sequence, acknowledged: sequence, disks };
        Said { at, report }
    }

    /// What is shown of the one disk, `after` the beginning.
    fn show(stored: &Stored, live: &Live, now: Instant) -> DiskStatus {
        shown(&stored.disks[0], stored, &History::default(), live, Path::new("/data"), now)
    }

    #[test]
    fn an_agent_that_is_stopped_is_silent_soon_and_its_rpo_grows() {
        let began = Instant::now();
        let said = said(began, wire::DiskState::Streaming, 0);
        let mut live = Live { connected: Some(began), said: Some(said), ..Live::default() };
        let seconds = Duration::from_secs;
        for (after, silent) in [(0, false), (10, false), (11, true), (3600, true)] {
            let now = began + seconds(after);
            let disk = show(&stored(true), &live, now);
            let state = if silent { DiskState::Paused } else { DiskState::Streaming };
            assert_eq!((disk.state, after), (state, after));
            assert_eq!(disk.reason, silent.then(|| "agent-silent".to_owned()));
            assert_eq!(rpo(&live, now), Some(seconds(after) + Duration::from_millis(200)));
        }
        // A connection that is lost says so at once; the RPO still grows from the last word on,
        // also when somebody connects and has not reported yet.
        live.connected = None;
        assert_eq!(show(&stored(true), &live, began).state, DiskState::Paused);
        let again = began + seconds(40);
        live.connected = Some(again);
        assert_eq!(show(&stored(true), &live, again).reason.as_deref(), Some("agent-silent"));
        assert_eq!(rpo(&live, again), Some(seconds(40) + Duration::from_millis(200)));
        assert_eq!(rpo(&Live::default(), again), None);
    }

    #[test]
    fn a_disk_whose_replica_is_missing_does_not_stream_and_is_not_applied() {
        let now = Instant::now();
        let said = Some(said(now, wire::DiskState::Streaming, 0));
        let mut live = Live { connected: Some(now), said, ..Live::default() };
        live.missing_replicas.insert(DiskIndex(0), "disks/0: is not there".to_owned());
        live.apply_error = Some("disks/0: is not there".to_owned());
        let disk = show(&stored(true), &live, now);
        assert_eq!(disk.state, DiskState::Paused);
        assert_eq!(disk.reason.as_deref(), Some("replica-missing: disks/0: is not there"));
        assert_eq!(disk.applied_point, None);
        // The others tell for which disk they wait.
        live.missing_replicas =
            BTreeMap::from([(DiskIndex(1), "disks/1: is not there".to_owned())]);
        let disk = show(&stored(true), &live, now);
        assert_eq!(disk.state, DiskState::Paused);
        assert_eq!(disk.reason.as_deref(), Some("apply-waits: disks/1: is not there"));
        // What else stops the apply is a reason with a code.
        live.missing_replicas.clear();
        let disk = show(&stored(true), &live, now);
        assert_eq!(disk.reason.as_deref(), Some("apply-failed: disks/0: is not there"));
        assert_eq!(disk.state, DiskState::Paused, "it does not come to its replica");
        live.apply_error = None;
        assert_eq!(show(&stored(true), &live, now).state, DiskState::Streaming);
    }

    #[test]
    fn what_is_over_has_no_rates_and_is_not_proven() {
        let began = Instant::now();
        let mut said = said(began, wire::DiskState::Streaming, 0);
        let rates = &mut said.report.disks[0];
        (rates.churn_bytes_per_second, rates.sent_bytes_per_second) = (7, 8);
        let mut live = Live { connected: Some(began), said: Some(said), ..Live::default() };
        let shown = |live: &Live, stored: &Stored, now| {
            let disk = show(stored, live, now);
            let rates = (disk.churn_bytes_per_second, disk.sent_bytes_per_second);
            (rates, disk.tracker.is_some())
        };
        assert_eq!(shown(&live, &stored(true), began), ((7, 8), true));
        let silent = began + Duration::from_secs(11);
        assert_eq!(shown(&live, &stored(true), silent), ((0, 0), false));
        for protection in [Protection::EndedByAgent, Protection::EndedByTarget] {
            let mut ended = stored(true);
            ended.disks[0].protection = protection;
            assert_eq!(shown(&live, &ended, began), ((0, 0), false));
        }
        live.connected = None;
        assert_eq!(shown(&live, &stored(true), began), ((0, 0), false));
    }

    #[test]
    fn nothing_remains_only_of_a_disk_that_is_whole_or_whose_agent_says_so_now() {
        let now = Instant::now();
        let remaining = |live: &Live, consistent: bool| {
            let disk = show(&stored(consistent), live, now);
            (disk.bytes_remaining, disk.eta_seconds)
        };
        // Not heard of since the target started.
        assert_eq!(remaining(&Live::default(), false), (SIZE, None));
        assert_eq!(remaining(&Live::default(), true), (0, None));
        for (state, said_bytes) in [
            (wire::DiskState::InitialSync, 4096),
            (wire::DiskState::InitialSync, 0),
            (wire::DiskState::Streaming, 0),
        ] {
            let spoke = |connected| Live {
                connected,
                said: Some(said(now, state, said_bytes)),
                ..Live::default()
            };
            assert_eq!(remaining(&spoke(Some(now)), false), (said_bytes, Some(5)));
            // Silent: the last word, but none that says that all is well.
            let last = if said_bytes == 0 { SIZE } else { said_bytes };
            assert_eq!(remaining(&spoke(None), false), (last, None));
            assert_eq!(remaining(&spoke(None), true), (said_bytes, None));
        }
        // An agent that has no log yet knows of nothing that remains.
        let said = said(now, wire::DiskState::Paused, 0);
        let live = Live { connected: Some(now), said: Some(said), ..Live::default() };
        assert_eq!(remaining(&live, false), (SIZE, None));
    }
}
