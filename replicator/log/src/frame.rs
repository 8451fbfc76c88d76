//! The frame: the unit of compression, checksum, transfer, journalling and acknowledgement, sealed
//! once by the agent. Reading one trusts nothing: hostile bytes are an error, never a panic, and
//! claims never decide an allocation.

mod builder;
mod error;
mod header;
mod key;
mod pool;
mod seal;

pub use builder::{FrameBuilder, FrameLimits, FrameMeta, NotPushed, RawFrame};
pub use error::FrameError;
pub use header::{Codec, FRAME_HEADER_SIZE, FrameFlags, FrameHeader};
pub use key::FrameKey;
pub use pool::FramePool;
pub use seal::{SealBuffers, SealedFrame};

use crate::record::RECORD_PAYLOAD_LIMIT;
use crate::{Record, Sequence};

/// The most payload of a frame: large enough that a frame's fixed cost vanishes, small enough that
/// the loss of one packet, or one sync, delays little. One record of the largest size fills it.
pub const FRAME_PAYLOAD_LIMIT: usize = RECORD_PAYLOAD_LIMIT as usize;

/// The most bytes of a frame's record table: with the headers of frame and journal entry in front
/// of it, the largest journal entry is exactly 64 KiB more than its payload. Writes of 512 bytes
/// fill half of it.
pub const FRAME_TABLE_LIMIT: usize = 60 << 10;

/// The most records of a frame: four times those that the smallest writes (512 bytes) fill it with.
/// Decoded, they take less memory than the payload.
pub const FRAME_RECORD_LIMIT: usize = 8192;

/// The most bytes of a whole frame: payload is stored raw rather than larger than it was.
pub const FRAME_STORED_LIMIT: usize = FRAME_HEADER_SIZE + FRAME_TABLE_LIMIT + FRAME_PAYLOAD_LIMIT;

/// A whole frame whose header holds together and whose checksum was right.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    header: FrameHeader,
    bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Checks the header and the checksum of the frame that fills `bytes` exactly. What every hop
    /// does.
    pub fn check(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let header = FrameHeader::parse(bytes)?;
        if bytes.len() != header.frame_length() {
            let needed = header.frame_length();
            return Err(FrameError::Length { given: bytes.len(), needed });
        }
        if header.checksum != header::checksum_of(bytes) {
            return Err(FrameError::Checksum { first: header.first, last: header.last });
        }
        Ok(Self { header, bytes })
    }

    /// The checksum that these bytes of a frame should carry; `None` where a header does not fit.
    pub fn checksum(bytes: &[u8]) -> Option<u32> {
        (bytes.len() >= FRAME_HEADER_SIZE).then(|| header::checksum_of(bytes))
    }

    /// Its header.
    pub fn header(&self) -> &FrameHeader {
        &self.header
    }

    /// All its bytes, as they travel.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether the machine of this key sealed it; a folded frame has no such proof.
    pub fn verify_mac(&self, key: &FrameKey) -> Result<(), FrameError> {
        let (first, last) = (self.header.first, self.header.last);
        if self.header.flags.contains(FrameFlags::FOLDED) {
            return Err(FrameError::Folded { first, last });
        }
        if key.matches(&header::mac_of(self.bytes, key), &self.header.mac) {
            Ok(())
        } else {
            Err(FrameError::Mac { machine: self.header.machine, first, last })
        }
    }

    /// The records alone, for whom the payload does not matter (yet).
    pub fn decode_table(&self) -> Result<Vec<PlacedRecord>, FrameError> {
        let end = FRAME_HEADER_SIZE + self.header.table_length as usize;
        decode_table(&self.header, &self.bytes[FRAME_HEADER_SIZE..end])
    }

    /// The records and their payload. Compressed payload is decompressed into `into`, which keeps
    /// its memory from frame to frame; raw payload stays where it is.
    pub fn decode_body(&self, into: &'a mut Vec<u8>) -> Result<DecodedFrame<'a>, FrameError> {
        let records = self.decode_table()?;
        let stored = &self.bytes[FRAME_HEADER_SIZE + self.header.table_length as usize..];
        let payload = match self.header.codec {
            Codec::Raw => stored,
            Codec::Lz4 => self.decompress(stored, into)?,
        };
        Ok(DecodedFrame { header: self.header, records, payload })
    }

    fn decompress(&self, stored: &[u8], into: &'a mut Vec<u8>) -> Result<&'a [u8], FrameError> {
        let raw_length = self.header.raw_length as usize;
        if into.len() < raw_length {
            into.resize(raw_length, 0);
        }
        let target = &mut into[..raw_length];
        match lz4_flex::block::decompress_into(stored, target) {
            Ok(length) if length == raw_length => Ok(target),
            _ => Err(FrameError::Compressed { first: self.header.first, last: self.header.last }),
        }
    }
}

/// A record and where its payload stands in its frame's payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedRecord {
    /// The record.
    pub record: Record,
    /// First byte of its payload, counted from the start of the frame's payload.
    pub payload_offset: u32,
}

/// A frame's records with their payload.
#[derive(Clone, Debug)]
pub struct DecodedFrame<'a> {
    header: FrameHeader,
    records: Vec<PlacedRecord>,
    payload: &'a [u8],
}

impl<'a> DecodedFrame<'a> {
    /// The frame's header.
    pub fn header(&self) -> &FrameHeader {
        &self.header
    }

    /// The records in their order.
    pub fn records(&self) -> &[PlacedRecord] {
        &self.records
    }

    /// The whole payload; [`PlacedRecord::payload_offset`] points into it.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// One record's payload; empty where it has none.
    pub fn payload_of(&self, placed: &PlacedRecord) -> &'a [u8] {
        let start = placed.payload_offset as usize;
        &self.payload[start..start + placed.record.payload_length() as usize]
    }

    /// The sequence of the record at `index`, unless the frame is folded: then records have none of
    /// their own.
    pub fn sequence_of(&self, index: usize) -> Option<Sequence> {
        let folded = self.header.flags.contains(FrameFlags::FOLDED);
        (!folded && index < self.records.len())
            .then(|| Sequence(self.header.first.0 + index as u64))
    }

    /// Each record with its payload, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Record, &'a [u8])> {
        self.records.iter().map(|placed| (&placed.record, self.payload_of(placed)))
    }
}

/// Decodes a record table that fills `table` exactly and agrees with the header in all that it says
/// of it.
fn decode_table(header: &FrameHeader, table: &[u8]) -> Result<Vec<PlacedRecord>, FrameError> {
    let disagrees = |what| FrameError::Table { first: header.first, last: header.last, what };
    // The header's parse bounds the count: by the limit, and by the bytes that the table really
    // has.
    let count = header.table_count as usize;
    let mut records = Vec::with_capacity(count.min(FRAME_RECORD_LIMIT));
    let mut rest = table;
    let mut payload_offset = 0_u32;
    let mut disks = crate::DiskSet::default();
    for index in 0..count {
        let (record, used) = Record::decode(rest).map_err(|source| FrameError::Record {
            first: header.first,
            index,
            source,
        })?;
        rest = &rest[used..];
        disks.0 |= record.disks().0;
        let end = payload_offset.checked_add(record.payload_length());
        let Some(end) = end.filter(|end| *end <= header.raw_length) else {
            return Err(disagrees("its records have more payload than the frame"));
        };
        let ends_with_marker = matches!(record, Record::Marker { .. });
        let should = index + 1 == count && header.flags.contains(FrameFlags::ENDS_WITH_MARKER);
        if ends_with_marker != should {
            return Err(disagrees("a recovery point's marker is not where the header says"));
        }
        records.push(PlacedRecord { record, payload_offset });
        payload_offset = end;
    }
    if !rest.is_empty() {
        return Err(disagrees("bytes follow its last record"));
    }
    if payload_offset != header.raw_length {
        return Err(disagrees("its records have less payload than the frame"));
    }
    if disks != header.disks {
        return Err(disagrees("its records name other disks than the header"));
    }
    Ok(records)
}

#[cfg(test)]
pub(crate) mod tests;
