//! The log of a simulated run: what a target would make of the disk. It never judges.

use super::{SECTOR, Value, index};
use crate::sink::LogSink;
use crate::source::Gather;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redoubt_log::{ByteRange, DiskIndex, GapReason, Sequence};
use std::cell::RefCell;

/// The log, replayed.
pub(super) struct Log {
    /// How often it has no room for a write.
    no_room: RefCell<(StdRng, f64)>,
    pub(super) records: Vec<(u64, Vec<Value>)>,
    /// What it makes of the disk.
    pub image: Vec<Option<Value>>,
}

impl Log {
    pub fn new(sectors: usize, seed: u64, no_room: f64) -> Self {
        let no_room = RefCell::new((StdRng::seed_from_u64(seed), no_room));
        Self { no_room, records: Vec::new(), image: vec![None; sectors] }
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    fn push(&mut self, range: ByteRange, bytes: &[u8]) {
        let values: Vec<Value> = bytes
            .chunks_exact(index(SECTOR))
            .map(|sector| u64::from_le_bytes(sector[..8].try_into().unwrap()))
            .collect();
        self.replay(range.offset / SECTOR, &values);
        self.records.push((range.offset / SECTOR, values));
    }

    fn replay(&mut self, first: u64, values: &[Value]) {
        for (at, value) in values.iter().enumerate() {
            self.image[index(first) + at] = Some(*value);
        }
    }

    /// What the target does not have is gone.
    pub fn truncate(&mut self, position: usize) {
        self.records.truncate(position);
        let records = std::mem::take(&mut self.records);
        self.image.fill(None);
        records.iter().for_each(|(first, values)| self.replay(*first, values));
        self.records = records;
    }
}

impl LogSink for Log {
    fn write(&mut self, _disk: DiskIndex, range: ByteRange, data: Gather<'_>) {
        let bytes = data.concat();
        assert_eq!(bytes.len() as u64, range.length);
        self.push(range, &bytes);
    }
    fn zero(&mut self, _disk: DiskIndex, _range: ByteRange) {}
    fn discard(&mut self, _disk: DiskIndex, _range: ByteRange) {}
    fn backfill(&mut self, _disk: DiskIndex, range: ByteRange, data: &[u8]) {
        self.push(range, data);
    }
    fn checkpoint(&mut self) {}
    fn gap(&mut self, _disk: DiskIndex, _reason: GapReason) {}
    fn consistent(&mut self, _disk: DiskIndex) {}
    fn has_room(&self, _bytes: u64) -> bool {
        let mut no_room = self.no_room.borrow_mut();
        let (rng, chance) = &mut *no_room;
        !rng.random_bool(*chance)
    }
    fn position(&self) -> Sequence {
        Sequence(self.records.len() as u64)
    }
}
