//! A whole frame from hostile bytes: any answer but a panic or an allocation beyond the limits. The
//! checksum is made right, else nothing behind it would ever be reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use redoubt_log::frame::{FRAME_HEADER_SIZE, Frame, FrameHeader, FrameKey};

/// Where a header's CRC32C stands.
const CHECKSUM: std::ops::Range<usize> = 124..128;

fuzz_target!(|bytes: &[u8]| {
    let _ = Frame::check(bytes);
    if bytes.len() < FRAME_HEADER_SIZE || FrameHeader::parse(bytes).is_err() {
        return;
    }
    let mut bytes = bytes.to_vec();
    let checksum = Frame::checksum(&bytes).expect("it is longer than a header");
    bytes[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
    let Ok(frame) = Frame::check(&bytes) else { return };
    assert!(frame.verify_mac(&FrameKey::new([7; 32])).is_err(), "a forged frame was taken");
    let mut into = Vec::new();
    if let Ok(body) = frame.decode_body(&mut into) {
        let told = body.iter().map(|(_, payload)| payload.len()).sum::<usize>();
        assert_eq!(told, body.header().raw_length as usize);
    }
});
