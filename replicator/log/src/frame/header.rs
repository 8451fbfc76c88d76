//! The frame's fixed header: its bytes, and the checks that let a receiver trust its lengths.
//! It never looks at what follows the header but to sum it.

use super::{FRAME_PAYLOAD_LIMIT, FRAME_RECORD_LIMIT, FRAME_TABLE_LIMIT, FrameError, FrameKey};
use crate::bytes::{array, put, read_u16, read_u32, read_u64};
use crate::{DiskSet, Generation, Incarnation, MachineId, RoleEpoch, Sequence, WallTime};

/// Bytes of a frame's header; a multiple of 8, so that what follows stays aligned.
pub const FRAME_HEADER_SIZE: usize = 144;

const MAGIC: [u8; 4] = *b"RDFR";

/// Version 1: the first. Version 2: a marker says whether it is proven.
const VERSION: u16 = 2;

/// No record takes fewer bytes in a table: its kind and its disk or time.
const RECORD_BYTES_LEAST: u32 = 2;

/// What a frame says of itself; bits that this release does not know are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameFlags(u16);

impl FrameFlags {
    /// Its last record is a recovery point's marker, and no other one is.
    pub const ENDS_WITH_MARKER: Self = Self(1);
    /// Its last record ends a write: none was split across its end.
    pub const ENDS_AT_WRITE_BOUNDARY: Self = Self(1 << 1);
    /// It stands for a run of frames folded by a process server; it has no MAC and no positions
    /// inside.
    pub const FOLDED: Self = Self(1 << 2);

    const KNOWN: u16 = 0b111;

    /// Whether all of `flags` are set.
    pub fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// With `flags` set as well where `when` holds.
    #[must_use]
    pub fn with(self, flags: Self, when: bool) -> Self {
        if when { Self(self.0 | flags.0) } else { self }
    }
}

/// How a frame's payload is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Raw,
    /// As one lz4 block.
    Lz4,
}

/// What a frame says before its record table. Little-endian, 144 bytes:
///
/// ```text
///       0       1       2       3       4       5       6       7
///   0  'R'     'D'     'F'     'R'    | version       | flags         |
///   8  machine id ...                                                 |
///  16  ... machine id                                                 |
///  24  generation ...                                                 |
///  32  ... generation                                                 |
///  40  incarnation                                                    |
///  48  role epoch                                                     |
///  56  first sequence                                                 |
///  64  last sequence                                                  |
///  72  previous sequence: the last one of the frame before            |
///  80  disks: bit n for disk n                                        |
///  88  earliest time                                                  |
///  96  latest time                                                    |
/// 104  raw payload length             | stored payload length         |
/// 112  table length                   | records in the table          |
/// 120  codec  | zero                  | CRC32C                        |
/// 128  MAC ...                                                        |
/// 136  ... MAC                                                        |
/// 144  record table, then the stored payload
/// ```
///
/// The CRC32C is of the whole frame with zeros in place of CRC and MAC; the MAC (keyed BLAKE3, its
/// first 16 bytes) is of the whole frame with zeros in place of the MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What it says of itself.
    pub flags: FrameFlags,
    /// Whose log.
    pub machine: MachineId,
    /// Which log of the machine.
    pub generation: Generation,
    /// Which run of the agent.
    pub incarnation: Incarnation,
    /// Which side may write.
    pub role_epoch: RoleEpoch,
    /// Of its first record.
    pub first: Sequence,
    /// Of its last record.
    pub last: Sequence,
    /// Of the last record of the frame before it: below `first`, by more than one after a new
    /// incarnation.
    pub previous: Sequence,
    /// The disks that its records name.
    pub disks: DiskSet,
    /// The earliest time of its records.
    pub earliest: WallTime,
    /// The latest time of its records.
    pub latest: WallTime,
    /// Bytes of payload.
    pub raw_length: u32,
    /// Bytes of payload as stored.
    pub stored_length: u32,
    /// Bytes of the record table.
    pub table_length: u32,
    /// Records in the table.
    pub table_count: u32,
    /// How the payload is stored.
    pub codec: Codec,
    /// CRC32C of the frame.
    pub checksum: u32,
    /// Proof that the machine sealed it; zeros where folded.
    pub mac: [u8; 16],
}

const CODEC_AT: usize = 120;
const CHECKSUM_AT: usize = 124;
const MAC_AT: usize = 128;

const _: () = assert!(MAC_AT + 16 == FRAME_HEADER_SIZE);
const _: () = assert!(FRAME_HEADER_SIZE.is_multiple_of(8));

impl FrameHeader {
    /// Bytes of the whole frame.
    pub fn frame_length(&self) -> usize {
        FRAME_HEADER_SIZE + self.table_length as usize + self.stored_length as usize
    }

    /// Reads the header at the start of `bytes`: afterwards its lengths are within the limits, so
    /// that a receiver may take in [`FrameHeader::frame_length`] bytes. Nothing is known yet of
    /// their truth.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let Some(bytes) = bytes.first_chunk::<FRAME_HEADER_SIZE>() else {
            return Err(FrameError::CutOff { given: bytes.len() });
        };
        if bytes[..4] != MAGIC {
            return Err(FrameError::Magic);
        }
        let version = read_u16(bytes, 4);
        if version != VERSION {
            return Err(FrameError::Version { version });
        }
        let codec = match bytes[CODEC_AT..CHECKSUM_AT] {
            [0, 0, 0, 0] => Codec::Raw,
            [1, 0, 0, 0] => Codec::Lz4,
            _ => return Err(FrameError::Header { what: "codec is not known" }),
        };
        let header = Self {
            flags: FrameFlags(read_u16(bytes, 6)),
            machine: MachineId(array(bytes, 8)),
            generation: Generation(array(bytes, 24)),
            incarnation: Incarnation(read_u64(bytes, 40)),
            role_epoch: RoleEpoch(read_u64(bytes, 48)),
            first: Sequence(read_u64(bytes, 56)),
            last: Sequence(read_u64(bytes, 64)),
            previous: Sequence(read_u64(bytes, 72)),
            disks: DiskSet(read_u64(bytes, 80)),
            earliest: WallTime(read_u64(bytes, 88)),
            latest: WallTime(read_u64(bytes, 96)),
            raw_length: read_u32(bytes, 104),
            stored_length: read_u32(bytes, 108),
            table_length: read_u32(bytes, 112),
            table_count: read_u32(bytes, 116),
            codec,
            checksum: read_u32(bytes, CHECKSUM_AT),
            mac: array(bytes, MAC_AT),
        };
        header.contradiction().map_or(Ok(header), |what| Err(FrameError::Header { what }))
    }

    /// Writes all but CRC and MAC, whose places become zero; [`seal_in_place`] fills them.
    pub(super) fn encode_unsealed(&self, bytes: &mut [u8; FRAME_HEADER_SIZE]) {
        assert_eq!(self.contradiction(), None, "a frame is sealed only within the limits");
        *bytes = [0; FRAME_HEADER_SIZE];
        put(bytes, 0, &MAGIC);
        put(bytes, 4, &VERSION.to_le_bytes());
        put(bytes, 6, &self.flags.0.to_le_bytes());
        put(bytes, 8, &self.machine.0);
        put(bytes, 24, &self.generation.0);
        put(bytes, 40, &self.incarnation.0.to_le_bytes());
        put(bytes, 48, &self.role_epoch.0.to_le_bytes());
        put(bytes, 56, &self.first.0.to_le_bytes());
        put(bytes, 64, &self.last.0.to_le_bytes());
        put(bytes, 72, &self.previous.0.to_le_bytes());
        put(bytes, 80, &self.disks.0.to_le_bytes());
        put(bytes, 88, &self.earliest.0.to_le_bytes());
        put(bytes, 96, &self.latest.0.to_le_bytes());
        put(bytes, 104, &self.raw_length.to_le_bytes());
        put(bytes, 108, &self.stored_length.to_le_bytes());
        put(bytes, 112, &self.table_length.to_le_bytes());
        put(bytes, 116, &self.table_count.to_le_bytes());
        bytes[CODEC_AT] = match self.codec {
            Codec::Raw => 0,
            Codec::Lz4 => 1,
        };
    }

    /// The first limit that is broken or contradiction between fields, if any.
    pub(super) fn contradiction(&self) -> Option<&'static str> {
        let folded = self.flags.contains(FrameFlags::FOLDED);
        // Sequences stay below u64::MAX, so that the one that follows can be named.
        let span = self.last.0.checked_sub(self.first.0).filter(|_| self.last.0 < u64::MAX);
        let stored_fits = match self.codec {
            Codec::Raw => self.stored_length == self.raw_length,
            Codec::Lz4 => self.stored_length < self.raw_length && self.stored_length > 0,
        };
        let checks = [
            (self.flags.0 & !FrameFlags::KNOWN == 0, "flags are not known"),
            (span.is_some(), "sequences run backwards or out of numbers"),
            (self.previous < self.first, "the previous sequence is not before the first"),
            (self.earliest <= self.latest, "times run backwards"),
            (self.table_count > 0, "it has no records"),
            (self.table_count as usize <= FRAME_RECORD_LIMIT, "it has too many records"),
            (self.table_length as usize <= FRAME_TABLE_LIMIT, "its record table is too long"),
            (
                u64::from(self.table_count) * u64::from(RECORD_BYTES_LEAST)
                    <= u64::from(self.table_length),
                "its record table is too short for its records",
            ),
            (
                folded || span == u64::from(self.table_count).checked_sub(1),
                "it has not one sequence for each record",
            ),
            (self.raw_length as usize <= FRAME_PAYLOAD_LIMIT, "its payload is too long"),
            (stored_fits, "its stored length does not fit its codec"),
            (!folded || self.mac == [0; 16], "it is folded and has a MAC"),
        ];
        checks.iter().find(|(holds, _)| !holds).map(|(_, what)| *what)
    }
}

/// CRC32C of a whole frame, whatever stands in its places of CRC and MAC.
pub(super) fn checksum_of(frame: &[u8]) -> u32 {
    let (header, body) = frame.split_at(FRAME_HEADER_SIZE);
    let sum = crc32c::crc32c(&header[..CHECKSUM_AT]);
    let sum = crc32c::crc32c_append(sum, &[0; FRAME_HEADER_SIZE - CHECKSUM_AT]);
    crc32c::crc32c_append(sum, body)
}

/// MAC of a whole frame, whatever stands in its place.
pub(super) fn mac_of(frame: &[u8], key: &FrameKey) -> [u8; 16] {
    let (header, body) = frame.split_at(FRAME_HEADER_SIZE);
    let mut hasher = key.hasher();
    hasher.update(&header[..MAC_AT]).update(&[0; 16]).update(body);
    array(hasher.finalize().as_bytes(), 0)
}

/// Fills in CRC, then MAC, of a frame that is complete but for them.
pub(super) fn seal_in_place(frame: &mut [u8], key: &FrameKey) -> (u32, [u8; 16]) {
    let checksum = checksum_of(frame);
    put(frame, CHECKSUM_AT, &checksum.to_le_bytes());
    let mac = mac_of(frame, key);
    put(frame, MAC_AT, &mac);
    (checksum, mac)
}
