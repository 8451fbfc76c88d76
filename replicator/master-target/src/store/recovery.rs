//! Finds the journal's end when a machine is opened, by walking the chain from the first segment
//! that is needed. Before anything is appended, what lies behind the last good entry is erased,
//! durably.

use super::consistency::Consistency;
use super::error::{Result, StoreError};
use super::index::{JournalIndex, Mark, Segment};
use super::journal::{Fence, GROUP_LIMIT, Journal, JournalState, Tail, note_disks};
use super::layout::{MachineLayout, parse_segment_name};
use super::manifest::Manifest;
use super::rules::{Rule, holds};
use super::segment_reader::SegmentReader;
use super::suspicion;
use redoubt_engine::buffer::AlignedBuffer;
use redoubt_engine::storage::{BlockFile, Open, ReadRequest, Storage, WriteRequest};
use redoubt_log::frame::{Frame, FrameFlags, FrameHeader};
use redoubt_log::segment::{
    self, Chain, ChainValue, ENTRY_ALIGNMENT, ENTRY_HEADER_SIZE, EndReason, SEGMENT_HEADER_SIZE,
    Scan, SegmentError, SegmentHeader,
};
use redoubt_log::{DiskSet, Sequence, WallTime, is_zero};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

/// Bytes looked at, and erased, at once.
const ERASE_WINDOW: usize = 1 << 20;

/// Opens the journal of the machine that the manifest describes.
pub(super) fn recover(
    storage: &Arc<dyn Storage>,
    layout: &MachineLayout,
    manifest: &Manifest,
    segment_bytes: u64,
    now: WallTime,
) -> Result<(Journal, JournalIndex)> {
    let mut walk = Walk::new(&**storage, layout, manifest);
    let names = storage.list(&layout.journal())?;
    let numbers: Vec<u64> = names.iter().filter_map(|name| parse_segment_name(name)).collect();
    let floor = manifest.journal.segment;
    let spent = numbers.iter().filter(|number| **number < floor).map(|number| (*number, now));
    walk.index.spent = spent.collect();
    let needed: Vec<u64> = numbers.into_iter().filter(|number| *number >= floor).collect();
    let mut tail = None;
    for (place, number) in needed.iter().enumerate() {
        let path = layout.segment(*number);
        if *number != floor + place as u64 {
            return Err(StoreError::damaged(&path, 0, "the segment before it is missing"));
        }
        let is_last = place + 1 == needed.len();
        tail = walk.segment(&path, *number, is_last)?;
    }
    if walk.last < manifest.applied {
        let what = format!("ends at {}, but {} was applied", walk.last, manifest.applied);
        return Err(StoreError::damaged(&layout.journal(), 0, what));
    }
    Ok(walk.into_journal(storage, segment_bytes, tail))
}

/// Reads the journal up to `end` and not a byte further, and changes nothing: for an apply that was
/// cut and is to be finished whatever stands behind it. What comes of it takes no frames.
pub(super) fn recover_until(
    storage: &Arc<dyn Storage>,
    layout: &MachineLayout,
    manifest: &Manifest,
    end: Sequence,
) -> Result<(Journal, JournalIndex)> {
    let mut walk = Walk::new(&**storage, layout, manifest);
    let mut number = manifest.journal.segment;
    while walk.last < end {
        walk.segment_until(number, end)?;
        number += 1;
    }
    if walk.last != end {
        let what = format!("an apply to {end} was begun, but the journal has no such end");
        return Err(StoreError::damaged(&layout.journal(), 0, what));
    }
    Ok(walk.into_journal(storage, 0, None))
}

/// The way along the chain.
struct Walk<'a> {
    storage: &'a dyn Storage,
    layout: &'a MachineLayout,
    manifest: &'a Manifest,
    index: JournalIndex,
    last: Sequence,
    chain_value: ChainValue,
    consistency: Consistency,
    written: DiskSet,
    removed: DiskSet,
}

impl<'a> Walk<'a> {
    fn new(storage: &'a dyn Storage, layout: &'a MachineLayout, manifest: &'a Manifest) -> Self {
        let mut written = DiskSet::default();
        let with_data = manifest.disks.iter().filter(|disk| disk.has_data);
        with_data.for_each(|disk| written.insert(disk.index));
        Self {
            storage,
            layout,
            manifest,
            index: JournalIndex::default(),
            last: manifest.journal.after,
            chain_value: ChainValue::default(),
            consistency: Consistency::of_applied(manifest),
            written,
            removed: DiskSet::default(),
        }
    }

    /// Walks one segment. The last one becomes the tail, or is removed where its creation was cut.
    fn segment(&mut self, path: &Path, number: u64, is_last: bool) -> Result<Option<Tail>> {
        let file = self.storage.open(path, Open::ReadWrite)?;
        let Some(header) = read_header(&*file, path, is_last)? else {
            drop(file);
            self.storage.remove(path)?;
            self.storage.sync_directory(&self.layout.journal())?;
            return Ok(None);
        };
        self.check_header(path, &header, number)?;
        let mut chain = Chain::start(&header);
        let mut offset = SEGMENT_HEADER_SIZE as u64;
        let start = Mark { after: self.last, offset, chain };
        let mut segment = Segment::new(number, start);
        let mut reader = SegmentReader::new(file.clone());
        while self.entry(path, &mut reader, &mut segment, (&mut offset, &mut chain))? {}
        self.chain_value = chain.value();
        self.index.segments.push_back(segment);
        if !is_last {
            return Ok(None);
        }
        if holds(Rule::EraseBehindTail) {
            erase_behind(&*file, path, offset)?;
        }
        // What was read here may have been written by a process that died before its sync.
        file.sync()?;
        self.storage.sync_directory(&self.layout.journal())?;
        let generation = header.generation;
        Ok(Some(Tail { file, generation, offset, chain, waiting: Vec::new() }))
    }

    /// Walks one segment as far as `end`, where entries must stand until there.
    fn segment_until(&mut self, number: u64, end: Sequence) -> Result<()> {
        let path = self.layout.segment(number);
        let file = self.storage.open(&path, Open::ReadOnly)?;
        let Some(header) = read_header(&*file, &path, false)? else { return Ok(()) };
        self.check_header(&path, &header, number)?;
        let mut chain = Chain::start(&header);
        let mut offset = SEGMENT_HEADER_SIZE as u64;
        let mut segment = Segment::new(number, Mark { after: self.last, offset, chain });
        let mut reader = SegmentReader::new(file);
        while self.last < end
            && self.entry(&path, &mut reader, &mut segment, (&mut offset, &mut chain))?
        {}
        self.chain_value = chain.value();
        self.index.segments.push_back(segment);
        let next = self.layout.segment(number + 1);
        let is_last = || {
            let opened = self.storage.open(&next, Open::ReadOnly);
            opened.is_err_and(|error| error.source.kind() == ErrorKind::NotFound)
        };
        if self.last < end && is_last() {
            return Err(StoreError::damaged_at(&path, offset, "a journal entry is damaged"));
        }
        Ok(())
    }

    /// Takes the entry that follows into the segment; whether there was one.
    fn entry(
        &mut self,
        path: &Path,
        reader: &mut SegmentReader,
        segment: &mut Segment,
        (offset, chain): (&mut u64, &mut Chain),
    ) -> Result<bool> {
        let entry = match reader.scan(*offset, reader.size(), chain)? {
            Scan::Entry(entry) => entry,
            Scan::End(EndReason::Version { version }) => return Err(newer(path, version)),
            Scan::More { .. } | Scan::End(_) => return Ok(false),
        };
        self.frame(path, *offset, &entry.frame)?;
        let mark = Mark { after: segment.last, offset: *offset, chain: *chain };
        *offset += entry.length as u64;
        *chain = entry.chain;
        segment.push(mark, *offset, entry.header.last);
        Ok(true)
    }

    /// The journal's writing end and its index, as far as the way went.
    fn into_journal(
        self,
        storage: &Arc<dyn Storage>,
        segment_bytes: u64,
        tail: Option<Tail>,
    ) -> (Journal, JournalIndex) {
        let manifest = self.manifest;
        let journal = Journal {
            storage: storage.clone(),
            layout: self.layout.clone(),
            machine: manifest.machine,
            segment_bytes,
            fence: Fence {
                generation: manifest.generation,
                incarnation: manifest.incarnation,
                role_epoch: manifest.role_epoch,
            },
            sizes: manifest.disks.iter().map(|disk| (disk.index, disk.size)).collect(),
            consistency: self.consistency,
            written: self.written,
            removed: self.removed,
            let_go: self.removed,
            tail,
            next_segment: manifest.journal.segment + self.index.segments.len() as u64,
            chain_value: self.chain_value,
            appended: self.last,
            durable: self.last,
            state: JournalState::Ready,
        };
        (journal, self.index)
    }

    fn check_header(&self, path: &Path, header: &SegmentHeader, number: u64) -> Result<()> {
        let is_first = self.index.segments.is_empty();
        if header.machine != self.manifest.machine || header.number != number {
            return Err(StoreError::damaged(path, 0, "the segment is another's"));
        }
        if !is_first && header.chain_start != self.chain_value {
            // A segment is made only when all entries of the one before are durable.
            let before = self.layout.segment(number - 1);
            let end = self.index.segments.back().map_or(0, |segment| segment.end);
            return Err(StoreError::damaged_at(&before, end, "a journal entry is damaged"));
        }
        Ok(())
    }

    /// Takes in what a frame says, as far as it is not applied.
    fn frame(&mut self, path: &Path, offset: u64, frame: &Frame<'_>) -> Result<()> {
        let damaged = |what: String| StoreError::damaged_at(path, offset, what);
        let header: &FrameHeader = frame.header();
        if header.previous != self.last {
            return Err(damaged(format!(
                "the entry follows {}, not {}",
                header.previous, self.last
            )));
        }
        self.last = header.last;
        if header.last <= self.manifest.applied {
            return Ok(());
        }
        let records = frame.decode_table().map_err(|error| damaged(error.to_string()))?;
        self.consistency.take(header, &records);
        note_disks(&records, &mut self.written, &mut self.removed);
        suspicion::told(header, &records).into_iter().for_each(|it| self.index.suspect(it));
        if header.flags.contains(FrameFlags::ENDS_WITH_MARKER) {
            self.index.last_marker = header.last;
            let marker = records.last().map(|placed| &placed.record);
            let point = marker.and_then(|marker| self.consistency.point(marker, header.last));
            point.into_iter().for_each(|point| self.index.point_waits(point));
        }
        Ok(())
    }
}

/// The segment's header; `None` where this is the last segment and a cut ended its creation.
fn read_header(file: &dyn BlockFile, path: &Path, is_last: bool) -> Result<Option<SegmentHeader>> {
    let mut block = AlignedBuffer::zeroed(SEGMENT_HEADER_SIZE);
    if file.size() >= SEGMENT_HEADER_SIZE as u64 {
        file.read(&mut [ReadRequest { offset: 0, buffer: &mut block }])?;
    }
    match SegmentHeader::parse(block.first_chunk().expect("the buffer has the header's size")) {
        Ok(header) => Ok(Some(header)),
        Err(SegmentError::Version { version }) => Err(newer(path, version)),
        // The header is durable before the first entry is written: without it there is none.
        Err(_) if is_last && is_unused(file)? => Ok(None),
        Err(error) => Err(StoreError::damaged(path, 0, error.to_string())),
    }
}

/// What a later release has written must be taken neither for damage nor for what a cut left.
fn newer(path: &Path, version: u16) -> StoreError {
    let (version, known) = (u32::from(version), u32::from(segment::VERSION));
    StoreError::NewerVersion { path: path.to_owned(), version, known }
}

/// Whether no entry was ever written to the segment.
fn is_unused(file: &dyn BlockFile) -> Result<bool> {
    let start = SEGMENT_HEADER_SIZE as u64;
    let Some(left) = file.size().checked_sub(start).filter(|left| *left > 0) else {
        return Ok(true);
    };
    let length = usize::try_from(left).map_or(ENTRY_ALIGNMENT, |left| left.min(ENTRY_ALIGNMENT));
    let mut block = AlignedBuffer::zeroed(length);
    file.read(&mut [ReadRequest { offset: start, buffer: &mut block }])?;
    Ok(is_zero(&block))
}

/// Overwrites with zeros, durably, whatever stands behind the last good entry: else a frame that
/// survived a cut could follow a new one later. A whole frame far behind proves that the entry here
/// was durable once, and is damage.
fn erase_behind(file: &dyn BlockFile, path: &Path, end: u64) -> Result<()> {
    let left = usize::try_from(file.size() - end).unwrap_or(ERASE_WINDOW);
    let mut window = AlignedBuffer::zeroed(left.min(ERASE_WINDOW));
    let mut used = Vec::new();
    let mut offset = end;
    while offset < file.size() {
        let left = usize::try_from(file.size() - offset).unwrap_or(ERASE_WINDOW);
        let length = left.min(ERASE_WINDOW);
        file.read(&mut [ReadRequest { offset, buffer: &mut window[..length] }])?;
        if offset >= end + GROUP_LIMIT && starts_frame(&window[..length]) {
            return Err(StoreError::damaged_at(path, end, "a journal entry is damaged"));
        }
        if !is_zero(&window[..length]) {
            used.push((offset, length));
        }
        offset += length as u64;
    }
    window.fill(0);
    for (offset, length) in used {
        file.write(&[WriteRequest { offset, data: &window[..length] }])?;
    }
    Ok(())
}

/// Whether an entry's place holds the header of a frame.
fn starts_frame(window: &[u8]) -> bool {
    let places = window.chunks_exact(ENTRY_ALIGNMENT);
    places.into_iter().any(|place| FrameHeader::parse(&place[ENTRY_HEADER_SIZE..]).is_ok())
}
