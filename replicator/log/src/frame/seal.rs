//! Turns a gathered frame into the bytes that travel: compressed where that pays, then summed, then
//! signed. A payload that does not compress is not copied again.

use super::builder::RawFrame;
use super::header::{FRAME_HEADER_SIZE, seal_in_place};
use super::pool::{FrameBuffer, HEADROOM};
use super::{Codec, FrameHeader, FrameKey};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use std::fmt;

/// Compression pays from this part of the payload on: less is not worth the target's decompression.
const SAVING_LEAST: usize = 8;

/// A payload below this is stored raw: there is next to nothing to save.
const COMPRESSED_LEAST: usize = 64;

/// What sealing needs beside the frame, kept from frame to frame by the thread that seals.
pub struct SealBuffers {
    table: CompressTable,
}

impl Default for SealBuffers {
    fn default() -> Self {
        Self { table: CompressTable::large() }
    }
}

impl fmt::Debug for SealBuffers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("SealBuffers")
    }
}

impl RawFrame {
    /// Seals it: from here on nobody changes a byte.
    pub fn seal(self, key: &FrameKey, scratch: &mut SealBuffers) -> SealedFrame {
        let Self { mut header, buffer } = self;
        let raw_length = header.raw_length as usize;
        let table = FRAME_HEADER_SIZE..FRAME_HEADER_SIZE + header.table_length as usize;
        let (buffer, start) = match compress(&mut header, &buffer, scratch) {
            Some(compressed) => (compressed, 0),
            None => (buffer, HEADROOM - table.end),
        };
        let (mut buffer, start) = (buffer, start);
        let bytes = buffer.bytes_mut();
        if header.codec == Codec::Raw {
            debug_assert_eq!(start + table.end, HEADROOM);
            bytes.copy_within(table.clone(), start + table.start);
        }
        let length = header.frame_length();
        debug_assert!(header.codec == Codec::Lz4 || start + length == HEADROOM + raw_length);
        let frame = &mut bytes[start..start + length];
        let place = frame.first_chunk_mut().expect("a frame is longer than its header");
        header.encode_unsealed(place);
        (header.checksum, header.mac) = seal_in_place(frame, key);
        let (buffer, start) = buffer.trimmed(start, length);
        SealedFrame { header, buffer, start }
    }
}

/// The table and compressed payload at their places in a second buffer, and the header adapted,
/// where that pays.
fn compress(
    header: &mut FrameHeader,
    raw: &FrameBuffer,
    scratch: &mut SealBuffers,
) -> Option<FrameBuffer> {
    let raw_length = header.raw_length as usize;
    if raw_length < COMPRESSED_LEAST {
        return None;
    }
    let payload = &raw.bytes()[HEADROOM..HEADROOM + raw_length];
    let table_end = FRAME_HEADER_SIZE + header.table_length as usize;
    let mut buffer = raw.pool().take();
    let (front, room) = buffer.bytes_mut().split_at_mut(table_end);
    let room = &mut room[..get_maximum_output_size(raw_length)];
    let stored = compress_into_with_table(payload, room, &mut scratch.table).ok()?;
    if stored > raw_length - raw_length / SAVING_LEAST {
        return None;
    }
    front[FRAME_HEADER_SIZE..].copy_from_slice(&raw.bytes()[FRAME_HEADER_SIZE..table_end]);
    header.stored_length = u32::try_from(stored).expect("it is less than the raw length");
    header.codec = Codec::Lz4;
    Some(buffer)
}

/// A frame as it travels and is journalled. Its memory goes back to the pool when it is dropped.
#[derive(Debug)]
pub struct SealedFrame {
    header: FrameHeader,
    buffer: FrameBuffer,
    start: usize,
}

impl SealedFrame {
    /// Its header.
    pub fn header(&self) -> &FrameHeader {
        &self.header
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer.bytes()[self.start..self.start + self.header.frame_length()]
    }

    /// Bytes of memory that it holds, for the budget of who keeps it.
    pub fn memory(&self) -> usize {
        self.buffer.memory()
    }
}

impl AsRef<[u8]> for SealedFrame {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}
