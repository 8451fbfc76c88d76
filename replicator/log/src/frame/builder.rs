//! Gathers records and their payload into a frame to be sealed. This is the one copy of payload
//! from ring to frame. It never splits a record: who pushes splits by the room that is left.

use super::pool::{FrameBuffer, FramePool, HEADROOM};
use super::{
    Codec, FRAME_HEADER_SIZE, FRAME_PAYLOAD_LIMIT, FRAME_RECORD_LIMIT, FRAME_TABLE_LIMIT,
    FrameFlags, FrameHeader,
};
use crate::record::RecordError;
use crate::{DiskSet, Generation, Incarnation, MachineId, Record, RoleEpoch, Sequence, WallTime};

/// Room in the table below which a frame counts as full: a write's record takes at most 16 bytes of
/// it.
const TABLE_ROOM_LEAST: usize = 16;

/// How large a frame may grow; never beyond the format's own limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Bytes of payload.
    pub payload: usize,
    /// Records.
    pub records: usize,
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self { payload: FRAME_PAYLOAD_LIMIT, records: FRAME_RECORD_LIMIT }
    }
}

/// What the records alone do not tell of their frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameMeta {
    /// Whose log.
    pub machine: MachineId,
    /// Which log of the machine.
    pub generation: Generation,
    /// Which run of the agent.
    pub incarnation: Incarnation,
    /// Which side may write.
    pub role_epoch: RoleEpoch,
    /// Of the first record; the others follow by one each.
    pub first: Sequence,
    /// Of the last record of the frame before.
    pub previous: Sequence,
    /// The earliest time of the records.
    pub earliest: WallTime,
    /// The latest time of the records.
    pub latest: WallTime,
    /// Whether the last record ends a write.
    pub ends_at_write_boundary: bool,
}

/// Why a record was not taken; the builder is unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotPushed {
    /// It does not fit, or a marker has ended the frame: here it is again, for the next frame.
    Full(Record),
    /// It breaks a limit and fits no frame.
    Refused(RecordError),
}

/// A frame that grows.
#[derive(Debug)]
pub struct FrameBuilder {
    limits: FrameLimits,
    pool: FramePool,
    growing: Option<Growing>,
}

/// The record table grows behind the place of the header, the payload behind the headroom.
#[derive(Debug)]
struct Growing {
    buffer: FrameBuffer,
    table_length: usize,
    raw_length: usize,
    records: usize,
    disks: DiskSet,
    ends_with_marker: bool,
}

impl FrameBuilder {
    /// A builder of frames within `limits`, with buffers from `pool`.
    pub fn new(limits: FrameLimits, pool: &FramePool) -> Self {
        let limits = FrameLimits {
            payload: limits.payload.min(FRAME_PAYLOAD_LIMIT),
            records: limits.records.min(FRAME_RECORD_LIMIT),
        };
        Self { limits, pool: pool.clone(), growing: None }
    }

    /// Bytes of payload that a write pushed now may have; zero where no record of a write fits any
    /// more.
    pub fn room(&self) -> usize {
        let Some(growing) = &self.growing else { return self.limits.payload };
        let full = growing.ends_with_marker
            || growing.records >= self.limits.records
            || FRAME_TABLE_LIMIT - growing.table_length < TABLE_ROOM_LEAST;
        if full { 0 } else { self.limits.payload - growing.raw_length }
    }

    /// Whether it holds no record.
    pub fn is_empty(&self) -> bool {
        self.records() == 0
    }

    /// Records that it holds.
    pub fn records(&self) -> usize {
        self.growing.as_ref().map_or(0, |growing| growing.records)
    }

    /// Bytes of payload that it holds.
    pub fn payload_length(&self) -> usize {
        self.growing.as_ref().map_or(0, |growing| growing.raw_length)
    }

    /// Adds a record and copies its payload, which may stand in pieces. A marker ends the frame.
    pub fn push(&mut self, record: Record, payload: &[&[u8]]) -> Result<(), NotPushed> {
        record.check().map_err(NotPushed::Refused)?;
        let given = payload.iter().map(|piece| piece.len()).sum::<usize>();
        let expected = record.payload_length();
        if given != expected as usize {
            return Err(NotPushed::Refused(RecordError::PayloadLength { expected, given }));
        }
        if given > self.limits.payload || self.limits.records == 0 {
            return Err(NotPushed::Full(record));
        }
        let growing = self.growing.get_or_insert_with(|| Growing::new(self.pool.take()));
        growing.push(&self.limits, record, payload, given)
    }

    /// Takes the frame out; the builder is empty again.
    ///
    /// # Panics
    /// Where it holds no record, or `meta` contradicts itself (first not after previous, latest
    /// before earliest): the caller's defect.
    pub fn finish(&mut self, meta: &FrameMeta) -> RawFrame {
        let growing = self.growing.take().filter(|growing| growing.records > 0);
        let growing = growing.expect("a frame is finished only when it holds a record");
        let header = growing.header(meta);
        assert_eq!(header.contradiction(), None, "{meta:?}");
        RawFrame { header, buffer: growing.buffer }
    }
}

impl Growing {
    fn new(buffer: FrameBuffer) -> Self {
        Self {
            buffer,
            table_length: 0,
            raw_length: 0,
            records: 0,
            disks: DiskSet::default(),
            ends_with_marker: false,
        }
    }

    fn push(
        &mut self,
        limits: &FrameLimits,
        record: Record,
        payload: &[&[u8]],
        given: usize,
    ) -> Result<(), NotPushed> {
        let full = self.ends_with_marker
            || self.records >= limits.records
            || self.raw_length + given > limits.payload;
        if full {
            return Err(NotPushed::Full(record));
        }
        let (front, room) = self.buffer.bytes_mut().split_at_mut(HEADROOM);
        let table = &mut front[FRAME_HEADER_SIZE + self.table_length..];
        let Some(encoded) = record.encode_into(table) else {
            return Err(NotPushed::Full(record));
        };
        for piece in payload {
            room[self.raw_length..self.raw_length + piece.len()].copy_from_slice(piece);
            self.raw_length += piece.len();
        }
        self.table_length += encoded;
        self.records += 1;
        self.disks.0 |= record.disks().0;
        self.ends_with_marker = matches!(record, Record::Marker { .. });
        Ok(())
    }

    fn header(&self, meta: &FrameMeta) -> FrameHeader {
        let length = |bytes| u32::try_from(bytes).expect("the limits of a frame are below 4 GiB");
        let flags = FrameFlags::default()
            .with(FrameFlags::ENDS_WITH_MARKER, self.ends_with_marker)
            .with(FrameFlags::ENDS_AT_WRITE_BOUNDARY, meta.ends_at_write_boundary);
        FrameHeader {
            flags,
            machine: meta.machine,
            generation: meta.generation,
            incarnation: meta.incarnation,
            role_epoch: meta.role_epoch,
            first: meta.first,
            last: Sequence(meta.first.0.saturating_add(self.records as u64 - 1)),
            previous: meta.previous,
            disks: self.disks,
            earliest: meta.earliest,
            latest: meta.latest,
            raw_length: length(self.raw_length),
            stored_length: length(self.raw_length),
            table_length: length(self.table_length),
            table_count: length(self.records),
            codec: Codec::Raw,
            checksum: 0,
            mac: [0; 16],
        }
    }
}

/// A frame that is complete but neither compressed nor sealed.
#[derive(Debug)]
pub struct RawFrame {
    pub(super) header: FrameHeader,
    pub(super) buffer: FrameBuffer,
}

impl RawFrame {
    /// Its header as far as it is known: lengths and codec may change, checksum and MAC are still
    /// to come.
    pub fn header(&self) -> &FrameHeader {
        &self.header
    }
}
