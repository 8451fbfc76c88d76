//! What one file of the lying storage holds: what its readers see, and what a cut may bring back.
//! Must never forget the durable content of a sector before a sync has replaced it.

use std::collections::BTreeMap;
use std::io;

use rand::Rng;
use rand::rngs::StdRng;

/// What the medium writes whole or not at all.
pub(super) const SECTOR_BYTES: u64 = 512;
const SECTOR_LENGTH: usize = 512;

/// Earlier contents kept of one sector between two syncs: the durable one and the latest few. More
/// would cost memory for hot sectors and find nothing new.
const VERSIONS_MAX: usize = 8;

type Content = Box<[u8; SECTOR_LENGTH]>;

/// `None` reads as zeros and takes no space.
type Version = Option<Content>;

/// A file's bytes by sectors.
pub(super) struct Medium {
    size: u64,
    size_durable: bool,
    reserved: bool,
    current: BTreeMap<u64, Content>,
    /// The contents since the last sync, the durable one first, of each sector changed since.
    unsynced: BTreeMap<u64, Vec<Version>>,
    /// As `unsynced`, for changes that a failed sync gave up: later syncs do not bring them.
    forgotten: BTreeMap<u64, Vec<Version>>,
}

impl Medium {
    pub(super) fn new(size: u64, reserved: bool) -> Self {
        Medium {
            size,
            size_durable: false,
            reserved,
            current: BTreeMap::new(),
            unsynced: BTreeMap::new(),
            forgotten: BTreeMap::new(),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that it takes from the capacity.
    pub(super) fn space(&self) -> u64 {
        if self.reserved {
            self.size.next_multiple_of(SECTOR_BYTES)
        } else {
            self.current.len() as u64 * SECTOR_BYTES
        }
    }

    /// Bytes that a write would add to that.
    pub(super) fn growth(&self, offset: u64, length: u64) -> u64 {
        if self.reserved || length == 0 {
            return 0;
        }
        let (first, last) = (offset / SECTOR_BYTES, (offset + length - 1) / SECTOR_BYTES);
        let present = self.current.range(first..=last).count() as u64;
        (last - first + 1 - present) * SECTOR_BYTES
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) {
        for (sector, from, range) in pieces(offset, buffer.len()) {
            let piece = &mut buffer[range];
            match self.current.get(&sector) {
                Some(content) => piece.copy_from_slice(&content[from..from + piece.len()]),
                None => piece.fill(0),
            }
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        for (sector, from, range) in pieces(offset, data.len()) {
            let piece = &data[range];
            let mut content = self.content(sector);
            content[from..from + piece.len()].copy_from_slice(piece);
            self.set(sector, Some(content));
        }
    }

    pub(super) fn zero(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let sectors: Vec<u64> = self
            .current
            .range(offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES))
            .map(|(sector, _)| *sector)
            .collect();
        for sector in sectors {
            let start = sector * SECTOR_BYTES;
            let (from, to) = (start.max(offset), (start + SECTOR_BYTES).min(end));
            if to - from == SECTOR_BYTES {
                self.set(sector, None);
            } else if from < to {
                let mut content = self.content(sector);
                content[length_of(from - start)..length_of(to - start)].fill(0);
                self.set(sector, Some(content));
            }
        }
    }

    /// The next run of sectors that are stored.
    pub(super) fn next_data(&self, offset: u64) -> Option<(u64, u64)> {
        let mut run: Option<(u64, u64)> = None;
        for sector in self.current.range(offset / SECTOR_BYTES..).map(|(sector, _)| *sector) {
            match &mut run {
                None => run = Some((sector, sector + 1)),
                Some((_, end)) if *end == sector => *end += 1,
                Some(_) => break,
            }
        }
        let (first, last) = run?;
        let start = (first * SECTOR_BYTES).max(offset);
        let end = (last * SECTOR_BYTES).min(self.size);
        (start < end).then(|| (start, end - start))
    }

    /// Makes everything durable that no failed sync gave up.
    pub(super) fn sync(&mut self) {
        self.size_durable = true;
        self.unsynced.clear();
    }

    /// What Linux does when a sync fails: the pages are taken for clean, readers still see them,
    /// and the next sync succeeds without them.
    pub(super) fn sync_failed(&mut self) {
        for (sector, versions) in std::mem::take(&mut self.unsynced) {
            self.forgotten.entry(sector).or_insert(versions);
        }
    }

    /// Keeps or takes back each sector that is not durable, by coin, as some earlier version.
    pub(super) fn crash(&mut self, rng: &mut StdRng) {
        // By fair coins alone no larger structure would ever survive whole, nor be lost whole.
        let keep = [0.0, 0.5, 0.9, 1.0][rng.random_range(0..4)];
        let mut doubtful = std::mem::take(&mut self.forgotten);
        doubtful.append(&mut self.unsynced);
        for (sector, mut versions) in doubtful {
            if !rng.random_bool(keep) {
                match versions.swap_remove(rng.random_range(0..versions.len())) {
                    Some(content) => self.current.insert(sector, content),
                    None => self.current.remove(&sector),
                };
            }
        }
        if !self.size_durable && !rng.random_bool(keep) {
            self.size = 0;
            self.current.clear();
        }
        self.size_durable = true;
    }

    /// The medium decays: one bit in the range changes, durably and unsaid.
    pub(super) fn flip_bit(&mut self, offset: u64, length: u64, rng: &mut StdRng) {
        if length == 0 {
            return;
        }
        let position = offset + rng.random_range(0..length);
        let mut content = self.content(position / SECTOR_BYTES);
        content[length_of(position % SECTOR_BYTES)] ^= 1 << rng.random_range(0..8);
        self.current.insert(position / SECTOR_BYTES, content);
    }

    fn content(&self, sector: u64) -> Content {
        self.current.get(&sector).cloned().unwrap_or_else(|| Box::new([0; SECTOR_LENGTH]))
    }

    fn set(&mut self, sector: u64, new: Version) {
        let old = match new {
            Some(content) => self.current.insert(sector, content),
            None => self.current.remove(&sector),
        };
        let forgotten = &mut self.forgotten;
        let versions = self
            .unsynced
            .entry(sector)
            .or_insert_with(|| forgotten.remove(&sector).unwrap_or_default());
        versions.push(old);
        if versions.len() > VERSIONS_MAX {
            // The first stays: it is the durable one.
            versions.remove(1);
        }
    }
}

/// What the system says where no space is left.
pub(super) fn no_space() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSPC)
}

/// Splits a range at sectors: the sector, the first byte in it, and the range of the caller's
/// bytes.
fn pieces(
    offset: u64,
    length: usize,
) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let position = offset + done as u64;
        let from = length_of(position % SECTOR_BYTES);
        let start = done;
        done += (SECTOR_LENGTH - from).min(length - done);
        Some((position / SECTOR_BYTES, from, start..done))
    })
}

/// A length within one sector.
fn length_of(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a length within a sector fits")
}
