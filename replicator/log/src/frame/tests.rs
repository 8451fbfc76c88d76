//! Frames survive their bytes; damage, lies and foreign keys are refused; the layout is frozen.

use super::*;
use crate::record::RecordError;
use crate::record::tests::{any_marker, any_record};
use crate::{
    DiskIndex, DiskSet, Generation, Incarnation, MachineId, PointId, PointKind, RoleEpoch, WallTime,
};
use proptest::prelude::*;

pub(crate) fn key() -> FrameKey {
    FrameKey::new([0x42; 32])
}

pub(crate) fn meta(first: u64) -> FrameMeta {
    FrameMeta {
        machine: MachineId([0x11; 16]),
        generation: Generation([0x22; 16]),
        incarnation: Incarnation(3),
        role_epoch: RoleEpoch(4),
        first: Sequence(first),
        previous: Sequence(first - 1),
        earliest: WallTime(1000),
        latest: WallTime(2000),
        ends_at_write_boundary: true,
    }
}

/// Payload that is the same for the same seed; compressible where `runs` is long.
fn payload(length: u32, seed: u64, runs: u64) -> Vec<u8> {
    (0..u64::from(length))
        .map(|at| {
            // splitmix64
            let mixed = (seed.wrapping_add(at / runs)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed.to_le_bytes()[6]
        })
        .collect()
}

pub(crate) fn sealed(records: &[(Record, Vec<u8>)], first: u64) -> SealedFrame {
    let mut builder = FrameBuilder::new(FrameLimits::default(), &FramePool::new(2));
    for (record, payload) in records {
        let (front, back) = payload.split_at(payload.len() / 3);
        builder.push(record.clone(), &[front, back]).unwrap();
    }
    builder.finish(&meta(first)).seal(&key(), &mut SealBuffers::default())
}

fn write(offset: u64, data: Vec<u8>) -> (Record, Vec<u8>) {
    let length = u32::try_from(data.len()).unwrap();
    (Record::Write { disk: DiskIndex(0), offset, length }, data)
}

fn marker() -> Record {
    Record::Marker {
        point: PointId([0x33; 16]),
        kind: PointKind::CrashConsistent,
        at: WallTime(5),
        label: "x".to_owned(),
        disks: DiskSet(1),
        proven: true,
    }
}

/// Changes bytes of a frame and makes its checksum right again, as an attacker would.
fn forged(frame: &SealedFrame, at: usize, field: &[u8]) -> Vec<u8> {
    let mut bytes = frame.bytes().to_vec();
    bytes[at..at + field.len()].copy_from_slice(field);
    let checksum = Frame::checksum(&bytes).unwrap();
    bytes[124..128].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_frame_survives_its_bytes(
        records in proptest::collection::vec((any_record(3000), any::<u64>(), 1..200_u64), 1..40),
        marker in proptest::option::of(any_marker()),
        first in 1..1_u64 << 60,
    ) {
        let mut told: Vec<_> = records
            .into_iter()
            .map(|(record, seed, runs)| {
                let data = payload(record.payload_length(), seed, runs);
                (record, data)
            })
            .collect();
        let ends_with_marker = marker.is_some();
        told.extend(marker.map(|marker| (marker, Vec::new())));
        let sealed = sealed(&told, first);
        let frame = Frame::check(sealed.bytes()).unwrap();
        prop_assert_eq!(frame.header(), sealed.header());
        prop_assert_eq!(frame.header().last.0, first + told.len() as u64 - 1);
        let flags = frame.header().flags;
        prop_assert_eq!(flags.contains(FrameFlags::ENDS_WITH_MARKER), ends_with_marker);
        prop_assert!(flags.contains(FrameFlags::ENDS_AT_WRITE_BOUNDARY));
        frame.verify_mac(&key()).unwrap();
        let mut into = vec![0xee; 7];
        let body = frame.decode_body(&mut into).unwrap();
        let read: Vec<_> = body.iter().map(|(told, data)| (told.clone(), data.to_vec())).collect();
        prop_assert_eq!(read, told);
        prop_assert_eq!(frame.decode_table().unwrap(), body.records());
        prop_assert_eq!(body.sequence_of(0), Some(Sequence(first)));
        prop_assert_eq!(body.sequence_of(body.records().len()), None);
    }
}

#[test]
fn the_bytes_of_a_frame_are_frozen() {
    let raw = sealed(&[write(4096, (0..24).collect()), (marker(), Vec::new())], 7);
    let golden = "\
        5244465202000300111111111111111111111111111111112222222222222222\
        2222222222222222030000000000000004000000000000000700000000000000\
        080000000000000006000000000000000100000000000000e803000000000000\
        d00700000000000018000000180000001d00000002000000";
    assert_eq!(hex(&raw.bytes()[..120]), golden);
    let golden = "\
        0000fb00101804333333333333333333333333333333330005017801010001020304\
        05060708090a0b0c0d0e0f1011121314151617";
    assert_eq!(hex(&raw.bytes()[144..]), golden);
    assert_eq!(hex(&raw.bytes()[120..144]), GOLDEN_SEAL);
    let compressed = sealed(&[write(0, vec![7; 4096])], 1);
    assert_eq!(compressed.header().codec, Codec::Lz4);
    assert_eq!(hex(&compressed.bytes()[120..124]), "01000000");
}

/// Codec, CRC32C and MAC of the frame above, under [`key`].
const GOLDEN_SEAL: &str = "00000000aa4e7c9f4711878b742a7bca6f9e93f32f8592c9";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_flipped_bit_anywhere_is_seen() {
    let compressed = sealed(&[write(0, vec![7; 600]), write(9, (0..200).collect())], 1);
    let raw = sealed(&[write(0, (0..80).collect()), (marker(), Vec::new())], 1);
    for frame in [&compressed, &raw] {
        for bit in 0..frame.bytes().len() * 8 {
            let mut bytes = frame.bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let seen = Frame::check(&bytes).and_then(|frame| frame.verify_mac(&key()));
            assert!(seen.is_err(), "bit {bit}");
            if !(128..144).contains(&(bit / 8)) {
                assert!(Frame::check(&bytes).is_err(), "bit {bit}: every hop sees it");
            }
        }
    }
}

#[test]
fn a_frame_of_any_other_length_is_refused() {
    let frame = sealed(&[write(0, vec![7; 600]), write(9, (0..200).collect())], 1);
    for length in 0..frame.bytes().len() {
        let error = Frame::check(&frame.bytes()[..length]).unwrap_err();
        let expected = if length < FRAME_HEADER_SIZE {
            FrameError::CutOff { given: length }
        } else {
            FrameError::Length { given: length, needed: frame.bytes().len() }
        };
        assert_eq!(error, expected);
    }
    let longer = [frame.bytes(), &[0]].concat();
    assert!(matches!(Frame::check(&longer), Err(FrameError::Length { .. })));
}

#[test]
fn hostile_headers_are_refused_before_anything_is_allocated() {
    let frame = sealed(&[write(0, (0..80).collect()), write(9, vec![1; 9])], 5);
    let most = u32::MAX.to_le_bytes();
    let hostile: [(usize, &[u8]); 14] = [
        (6, &[8, 0]),
        (56, &9_u64.to_le_bytes()),
        (64, &u64::MAX.to_le_bytes()),
        (64, &5_u64.to_le_bytes()),
        (72, &5_u64.to_le_bytes()),
        (88, &3000_u64.to_le_bytes()),
        (104, &most),
        (108, &most),
        (112, &most),
        (116, &most),
        (116, &[0; 4]),
        (112, &[3, 0, 0, 0]),
        (120, &[2]),
        (123, &[1]),
    ];
    for (at, field) in hostile {
        let error = FrameHeader::parse(&forged(&frame, at, field)).unwrap_err();
        assert!(matches!(error, FrameError::Header { .. }), "at {at}: {error}");
    }
    assert_eq!(FrameHeader::parse(&forged(&frame, 0, b"X")), Err(FrameError::Magic));
    let newer = FrameHeader::parse(&forged(&frame, 4, &[3]));
    assert_eq!(newer, Err(FrameError::Version { version: 3 }));
}

#[test]
fn tables_that_contradict_their_header_are_refused() {
    let frame = sealed(&[write(0, (0..80).collect()), (marker(), Vec::new())], 5);
    let table = FRAME_HEADER_SIZE;
    let lies: [(usize, &[u8]); 6] = [
        (80, &[3]),
        (6, &[2]),
        (table + 3, &[79]),
        (table + 3, &[81]),
        (table, &[77]),
        (table + 1, &[64]),
    ];
    for (at, field) in lies {
        let bytes = forged(&frame, at, field);
        let frame = Frame::check(&bytes).expect("its checksum is right");
        let error = frame.decode_table().unwrap_err();
        let told = matches!(error, FrameError::Table { .. } | FrameError::Record { .. });
        assert!(told, "at {at}: {error}");
        assert!(frame.decode_body(&mut Vec::new()).is_err());
        assert!(matches!(frame.verify_mac(&key()), Err(FrameError::Mac { .. })));
    }
}

#[test]
fn payload_that_does_not_decompress_to_its_length_is_refused() {
    let frame = sealed(&[write(0, vec![7; 4096])], 1);
    assert_eq!(frame.header().codec, Codec::Lz4);
    let stored_at = FRAME_HEADER_SIZE + frame.header().table_length as usize;
    let mut refused = 0;
    for at in stored_at..frame.bytes().len() {
        for value in [0, 1, 0x7f, 0xff] {
            let bytes = forged(&frame, at, &[value]);
            let frame = Frame::check(&bytes).expect("its checksum is right");
            refused += usize::from(frame.decode_body(&mut Vec::new()).is_err());
        }
    }
    assert!(refused > 0);
}

#[test]
fn only_the_machines_own_key_verifies_and_folded_frames_never_do() {
    let frame = sealed(&[write(0, vec![1; 10])], 1);
    let other = FrameKey::new([0x43; 32]);
    let refused = Frame::check(frame.bytes()).unwrap().verify_mac(&other);
    assert!(matches!(refused, Err(FrameError::Mac { .. })));
    let mut bytes = forged(&frame, 6, &[0b110]);
    assert!(matches!(Frame::check(&bytes), Err(FrameError::Header { .. })), "folded with a MAC");
    bytes[128..144].fill(0);
    let folded = Frame::check(&bytes).unwrap();
    assert!(matches!(folded.verify_mac(&key()), Err(FrameError::Folded { .. })));
    assert_eq!(folded.decode_body(&mut Vec::new()).unwrap().sequence_of(0), None);
}

#[test]
fn what_does_not_fit_comes_back_and_leaves_the_builder_as_it_was() {
    let limits = FrameLimits { payload: 1000, records: 3 };
    let mut builder = FrameBuilder::new(limits, &FramePool::new(1));
    assert!(builder.is_empty() && builder.room() == 1000);
    let (record, data) = write(0, vec![1; 600]);
    builder.push(record.clone(), &[&data]).unwrap();
    assert_eq!(builder.room(), 400);
    assert_eq!(builder.push(record.clone(), &[&data]), Err(NotPushed::Full(record.clone())));
    let short = Err(NotPushed::Refused(RecordError::PayloadLength { expected: 600, given: 599 }));
    assert_eq!(builder.push(record.clone(), &[&data[..599]]), short);
    assert_eq!((builder.records(), builder.payload_length(), builder.room()), (1, 600, 400));
    builder.push(marker(), &[]).unwrap();
    assert_eq!(builder.room(), 0);
    let until = Record::Until { at: WallTime(1) };
    assert_eq!(builder.push(until.clone(), &[]), Err(NotPushed::Full(until)));
    assert_eq!(builder.finish(&meta(1)).header().table_count, 2);
    assert!(builder.is_empty() && builder.room() == 1000);
}

#[test]
fn the_table_and_the_number_of_records_are_bounded() {
    let pool = FramePool::new(1);
    let mut builder = FrameBuilder::new(FrameLimits::default(), &pool);
    let short = Record::Consistent { disk: DiskIndex(1) };
    while builder.push(short.clone(), &[]).is_ok() {}
    assert_eq!((builder.records(), builder.room()), (FRAME_RECORD_LIMIT, 0));
    let frame = builder.finish(&meta(1)).seal(&key(), &mut SealBuffers::default());
    assert_eq!(Frame::check(frame.bytes()).unwrap().decode_table().unwrap().len(), 8192);
    let long = Record::Zero { disk: DiskIndex(1), offset: u64::MAX / 2, length: u64::MAX / 2 };
    while builder.push(long.clone(), &[]).is_ok() {}
    let frame = builder.finish(&meta(1)).seal(&key(), &mut SealBuffers::default());
    let table = frame.header().table_length as usize;
    assert!((FRAME_TABLE_LIMIT - 20..=FRAME_TABLE_LIMIT).contains(&table), "{table}");
    assert!(Frame::check(frame.bytes()).unwrap().decode_table().is_ok());
}

#[test]
fn sealing_allocates_nothing_once_warm_and_small_frames_hold_little() {
    let pool = FramePool::new(2);
    let mut builder = FrameBuilder::new(FrameLimits::default(), &pool);
    let mut scratch = SealBuffers::default();
    let data: Vec<u8> = payload(1 << 20, 12345, 1);
    let mut seal = |data: &[u8]| {
        let (record, data) = write(0, data.to_vec());
        builder.push(record, &[&data]).unwrap();
        builder.finish(&meta(1)).seal(&key(), &mut scratch)
    };
    drop(seal(&data));
    let warm = pool.spares();
    assert_eq!(warm, 2);
    let large = seal(&data);
    assert_eq!(pool.spares(), warm - 1, "it holds one buffer of the pool");
    assert!(large.bytes().len() <= FRAME_STORED_LIMIT);
    drop(large);
    let small = seal(&data[..4096]);
    assert_eq!(small.memory(), small.bytes().len());
    assert_eq!(pool.spares(), warm, "it holds none");
}
