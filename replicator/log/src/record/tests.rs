//! Records survive their bytes, keep their numbers on the wire, and break no limit when decoded.

use super::*;
use proptest::prelude::*;

/// Any record that keeps the limits, with payload of at most `payload_most` bytes; no marker, as
/// that ends a frame.
pub(crate) fn any_record(payload_most: u32) -> impl Strategy<Value = Record> {
    let disk = || (0..DiskIndex::LIMIT).prop_map(DiskIndex);
    let block_size = proptest::sample::select(&LOGICAL_BLOCK_SIZES);
    let range = || (0..u64::MAX / 2, 1..u64::MAX / 2);
    prop_oneof![
        4 => (disk(), 0..u64::MAX / 2, 1..=payload_most)
            .prop_map(|(disk, offset, length)| Record::Write { disk, offset, length }),
        2 => (disk(), 0..u64::MAX / 2, 1..=payload_most)
            .prop_map(|(disk, offset, length)| Record::Backfill { disk, offset, length }),
        1 => (disk(), range())
            .prop_map(|(disk, (offset, length))| Record::Zero { disk, offset, length }),
        1 => (disk(), range())
            .prop_map(|(disk, (offset, length))| Record::Discard { disk, offset, length }),
        1 => (disk(), "[a-z0-9/]{1,63}", 0..=DISK_SIZE_LIMIT, block_size)
            .prop_map(|(disk, name, size, logical_block_size)| {
                Record::DiskAdded { disk, name, size, logical_block_size }
            }),
        1 => (disk(), 0..=DISK_SIZE_LIMIT)
            .prop_map(|(disk, size)| Record::DiskResized { disk, size }),
        1 => (disk(), any_reason()).prop_map(|(disk, reason)| Record::Gap { disk, reason }),
        1 => disk().prop_map(|disk| Record::Consistent { disk }),
        1 => any::<u64>().prop_map(|at| Record::Until { at: WallTime(at) }),
        1 => disk().prop_map(|disk| Record::DiskRemoved { disk }),
        1 => (disk(), any::<[u64; 3]>(), any::<u32>()).prop_map(
            |(disk, [at, bytes, offset], ranges)| Record::Suspect {
                disk,
                at: WallTime(at),
                bytes,
                ranges,
                offset,
            },
        ),
    ]
}

/// Any recovery point's marker that keeps the limits.
pub(crate) fn any_marker() -> impl Strategy<Value = Record> {
    let kind =
        prop_oneof![Just(PointKind::CrashConsistent), Just(PointKind::ApplicationConsistent)];
    let label = "[^\\p{Cc}]{0,60}";
    (any::<[u8; 16]>(), kind, any::<u64>(), label, any::<u64>(), any::<bool>()).prop_map(
        |(point, kind, at, label, disks, proven)| Record::Marker {
            point: PointId(point),
            kind,
            at: WallTime(at),
            label,
            disks: DiskSet(disks),
            proven,
        },
    )
}

const REASONS: [(GapReason, &str); 11] = [
    (GapReason::RingOverflow, "ring-overflow"),
    (GapReason::AgentRestarted, "agent-restarted"),
    (GapReason::Reboot, "reboot"),
    (GapReason::PinsGone, "pins-gone"),
    (GapReason::DeviceReplaced, "device-replaced"),
    (GapReason::SizeChanged, "size-changed"),
    (GapReason::MissedEvents, "missed-events"),
    (GapReason::FirstSync, "first-sync"),
    (GapReason::TargetBehind, "target-behind"),
    (GapReason::Paused, "paused"),
    (GapReason::DeviceMissing, "device-missing"),
];

fn any_reason() -> impl Strategy<Value = GapReason> {
    proptest::sample::select(&REASONS).prop_map(|(reason, _)| reason)
}

fn bytes_of(record: &Record) -> Vec<u8> {
    let mut bytes = vec![0; RECORD_CLAIM];
    let length = record.encode_into(&mut bytes).expect("it is short");
    bytes.truncate(length);
    bytes
}

proptest! {
    #[test]
    fn a_record_survives_its_bytes(
        record in prop_oneof![any_record(RECORD_PAYLOAD_LIMIT), any_marker()],
    ) {
        prop_assert_eq!(record.check(), Ok(()));
        let bytes = bytes_of(&record);
        prop_assert!(bytes.len() >= 2, "a table's shortest record");
        for length in 0..bytes.len() {
            prop_assert!(Record::decode(&bytes[..length]).is_err());
            prop_assert_eq!(record.encode_into(&mut vec![0; length]), None);
        }
        let length = bytes.len();
        let followed = [bytes, vec![0xff; 3]].concat();
        prop_assert_eq!(Record::decode(&followed), Ok((record, length)));
    }

    #[test]
    fn what_decodes_from_any_bytes_keeps_the_limits(
        kind in 0..13_u8,
        rest in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let bytes = [vec![kind], rest].concat();
        if let Ok((record, used)) = Record::decode(&bytes) {
            prop_assert_eq!(record.check(), Ok(()));
            prop_assert!(used <= bytes.len());
        }
    }
}

#[test]
fn numbers_on_the_wire_are_frozen() {
    let disk = DiskIndex(5);
    let golden: [(Record, &[u8]); 12] = [
        (Record::Write { disk, offset: 4096, length: 512 }, &[0, 5, 251, 0, 16, 251, 0, 2]),
        (Record::Backfill { disk, offset: 1, length: 2 }, &[1, 5, 1, 2]),
        (Record::Zero { disk, offset: 1, length: 2 }, &[2, 5, 1, 2]),
        (Record::Discard { disk, offset: 1, length: 2 }, &[3, 5, 1, 2]),
        (
            Record::Marker {
                point: PointId([9; 16]),
                kind: PointKind::ApplicationConsistent,
                at: WallTime(7),
                label: "ab".to_owned(),
                disks: DiskSet(3),
                proven: true,
            },
            &[4, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 1, 7, 2, b'a', b'b', 3, 1],
        ),
        (
            Record::DiskAdded { disk, name: "sda".to_owned(), size: 250, logical_block_size: 512 },
            &[5, 5, 3, b's', b'd', b'a', 250, 251, 0, 2],
        ),
        (Record::DiskResized { disk, size: 1 << 32 }, &[6, 5, 253, 0, 0, 0, 0, 1, 0, 0, 0]),
        (Record::Gap { disk, reason: GapReason::Paused }, &[7, 5, 9]),
        (Record::Consistent { disk }, &[8, 5]),
        (Record::Until { at: WallTime(3) }, &[9, 3]),
        (Record::DiskRemoved { disk }, &[10, 5]),
        (
            Record::Suspect { disk, at: WallTime(7), bytes: 250, ranges: 2, offset: 1 },
            &[11, 5, 7, 250, 2, 1],
        ),
    ];
    for (record, bytes) in golden {
        assert_eq!(bytes_of(&record), bytes, "{record:?}");
        assert_eq!(Record::decode(bytes), Ok((record, bytes.len())));
    }
    for (number, (reason, name)) in REASONS.into_iter().enumerate() {
        let gap = Record::Gap { disk, reason };
        assert_eq!(usize::from(bytes_of(&gap)[2]), number, "{name}");
        assert_eq!(reason.to_string(), name);
    }
    assert_eq!(PointKind::CrashConsistent.to_string(), "crash-consistent");
    assert_eq!(PointKind::ApplicationConsistent.to_string(), "application-consistent");
}

#[test]
fn broken_limits_are_refused_in_words() {
    let (disk, no_disk) = (DiskIndex(0), DiskIndex(64));
    let marker = |label: String| Record::Marker {
        point: PointId([0; 16]),
        kind: PointKind::CrashConsistent,
        at: WallTime(0),
        label,
        disks: DiskSet(1),
        proven: true,
    };
    let added = |name: &str, logical_block_size| Record::DiskAdded {
        disk,
        name: name.to_owned(),
        size: 0,
        logical_block_size,
    };
    let refused = [
        Record::Write { disk: no_disk, offset: 0, length: 512 },
        Record::Write { disk, offset: 0, length: 0 },
        Record::Write { disk, offset: u64::MAX, length: 512 },
        Record::Backfill { disk, offset: 0, length: RECORD_PAYLOAD_LIMIT + 1 },
        Record::Zero { disk, offset: u64::MAX, length: 1 },
        Record::Discard { disk, offset: 0, length: 0 },
        Record::Gap { disk: no_disk, reason: GapReason::Reboot },
        Record::Consistent { disk: DiskIndex(255) },
        Record::DiskResized { disk: no_disk, size: 0 },
        Record::DiskResized { disk, size: DISK_SIZE_LIMIT + 1 },
        Record::DiskAdded { disk, name: "sda".to_owned(), size: u64::MAX, logical_block_size: 512 },
        marker("x".repeat(LABEL_LIMIT + 1)),
        marker("two\nlines".to_owned()),
        added("", 512),
        added(&"x".repeat(DISK_NAME_LIMIT + 1), 512),
        added("sda\u{1b}", 512),
        added("sda", 520),
    ];
    for record in refused {
        let error = record.check().expect_err("it breaks a limit");
        assert_eq!(Record::decode(&bytes_of(&record)), Err(error), "{record:?}");
    }
}

#[test]
fn extents_and_disks_are_those_told() {
    let zero = Record::Zero { disk: DiskIndex(2), offset: 8, length: 4 };
    assert_eq!(zero.extent(), Some((DiskIndex(2), ByteRange::new(8, 4))));
    assert_eq!((zero.payload_length(), zero.disks()), (0, DiskSet(4)));
    let write = Record::Write { disk: DiskIndex(63), offset: 8, length: 4 };
    assert_eq!((write.payload_length(), write.disks()), (4, DiskSet(1 << 63)));
    assert_eq!(Record::Until { at: WallTime(1) }.disks(), DiskSet(0));
    assert_eq!(Record::Gap { disk: DiskIndex(1), reason: GapReason::Reboot }.extent(), None);
}
