//! What a machine's log says: the records, the limits of their texts and numbers, and their bytes
//! in a frame's table. A record never holds payload, and one that was decoded never breaks a limit.

use crate::{ByteRange, DiskIndex, DiskSet, PointId, WallTime};
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The most payload of one record, and so of a frame; a larger write is split.
pub const RECORD_PAYLOAD_LIMIT: u32 = 1 << 20;

/// The most bytes of a marker's label: what a person types, and a file name's worth.
pub const LABEL_LIMIT: usize = 255;

/// The most bytes of a disk's name: kernel names have at most 31, and stable ones fit twice that.
pub const DISK_NAME_LIMIT: usize = 63;

/// The most bytes of a disk: 1 PiB, more than any one device has, and so little that the bytes of
/// all disks of a machine can be added up.
pub const DISK_SIZE_LIMIT: u64 = 1 << 50;

/// The logical block sizes that a partition table on a protected disk may be written in.
pub const LOGICAL_BLOCK_SIZES: [u32; 2] = [512, 4096];

/// What a decoder may claim in memory for one record: its longest text and all its numbers fit well
/// within.
const RECORD_CLAIM: usize = 1024;

/// One step of a machine's log. The order of the variants is their number on the wire: new ones go
/// last.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Record {
    /// A write of the machine, in its order; `length` bytes of payload.
    Write {
        /// The disk written.
        disk: DiskIndex,
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// What the disk held when it was read, to fill in what no write told; `length` bytes of
    /// payload.
    Backfill {
        /// The disk read.
        disk: DiskIndex,
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// The range became zeros, by a write or by a backfill; no payload.
    Zero {
        /// The disk written.
        disk: DiskIndex,
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// The machine gave the range up: its content no longer matters; no payload.
    Discard {
        /// The disk.
        disk: DiskIndex,
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// A recovery point: always the last record of its frame.
    Marker {
        /// Its name for ever.
        point: PointId,
        /// What it promises of the data.
        kind: PointKind,
        /// When it was taken.
        at: WallTime,
        /// What the operator calls it; may be empty. At most [`LABEL_LIMIT`] bytes, no control
        /// characters.
        label: String,
        /// The disks that it is good for.
        disks: DiskSet,
        /// Whether the tracker could prove that nothing of them was missed: its counters, read
        /// behind this position, had not risen, and its order was proven when it was attached.
        proven: bool,
    },
    /// From here on the log tells of this disk.
    DiskAdded {
        /// Its number on this machine.
        disk: DiskIndex,
        /// What the machine calls it: 1 to [`DISK_NAME_LIMIT`] bytes, no control characters.
        name: String,
        /// Bytes.
        size: u64,
        /// Bytes; one of [`LOGICAL_BLOCK_SIZES`].
        logical_block_size: u32,
    },
    /// The disk has another size.
    DiskResized {
        /// The disk.
        disk: DiskIndex,
        /// Bytes, from here on.
        size: u64,
    },
    /// The log does not tell all of this disk from here on, until [`Record::Consistent`].
    Gap {
        /// The disk.
        disk: DiskIndex,
        /// Why.
        reason: GapReason,
    },
    /// All that a gap left out has been told: the disk is whole at this position.
    Consistent {
        /// The disk.
        disk: DiskIndex,
    },
    /// Nothing had been left to tell at this time.
    Until {
        /// The time.
        at: WallTime,
    },
    /// The disk's protection has ended: from here on the log tells nothing of it, and its number
    /// is not used again.
    DiskRemoved {
        /// The disk.
        disk: DiskIndex,
    },
    /// A comparison has found that the replica held other bytes than the disk: points of the disk
    /// that stand before this may hold them, too. What differed is told anew behind it.
    Suspect {
        /// The disk.
        disk: DiskIndex,
        /// When it was found.
        at: WallTime,
        /// Bytes that differed.
        bytes: u64,
        /// Ranges that they lie in.
        ranges: u32,
        /// First byte of the first range.
        offset: u64,
    },
}

/// What a recovery point promises of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointKind {
    /// As after a power cut at that instant.
    CrashConsistent,
    /// The applications had been asked to settle first.
    ApplicationConsistent,
}

impl fmt::Display for PointKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::CrashConsistent => "crash-consistent",
            Self::ApplicationConsistent => "application-consistent",
        })
    }
}

/// Why a disk's log has a gap. The order is the number on the wire: new ones go last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GapReason {
    /// The capture ring was full, and writes passed it by.
    RingOverflow,
    /// The agent ended and began again.
    AgentRestarted,
    /// The machine started anew.
    Reboot,
    /// The kernel's side of the tracker was taken away.
    PinsGone,
    /// Another disk stands in the place of the one known.
    DeviceReplaced,
    /// The disk grew or shrank.
    SizeChanged,
    /// The audit found events that the tracker did not see.
    MissedEvents,
    /// The disk has never been told.
    FirstSync,
    /// The target has less than it once acknowledged.
    TargetBehind,
    /// The operator paused replication.
    Paused,
    /// The device is not there, or is not what it was: nobody watches it.
    DeviceMissing,
}

impl fmt::Display for GapReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::RingOverflow => "ring-overflow",
            Self::AgentRestarted => "agent-restarted",
            Self::Reboot => "reboot",
            Self::PinsGone => "pins-gone",
            Self::DeviceReplaced => "device-replaced",
            Self::SizeChanged => "size-changed",
            Self::MissedEvents => "missed-events",
            Self::FirstSync => "first-sync",
            Self::TargetBehind => "target-behind",
            Self::Paused => "paused",
            Self::DeviceMissing => "device-missing",
        })
    }
}

/// Why a record is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The disk's number is not below [`DiskIndex::LIMIT`].
    #[error("disk {0}: a machine has at most 64 disks")]
    Disk(DiskIndex),
    /// The range is empty or ends past 64 bits.
    #[error("disk {disk}: range {offset}+{length} is empty or ends beyond any disk")]
    Range {
        /// The disk.
        disk: DiskIndex,
        /// First byte claimed.
        offset: u64,
        /// Bytes claimed.
        length: u64,
    },
    /// The payload is over [`RECORD_PAYLOAD_LIMIT`].
    #[error("disk {disk}: payload of {length} bytes is over the limit of {RECORD_PAYLOAD_LIMIT}")]
    Payload {
        /// The disk.
        disk: DiskIndex,
        /// Bytes claimed.
        length: u32,
    },
    /// The payload given is not as long as the record says.
    #[error("record of {expected} bytes of payload came with {given}")]
    PayloadLength {
        /// Bytes that the record tells of.
        expected: u32,
        /// Bytes that came.
        given: usize,
    },
    /// A label or a disk's name has the wrong length or holds control characters.
    #[error("{what} must have {least} to {most} bytes and no control characters: choose another")]
    Text {
        /// Which text.
        what: &'static str,
        /// Bytes it must have.
        least: usize,
        /// Bytes it may have.
        most: usize,
    },
    /// The disk is said to be larger than [`DISK_SIZE_LIMIT`].
    #[error("disk {disk}: {size} bytes are over the limit of 1 PiB ({DISK_SIZE_LIMIT})")]
    Size {
        /// The disk.
        disk: DiskIndex,
        /// Bytes claimed.
        size: u64,
    },
    /// The logical block size is not one that is supported.
    #[error("disk {disk}: logical block size {size} is not supported, only 512 and 4096 are")]
    BlockSize {
        /// The disk.
        disk: DiskIndex,
        /// Bytes.
        size: u32,
    },
    /// The bytes are no record that this release knows.
    #[error("record does not decode ({0}): was it written by a newer release?")]
    Malformed(String),
}

impl Record {
    /// Bytes of payload that belong to it.
    pub fn payload_length(&self) -> u32 {
        match self {
            Self::Write { length, .. } | Self::Backfill { length, .. } => *length,
            _ => 0,
        }
    }

    /// The disks that it tells of; a marker's are those that it is good for.
    pub fn disks(&self) -> DiskSet {
        let mut disks = DiskSet::default();
        match self {
            Self::Write { disk, .. }
            | Self::Backfill { disk, .. }
            | Self::Zero { disk, .. }
            | Self::Discard { disk, .. }
            | Self::DiskAdded { disk, .. }
            | Self::DiskResized { disk, .. }
            | Self::Gap { disk, .. }
            | Self::Consistent { disk }
            | Self::DiskRemoved { disk }
            | Self::Suspect { disk, .. } => disks.insert(*disk),
            Self::Marker { disks: good, .. } => disks = *good,
            Self::Until { .. } => {}
        }
        disks
    }

    /// The disk and the range whose content it sets or gives up, if it does.
    pub fn extent(&self) -> Option<(DiskIndex, ByteRange)> {
        let (disk, offset, length) = match self {
            Self::Write { disk, offset, length } | Self::Backfill { disk, offset, length } => {
                (*disk, *offset, u64::from(*length))
            }
            Self::Zero { disk, offset, length } | Self::Discard { disk, offset, length } => {
                (*disk, *offset, *length)
            }
            _ => return None,
        };
        ByteRange::checked(offset, length).map(|range| (disk, range))
    }

    /// Whether every limit holds.
    pub fn check(&self) -> Result<(), RecordError> {
        match self {
            Self::Write { disk, offset, length } | Self::Backfill { disk, offset, length } => {
                check_range(*disk, *offset, u64::from(*length))?;
                if *length > RECORD_PAYLOAD_LIMIT {
                    return Err(RecordError::Payload { disk: *disk, length: *length });
                }
                Ok(())
            }
            Self::Zero { disk, offset, length } | Self::Discard { disk, offset, length } => {
                check_range(*disk, *offset, *length)
            }
            Self::Marker { label, .. } => check_text("label", label, 0, LABEL_LIMIT),
            Self::DiskAdded { disk, name, size, logical_block_size } => {
                check_size(*disk, *size)?;
                if !LOGICAL_BLOCK_SIZES.contains(logical_block_size) {
                    let size = *logical_block_size;
                    return Err(RecordError::BlockSize { disk: *disk, size });
                }
                check_text("disk name", name, 1, DISK_NAME_LIMIT)
            }
            Self::DiskResized { disk, size } => check_size(*disk, *size),
            Self::Gap { disk, .. }
            | Self::Consistent { disk }
            | Self::DiskRemoved { disk }
            | Self::Suspect { disk, .. } => check_disk(*disk),
            Self::Until { .. } => Ok(()),
        }
    }

    /// Writes its bytes at the start of `table`; `None` where they do not fit.
    pub(crate) fn encode_into(&self, table: &mut [u8]) -> Option<usize> {
        // The one way to fail is a slice that is too short: a record has only shapes that bincode
        // encodes.
        bincode::encode_into_slice(self, table, bincode::config::standard()).ok()
    }

    /// The record at the start of `bytes`, and how many of them are its own.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), RecordError> {
        let config = bincode::config::standard().with_limit::<RECORD_CLAIM>();
        let (record, used): (Self, usize) = bincode::decode_from_slice(bytes, config)
            .map_err(|error| RecordError::Malformed(error.to_string()))?;
        record.check()?;
        Ok((record, used))
    }
}

fn check_disk(disk: DiskIndex) -> Result<(), RecordError> {
    if disk.0 < DiskIndex::LIMIT { Ok(()) } else { Err(RecordError::Disk(disk)) }
}

fn check_size(disk: DiskIndex, size: u64) -> Result<(), RecordError> {
    check_disk(disk)?;
    if size <= DISK_SIZE_LIMIT { Ok(()) } else { Err(RecordError::Size { disk, size }) }
}

fn check_range(disk: DiskIndex, offset: u64, length: u64) -> Result<(), RecordError> {
    check_disk(disk)?;
    match ByteRange::checked(offset, length) {
        Some(range) if !range.is_empty() => Ok(()),
        _ => Err(RecordError::Range { disk, offset, length }),
    }
}

fn check_text(
    what: &'static str,
    text: &str,
    least: usize,
    most: usize,
) -> Result<(), RecordError> {
    let fits = (least..=most).contains(&text.len()) && !text.chars().any(char::is_control);
    if fits { Ok(()) } else { Err(RecordError::Text { what, least, most }) }
}

#[cfg(test)]
pub(crate) mod tests;
