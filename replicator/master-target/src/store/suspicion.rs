//! Which points may hold wrong bytes though nothing of them was missed when they were taken: those
//! of a disk before the place in the log where a comparison has found its replica to differ. Where
//! the wrong bytes came from nobody knows, so every older point of the disk is meant.

use super::manifest::Point;
use redoubt_log::frame::{FrameHeader, PlacedRecord};
use redoubt_log::{DiskIndex, Record, Sequence, WallTime};
use serde::{Deserialize, Serialize};

/// A replica was found to differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suspicion {
    /// Of which disk.
    pub disk: DiskIndex,
    /// Points before this are meant.
    pub before: Sequence,
    /// When it was found, by the protected machine's clock.
    pub at: WallTime,
    /// Bytes that differed.
    pub bytes: u64,
    /// Ranges that they lay in.
    pub ranges: u32,
    /// First byte of the first range.
    pub offset: u64,
}

impl Suspicion {
    /// Whether the point is meant.
    pub fn is_of(&self, point: &Point) -> bool {
        point.disks.contains(self.disk) && point.sequence < self.before
    }
}

/// What a frame's records tell. The frame's own point, at its end, is not meant: what differed is
/// not part of it, or was told anew.
pub(super) fn told(header: &FrameHeader, records: &[PlacedRecord]) -> Vec<Suspicion> {
    let tell = |placed: &PlacedRecord| match placed.record {
        Record::Suspect { disk, at, bytes, ranges, offset } => {
            Some(Suspicion { disk, before: header.last, at, bytes, ranges, offset })
        }
        _ => None,
    };
    records.iter().filter_map(tell).collect()
}

/// Takes a newer one in: it means all the points that an older one of its disk does.
pub(super) fn take(known: &mut Vec<Suspicion>, newer: Suspicion) {
    known.retain(|known| known.disk != newer.disk);
    known.push(newer);
}
