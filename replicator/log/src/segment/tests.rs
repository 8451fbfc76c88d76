//! Only entries written in this order, to this segment, are read back; everything else ends it.

use super::*;
use crate::frame::tests::sealed;
use crate::{DiskIndex, Record};
use proptest::prelude::*;

fn segment() -> SegmentHeader {
    SegmentHeader {
        machine: MachineId([0x11; 16]),
        generation: Generation([0x22; 16]),
        number: 5,
        salt: [0x55; 16],
        chain_start: ChainValue([0x66; 16]),
    }
}

/// The bytes of a frame of one write of `length` bytes.
fn frame(first: u64, length: u32) -> Vec<u8> {
    let record = Record::Write { disk: DiskIndex(0), offset: 0, length };
    let data = (0..length).map(|at| (at * 31 + 7).to_le_bytes()[0]).collect();
    sealed(&[(record, data)], first).bytes().to_vec()
}

/// An entry, built as a receiver does: frame first, then the header in front of it, in a dirty
/// buffer.
fn entry(chain: &mut Chain, frame: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0xaa; entry_length(frame.len())];
    buffer[ENTRY_HEADER_SIZE..ENTRY_HEADER_SIZE + frame.len()].copy_from_slice(frame);
    chain.append(&mut buffer).unwrap();
    buffer
}

/// The first sequences of all entries that follow, and why they end.
fn read(mut bytes: &[u8], mut chain: Chain) -> (Vec<u64>, Option<EndReason>) {
    let mut firsts = Vec::new();
    loop {
        match scan_entry(bytes, &chain) {
            Scan::Entry(entry) => {
                firsts.push(entry.header.first.0);
                chain = entry.chain;
                bytes = &bytes[entry.length..];
            }
            Scan::More { .. } => return (firsts, None),
            Scan::End(reason) => return (firsts, Some(reason)),
        }
    }
}

#[test]
fn the_bytes_of_header_and_entry_are_frozen() {
    let mut block = [0xff; SEGMENT_HEADER_SIZE];
    segment().encode(&mut block);
    assert_eq!(block[..8], *b"RDSG\x01\0\0\0");
    assert_eq!((block[8], block[24], block[40], block[48], block[64]), (0x11, 0x22, 5, 0x55, 0x66));
    assert_eq!(hex(&block[80..88]), "2a59362600000000");
    assert!(block[88..].iter().all(|byte| *byte == 0));
    let entry = entry(&mut Chain::start(&segment()), &frame(9, 100));
    assert_eq!(
        hex(&entry[..48]),
        "52444a4501000000f800000000000000090000000000000009000000000000006666666666666666\
         6666666666666666",
    );
    assert_eq!(hex(&entry[48..64]), "269c39aa565d96ae5808c84b8b079e07");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_segment_header_survives_and_a_flipped_bit_does_not() {
    let mut block = [0; SEGMENT_HEADER_SIZE];
    segment().encode(&mut block);
    assert_eq!(SegmentHeader::parse(&block), Ok(segment()));
    for bit in 0..SEGMENT_HEADER_SIZE * 8 {
        block[bit / 8] ^= 1 << (bit % 8);
        assert!(SegmentHeader::parse(&block).is_err(), "bit {bit}");
        block[bit / 8] ^= 1 << (bit % 8);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]
    #[test]
    fn entries_are_read_back_in_pieces(lengths in proptest::collection::vec(1..20_000_u32, 1..6)) {
        let mut chain = Chain::start(&segment());
        let frames: Vec<_> = (1..).zip(&lengths).map(|(at, length)| frame(at, *length)).collect();
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| entry(&mut chain, frame)).collect();
        let (mut at, mut have, mut reader) = (0, 0, Chain::start(&segment()));
        let mut told = Vec::new();
        while at < bytes.len() {
            match scan_entry(&bytes[at..at + have], &reader) {
                Scan::More { needed } => {
                    prop_assert!(needed > have && at + needed <= bytes.len());
                    have = needed;
                }
                Scan::Entry(entry) => {
                    told.push(entry.frame.bytes().to_vec());
                    (at, have, reader) = (at + entry.length, 0, entry.chain);
                }
                Scan::End(reason) => prop_assert!(false, "{reason}"),
            }
        }
        prop_assert_eq!(told, frames);
        prop_assert_eq!(reader, chain);
    }
}

#[test]
fn a_flipped_bit_or_a_cut_ends_the_entries() {
    let mut chain = Chain::start(&segment());
    let frame = frame(1, 300);
    let mut bytes = entry(&mut chain, &frame);
    let start = Chain::start(&segment());
    for bit in 0..(ENTRY_HEADER_SIZE + frame.len()) * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(scan_entry(&bytes, &start), Scan::End(_)), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    for length in 0..bytes.len() {
        let Scan::More { needed } = scan_entry(&bytes[..length], &start) else {
            panic!("{length} bytes are not the whole entry");
        };
        assert!(needed > length && needed <= bytes.len());
    }
    for torn in (0..bytes.len()).step_by(512).filter(|at| *at < frame.len()) {
        let mut torn_bytes = bytes.clone();
        torn_bytes[torn..torn + 512].fill(0);
        assert!(matches!(scan_entry(&torn_bytes, &start), Scan::End(_)), "sector at {torn}");
    }
}

#[test]
fn an_old_entry_that_survived_a_cut_does_not_follow_a_new_one() {
    let start = Chain::start(&segment());
    let mut chain = start;
    let first = entry(&mut chain, &frame(1, 100));
    let good = chain;
    let lost = entry(&mut chain, &frame(2, 100));
    let survivor = entry(&mut chain, &frame(3, 100));
    let gap = vec![0; lost.len()];
    let cut = [first.clone(), gap, survivor.clone()].concat();
    assert_eq!(read(&cut, start), (vec![1], Some(EndReason::Empty)));
    // Another frame takes the lost one's place and sequence: what comes behind it is not its
    // successor.
    let mut chain = good;
    let renewed = entry(&mut chain, &frame(2, 101));
    assert_eq!(renewed.len(), lost.len());
    let (firsts, end) = read(&[first.clone(), renewed, survivor].concat(), start);
    assert_eq!(firsts, [1, 2]);
    assert!(matches!(end, Some(EndReason::DoesNotFollow { .. })));
    // The same file used again: another salt.
    let mut recycled = segment();
    recycled.salt = [0x56; 16];
    let (firsts, end) = read(&first, Chain::start(&recycled));
    assert_eq!((firsts, end), (vec![], Some(EndReason::Damaged)));
}

#[test]
fn frames_of_another_log_and_short_buffers_are_refused() {
    let frame = frame(1, 100);
    let mut other = segment();
    other.generation = Generation([0x23; 16]);
    let mut chain = Chain::start(&other);
    let mut buffer = vec![0; ENTRY_LIMIT];
    buffer[ENTRY_HEADER_SIZE..ENTRY_HEADER_SIZE + frame.len()].copy_from_slice(&frame);
    assert!(matches!(chain.append(&mut buffer), Err(SegmentError::Foreign { .. })));
    assert_eq!(chain, Chain::start(&other));
    let mut chain = Chain::start(&segment());
    let short = chain.append(&mut buffer[..ENTRY_ALIGNMENT - 1]);
    assert_eq!(short, Err(SegmentError::Buffer { given: 4095, needed: 4096 }));
    assert!(matches!(chain.append(&mut []), Err(SegmentError::Frame(_))));
    assert!(chain.append(&mut buffer[..ENTRY_ALIGNMENT]).is_ok());
}

#[test]
fn a_later_releases_entry_is_told_apart_from_damage() {
    let mut bytes = entry(&mut Chain::start(&segment()), &frame(1, 100));
    bytes[4] = 2;
    let (_, end) = read(&bytes, Chain::start(&segment()));
    assert_eq!(end, Some(EndReason::Version { version: 2 }));
}

#[test]
fn an_entry_vouches_for_itself_where_the_one_before_is_lost() {
    let start = Chain::start(&segment());
    let mut chain = start;
    let first = entry(&mut chain, &frame(9, 100));
    let after_first = chain;
    let mut second = entry(&mut chain, &frame(10, 3000));
    assert_eq!(start.before(&first), Some(start));
    assert_eq!(start.before(&second), Some(after_first));
    let (firsts, _) = read(&second, start.before(&second).unwrap());
    assert_eq!(firsts, [10]);
    // Its two headers are vouched for, its body is not.
    second[300] ^= 1;
    assert_eq!(start.before(&second), Some(after_first));
    for place in [0, 4, 9, 20, 40, 60, 70, 200] {
        second[place] ^= 1;
        assert_eq!(start.before(&second), None, "byte {place}");
        second[place] ^= 1;
    }
    let other = SegmentHeader { salt: [0x56; 16], ..segment() };
    assert_eq!(Chain::start(&other).before(&second), None, "an entry of another segment");
    assert_eq!(start.before(&second[..100]), None);
}
