//! A machine as the status shows it: what the agent last said, how long ago, and what the store
//! has.

use super::protected::{Live, Protected};
use crate::store::{
    DiskStatus as StoredDisk, JournalState, MachineStatus as Stored, Point, Protection,
};
use redoubt_control::status::{
    DiskState, DiskStatus, MachineStatus, PointKind, PointStatus, PositionStatus, TrackerMode,
    TrackerStatus, TrackerVerdict,
};
use redoubt_control::units::UtcTime;
use redoubt_log::Name;
use redoubt_protocol::message::{self as wire, DiskReport};
use std::path::Path;
use std::time::{Duration, Instant};

/// An agent reports every second: one that is silent for longer is not known to be well.
const SILENT_AFTER: Duration = Duration::from_secs(10);

/// The machine, with paths below the data directory.
pub(super) fn of(machine: &Protected, data: &Path) -> MachineStatus {
    let stored = machine.store.status();
    let points = machine.store.points();
    let live = machine.live();
    let now = Instant::now();
    let silence = live.heard.map(|heard| now.saturating_duration_since(heard));
    let is_protected = stored.disks.iter().any(|disk| disk.protection.is_active());
    let rpo = live
        .report
        .as_ref()
        .zip(silence)
        .filter(|_| is_protected)
        .map(|(report, silence)| Duration::from_millis(report.rpo_milliseconds) + silence);
    let disks = stored.disks.iter().map(|disk| shown(disk, &stored, &points, &live, data));
    MachineStatus {
        id: machine.id.into(),
        name: machine.name.clone(),
        connected: live.connected,
        rpo_seconds: rpo.map(|rpo| rpo.as_secs_f64()),
        disks: disks.collect(),
    }
}

/// A name of the store's, as the socket shows it.
pub(super) fn name_of(stored: &str) -> Name {
    stored.parse().expect("the store's names come from hellos, where they were checked")
}

fn shown(
    disk: &StoredDisk,
    stored: &Stored,
    points: &[Point],
    live: &Live,
    data: &Path,
) -> DiskStatus {
    let report = live.report.as_ref();
    let said = report.and_then(|report| report.disks.iter().find(|said| said.index == disk.index));
    let silent = live.heard.is_none_or(|heard| heard.elapsed() > SILENT_AFTER);
    let (state, reason) = match &stored.journal {
        _ if !disk.protection.is_active() => {
            let by_agent = disk.protection == Protection::EndedByAgent;
            let reason = if by_agent { "unprotected-by-agent" } else { "unprotected" };
            (DiskState::Paused, Some(reason.to_owned()))
        }
        JournalState::Failed(why) => (DiskState::Paused, Some(format!("journal-failed: {why}"))),
        JournalState::Ready | JournalState::Full => state_of(said, live, silent),
    };
    let good = |point: &&Point| point.disks.contains(disk.index);
    let last = points.iter().rev().find(good);
    let applied = last.filter(|_| !disk.ahead_of_point);
    DiskStatus {
        name: name_of(&disk.name),
        state,
        reason,
        bytes_remaining: said.map_or(
            if disk.consistent || !disk.protection.is_active() { 0 } else { disk.size },
            |said| said.bytes_remaining,
        ),
        eta_seconds: said.and_then(|said| said.eta_seconds),
        churn_bytes_per_second: said.map_or(0, |said| said.churn_bytes_per_second),
        sent_bytes_per_second: said.map_or(0, |said| said.sent_bytes_per_second),
        tracker: said.map(tracker_of),
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
    }
}

/// What is not proven to go on does not go on.
fn state_of(said: Option<&DiskReport>, live: &Live, silent: bool) -> (DiskState, Option<String>) {
    if live.full.is_some() {
        return (DiskState::Paused, Some("target-full".to_owned()));
    }
    let Some(said) = said.filter(|_| live.connected && !silent) else {
        return (DiskState::Paused, Some("agent-silent".to_owned()));
    };
    let state = match said.state {
        wire::DiskState::InitialSync => DiskState::InitialSync,
        wire::DiskState::Streaming => DiskState::Streaming,
        wire::DiskState::CatchUp => DiskState::CatchUp,
        wire::DiskState::Verifying => DiskState::Verifying,
        wire::DiskState::Paused => DiskState::Paused,
    };
    let reason = (!said.reason.is_empty()).then(|| said.reason.clone());
    (state, reason.or(live.apply_error.clone()))
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
    let show = |point: Point| PointStatus {
        id: point.id.into(),
        taken_at: UtcTime::from_nanoseconds(point.taken_at.0),
        kind: match point.kind {
            redoubt_log::PointKind::CrashConsistent => PointKind::CrashConsistent,
            redoubt_log::PointKind::ApplicationConsistent => PointKind::ApplicationConsistent,
        },
        label: (!point.label.is_empty()).then(|| point.label.clone()),
        sequence: point.sequence.0,
        disks: disks
            .iter()
            .filter(|disk| point.disks.contains(disk.index))
            .map(|disk| name_of(&disk.name))
            .collect(),
        complete: point.complete,
        proven: point.proven,
    };
    machine.store.points().into_iter().map(show).collect()
}
