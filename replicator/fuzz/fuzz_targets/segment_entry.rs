//! A segment's header and an entry from hostile bytes: any answer but a panic; and an entry made by
//! us of hostile frame bytes is read back as those bytes or not at all.
#![no_main]

use libfuzzer_sys::fuzz_target;
use redoubt_log::frame::FrameHeader;
use redoubt_log::segment::{
    Chain, ChainValue, ENTRY_HEADER_SIZE, ENTRY_LIMIT, SEGMENT_HEADER_SIZE, Scan, SegmentHeader,
    scan_entry,
};
use redoubt_log::{Generation, MachineId};

fuzz_target!(|bytes: &[u8]| {
    if let Some(block) = bytes.first_chunk::<SEGMENT_HEADER_SIZE>() {
        let _ = SegmentHeader::parse(block);
    }
    let frame = FrameHeader::parse(bytes).ok();
    let segment = SegmentHeader {
        machine: frame.map_or(MachineId([0; 16]), |frame| frame.machine),
        generation: frame.map_or(Generation([0; 16]), |frame| frame.generation),
        number: 1,
        salt: [9; 16],
        chain_start: ChainValue::default(),
    };
    let mut chain = Chain::start(&segment);
    assert!(!matches!(scan_entry(bytes, &chain), Scan::Entry(_)), "a forged entry was taken");
    if frame.is_none() || bytes.len() > ENTRY_LIMIT - ENTRY_HEADER_SIZE {
        return;
    }
    let mut buffer = vec![0; ENTRY_LIMIT];
    buffer[ENTRY_HEADER_SIZE..ENTRY_HEADER_SIZE + bytes.len()].copy_from_slice(bytes);
    let before = chain;
    if chain.append(&mut buffer).is_err() {
        return;
    }
    if let Scan::Entry(entry) = scan_entry(&buffer, &before) {
        assert_eq!(entry.chain, chain);
        assert_eq!(entry.frame.bytes(), &buffer[ENTRY_HEADER_SIZE..][..entry.frame.bytes().len()]);
    }
});
