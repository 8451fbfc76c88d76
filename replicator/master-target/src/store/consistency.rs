//! Which disks the log tells wholly at a position, by the records alone: gaps, and what ends them.
//! It knows no disk. A generation's first frame finds no disk consistent, whatever the one before
//! said.

use super::manifest::{Manifest, Point};
use redoubt_log::frame::{FrameHeader, PlacedRecord};
use redoubt_log::{DiskIndex, DiskSet, Generation, Record, Sequence};
use std::collections::BTreeMap;

/// The state at one position.
#[derive(Clone, Debug)]
pub(super) struct Consistency {
    generation: Generation,
    since: BTreeMap<DiskIndex, Sequence>,
}

impl Consistency {
    /// At the applied position.
    pub(super) fn of_applied(manifest: &Manifest) -> Self {
        let since =
            manifest.disks.iter().filter_map(|disk| Some((disk.index, disk.consistent_from?)));
        Self { generation: manifest.applied_generation, since: since.collect() }
    }

    /// Moves on past a frame.
    pub(super) fn take(&mut self, header: &FrameHeader, records: &[PlacedRecord]) {
        if header.generation != self.generation {
            self.generation = header.generation;
            self.since.clear();
        }
        for placed in records {
            match placed.record {
                Record::Gap { disk, .. }
                | Record::DiskResized { disk, .. }
                | Record::DiskRemoved { disk } => {
                    self.since.remove(&disk);
                }
                Record::Consistent { disk } => {
                    // A folded frame has no positions inside: its last one is what can be said.
                    self.since.insert(disk, header.last);
                }
                _ => {}
            }
        }
    }

    /// The recovery point that a marker makes here, where any disk is whole. Of the disks that the
    /// machine has it knows nothing: [`Manifest::judged`] does.
    pub(super) fn point(&self, marker: &Record, sequence: Sequence) -> Option<Point> {
        let Record::Marker { point, kind, at, label, disks, proven } = marker else {
            return None;
        };
        let disks = DiskSet(disks.0 & self.disks().0);
        (!disks.is_empty()).then(|| Point {
            id: *point,
            taken_at: *at,
            kind: *kind,
            label: label.clone(),
            sequence,
            disks,
            complete: false,
            proven: *proven,
        })
    }

    /// The generation that the log is in.
    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    /// From where on the disk is consistent, if it is.
    pub(super) fn since(&self, disk: DiskIndex) -> Option<Sequence> {
        self.since.get(&disk).copied()
    }

    /// The disks that are.
    pub(super) fn disks(&self) -> DiskSet {
        let mut set = DiskSet::default();
        self.since.keys().for_each(|disk| set.insert(*disk));
        set
    }
}
