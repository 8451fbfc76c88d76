//! A disk as it was at a recovery point: for each range the retention file nearest after the point,
//! else the replica. Opening reads indexes, not data; a view never writes, and stays exact while
//! apply goes on below it.

use super::error::{Result, StoreError};
use super::manifest::{Manifest, Point};
use super::retention::{Content, Entry, RetentionReader};
use super::rules::{Rule, holds};
use super::shared::{Shared, lock};
use redoubt_engine::storage::{BlockFile, Open, ReadRequest};
use redoubt_log::{ByteRange, DiskIndex, PointId, Sequence};
use std::sync::{Arc, Mutex};

/// Which point to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointChoice {
    /// The newest applied one that is good for the disk.
    Latest,
    /// This one.
    Id(PointId),
}

/// A disk at a point, read-only. While it is open its point is kept.
pub struct View {
    shared: Arc<Shared>,
    disk: DiskIndex,
    point: Point,
    size: u64,
    replica: Arc<dyn BlockFile>,
    /// The retention files after the point that have the disk, nearest first, and up to where they
    /// were looked for.
    files: Mutex<Files>,
    _pin: Pin,
}

struct Files {
    readers: Arc<Vec<Arc<RetentionReader>>>,
    /// The published files up to this position were looked at.
    looked_to: Sequence,
}

impl View {
    pub(super) fn open(shared: &Arc<Shared>, disk: DiskIndex, choice: PointChoice) -> Result<Self> {
        // The manifest's lock is held until the point is pinned: no point is dropped in between.
        let (point, size, pin) = {
            let manifest = lock(&shared.manifest);
            let size = manifest.kept_disk(disk).ok_or(StoreError::UnknownDisk(disk))?.size;
            let point = match choice {
                PointChoice::Id(id) => manifest.points.iter().find(|point| point.id == id),
                PointChoice::Latest => {
                    manifest.points.iter().rev().find(|point| point.disks.contains(disk))
                }
            };
            let point = point.ok_or_else(|| missing(shared, &manifest, disk, choice))?;
            if !point.disks.contains(disk) {
                return Err(StoreError::PointWithoutDisk { sequence: point.sequence, disk });
            }
            (point.clone(), size, Pin::new(shared, point.sequence))
        };
        let replica = shared.replica(disk, Open::ReadOnly)?;
        let files = Files { readers: Arc::default(), looked_to: point.sequence };
        let shared = shared.clone();
        let view = Self { shared, disk, point, size, replica, files: Mutex::new(files), _pin: pin };
        view.refresh()?;
        Ok(view)
    }

    /// The point.
    pub fn point(&self) -> &Point {
        &self.point
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills the buffer with what the disk held at `offset`.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let wanted = self.check(offset, buffer.len() as u64)?;
        let files = self.refresh()?;
        let mut missing = vec![wanted];
        for file in files.iter() {
            missing = self.fill(file, missing, offset, buffer)?;
        }
        if missing.is_empty() {
            return Ok(());
        }
        read_ranges(&*self.replica, &missing, offset, buffer)?;
        if holds(Rule::ReaderLooksAgain) {
            // An apply may have written the replica before that read: it published the old content
            // first.
            let seen = files.iter().map(|file| file.span().to).max().unwrap_or(self.point.sequence);
            for file in self.refresh()?.iter().filter(|file| file.span().to > seen) {
                missing = self.fill(file, missing, offset, buffer)?;
            }
        }
        Ok(())
    }

    /// The next range at or after `offset` that may hold other bytes than zero.
    pub fn next_data(&self, offset: u64) -> Result<Option<ByteRange>> {
        if offset >= self.size {
            return Ok(None);
        }
        let in_replica = self.replica.next_data(offset)?;
        let mut next = in_replica.map(|(start, length)| ByteRange::new(start, length));
        // Asked after the replica, for the same reason as in `read`.
        for file in self.refresh()?.iter() {
            let found = self.told(file, file.next_content(self.disk, offset))?;
            let Some(found) = found else { continue };
            next = Some(match next {
                Some(known) if known.offset <= found.offset => known,
                _ => found,
            });
        }
        let disk = ByteRange::new(0, self.size);
        Ok(next.and_then(|range| range.intersection(&disk)))
    }

    fn check(&self, offset: u64, length: u64) -> Result<ByteRange> {
        ByteRange::checked(offset, length)
            .filter(|range| range.end() <= self.size)
            .ok_or(StoreError::BeyondEnd { disk: self.disk, offset, length })
    }

    /// Opens what was published since the last look, and returns all, in the order in which they
    /// are asked.
    fn refresh(&self) -> Result<Arc<Vec<Arc<RetentionReader>>>> {
        let published = self.shared.published();
        let mut guard = lock(&self.files);
        let files = &mut *guard;
        for span in published.iter() {
            if span.to <= files.looked_to {
                continue;
            }
            if span.disks.contains(self.disk) {
                let reader = Arc::new(self.shared.open_retention(span)?);
                let readers = Arc::make_mut(&mut files.readers);
                let place = if holds(Rule::NearestWins) { readers.len() } else { 0 };
                readers.insert(place, reader);
            }
            files.looked_to = span.to;
        }
        Ok(files.readers.clone())
    }

    /// What a file gave; damage that a reader meets is remembered.
    fn told<T>(&self, file: &RetentionReader, given: Result<T>) -> Result<T> {
        let span = file.span();
        given.inspect_err(|error| self.shared.note_unread((span.from, span.to), error))
    }

    /// Takes from a file what it has of the missing ranges; returns what is still missing.
    fn fill(
        &self,
        file: &RetentionReader,
        missing: Vec<ByteRange>,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Vec<ByteRange>> {
        let mut left = Vec::new();
        let mut found: Vec<Entry> = Vec::new();
        for range in missing {
            found.clear();
            self.told(file, file.find(self.disk, range, |entry| found.push(entry)))?;
            let mut from = range.offset;
            let loaded = file.load(&found, |entry, content| {
                let Some(part) = entry.range().intersection(&range) else { return };
                if from < part.offset {
                    left.push(ByteRange::between(from, part.offset));
                }
                from = part.end();
                let wanted = slice(buffer, offset, part);
                match content {
                    Content::Zeros => wanted.fill(0),
                    Content::Bytes(bytes) => {
                        let skip = usize::try_from(part.offset - entry.range().offset);
                        let skip = skip.expect("a piece is far shorter than memory");
                        wanted.copy_from_slice(&bytes[skip..skip + wanted.len()]);
                    }
                }
            });
            self.told(file, loaded)?;
            if from < range.end() {
                left.push(ByteRange::between(from, range.end()));
            }
        }
        Ok(left)
    }
}

/// Why there is no such point: one that is durable only waits to be applied.
fn missing(
    shared: &Shared,
    manifest: &Manifest,
    disk: DiskIndex,
    choice: PointChoice,
) -> StoreError {
    let is_meant = |point: &&Point| match choice {
        PointChoice::Id(id) => point.id == id,
        PointChoice::Latest => point.disks.contains(disk),
    };
    let index = lock(&shared.index);
    match (index.waiting_points(manifest.applied).find(is_meant), choice) {
        (Some(point), _) => StoreError::PointWaits(point.id),
        (None, PointChoice::Id(id)) => StoreError::UnknownPoint(id),
        (None, PointChoice::Latest) => StoreError::NoPoint(disk),
    }
}

/// The bytes of `range` in a buffer that begins at `offset`.
fn slice(buffer: &mut [u8], offset: u64, range: ByteRange) -> &mut [u8] {
    let index = |at: u64| usize::try_from(at - offset).expect("a range lies within its buffer");
    &mut buffer[index(range.offset)..index(range.end())]
}

fn read_ranges(
    file: &dyn BlockFile,
    ranges: &[ByteRange],
    offset: u64,
    buffer: &mut [u8],
) -> Result<()> {
    let mut batch = Vec::with_capacity(ranges.len());
    let mut rest = buffer;
    let mut at = offset;
    for range in ranges {
        let skip = usize::try_from(range.offset - at).expect("a range lies within its buffer");
        let length = usize::try_from(range.length).expect("a range lies within its buffer");
        let (wanted, behind) = rest.split_at_mut(skip).1.split_at_mut(length);
        batch.push(ReadRequest { offset: range.offset, buffer: wanted });
        (rest, at) = (behind, range.end());
    }
    Ok(file.read(&mut batch)?)
}

/// Holds a point while a view of it is open.
struct Pin {
    shared: Arc<Shared>,
    sequence: Sequence,
}

impl Pin {
    fn new(shared: &Arc<Shared>, sequence: Sequence) -> Self {
        *lock(&shared.pins).entry(sequence).or_insert(0) += 1;
        Self { shared: shared.clone(), sequence }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = lock(&self.shared.pins);
        if let Some(count) = pins.get_mut(&self.sequence) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.sequence);
            }
        }
    }
}
