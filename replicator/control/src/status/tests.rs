//! Freezes the JSON that other programs build on.

use super::*;
use serde_json::json;

fn id(digit: u8) -> Uuid {
    Uuid::from_bytes([digit; 16])
}

fn status() -> RoleStatus {
    let disk = DiskStatus {
        name: "sda".parse().unwrap(),
        state: DiskState::CatchUp,
        reason: Some("ring-overflow".into()),
        bytes_remaining: 4096,
        eta_seconds: Some(3),
        churn_bytes_per_second: 20_000_000,
        sent_bytes_per_second: 25_000_000,
        tracker: Some(TrackerStatus {
            mode: TrackerMode::Data,
            losses: 2,
            misses: 1,
            verdict: TrackerVerdict::Suspect,
        }),
        position: Some(PositionStatus {
            generation: id(1),
            incarnation: 2,
            sequence: 900,
            acknowledged: 880,
        }),
        replica_path: Some("/var/lib/redoubt/target/machines/x/disks/0".into()),
        applied_point: Some(id(3)),
        last_point: Some(id(4)),
        harm: None,
    };
    RoleStatus {
        role: Role::Target,
        machines: vec![MachineStatus {
            id: id(5),
            name: "web-01".parse().unwrap(),
            connected: true,
            reason: None,
            rpo_seconds: Some(0.75),
            disks: vec![disk],
        }],
        placements: vec![PlacementStatus {
            machine: "web-02".parse().unwrap(),
            disk: "sdb".parse().unwrap(),
            device: "/dev/disk/by-id/x".into(),
        }],
    }
}

#[test]
fn status_is_frozen() {
    let golden = json!({
        "role": "target",
        "machines": [{
            "id": "05050505-0505-0505-0505-050505050505",
            "name": "web-01",
            "connected": true,
            "reason": null,
            "rpo_seconds": 0.75,
            "disks": [{
                "name": "sda",
                "state": "catch-up",
                "reason": "ring-overflow",
                "bytes_remaining": 4096,
                "eta_seconds": 3,
                "churn_bytes_per_second": 20_000_000,
                "sent_bytes_per_second": 25_000_000,
                "tracker": {"mode": "data", "losses": 2, "misses": 1, "verdict": "suspect"},
                "position": {
                    "generation": "01010101-0101-0101-0101-010101010101",
                    "incarnation": 2,
                    "sequence": 900,
                    "acknowledged": 880,
                },
                "replica_path": "/var/lib/redoubt/target/machines/x/disks/0",
                "applied_point": "03030303-0303-0303-0303-030303030303",
                "last_point": "04040404-0404-0404-0404-040404040404",
                "harm": null,
            }],
        }],
        "placements": [{"machine": "web-02", "disk": "sdb", "device": "/dev/disk/by-id/x"}],
    });
    assert_eq!(serde_json::to_value(status()).unwrap(), golden);
    assert_eq!(serde_json::from_value::<RoleStatus>(golden).unwrap(), status());
}

#[test]
fn what_is_unknown_is_null_and_not_missing() {
    let mut status = status();
    let disk = &mut status.machines[0].disks[0];
    (disk.reason, disk.eta_seconds, disk.tracker, disk.position) = (None, None, None, None);
    (disk.replica_path, disk.applied_point, disk.last_point) = (None, None, None);
    let value = serde_json::to_value(&status).unwrap();
    let disk = value["machines"][0]["disks"][0].as_object().unwrap();
    assert_eq!(disk.len(), 13);
    assert_eq!(disk.values().filter(|value| value.is_null()).count(), 8);
}

#[test]
fn points_are_frozen() {
    let point = PointStatus {
        id: id(7),
        taken_at: UtcTime::from_nanoseconds(1_700_000_000_000_000_000),
        kind: PointKind::CrashConsistent,
        label: None,
        sequence: 77,
        disks: vec!["sda".parse().unwrap()],
        complete: true,
        proven: false,
        harmed_disks: Vec::new(),
        state: PointState::Waiting,
        suspect: Some("verify-difference: at".into()),
    };
    let golden = json!({
        "id": "07070707-0707-0707-0707-070707070707",
        "taken_at": "2023-11-14T22:13:20Z",
        "kind": "crash-consistent",
        "label": null,
        "sequence": 77,
        "disks": ["sda"],
        "complete": true,
        "proven": false,
        "harmed_disks": [],
        "state": "waiting",
        "suspect": "verify-difference: at",
    });
    assert_eq!(serde_json::to_value(point).unwrap(), golden);
}

#[test]
fn words_are_the_same_in_tables_and_json() {
    use DiskState::{CatchUp, InitialSync, Paused, Streaming, Verifying};
    for state in [InitialSync, Streaming, CatchUp, Verifying, Paused] {
        assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
    }
    for mode in [TrackerMode::Bitmap, TrackerMode::Metadata, TrackerMode::Data] {
        assert_eq!(serde_json::to_value(mode).unwrap(), mode.as_str());
    }
    use TrackerVerdict::{Proven, Suspect, Unverified};
    for verdict in [Proven, Suspect, Unverified] {
        assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.as_str());
    }
    for kind in [PointKind::CrashConsistent, PointKind::ApplicationConsistent] {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
    }
    for state in [PointState::Waiting, PointState::Applied] {
        assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
    }
    for role in [Role::Agent, Role::Target] {
        assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
    }
}
