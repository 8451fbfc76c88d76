//! The journal's writing end: frames go to the tail of the last segment, one sync makes a group of
//! them durable. It states nothing as durable before that sync has returned, and never waits for an
//! apply.

use super::consistency::Consistency;
use super::error::{Result, StoreError};
use super::index::{JournalIndex, Mark, Segment};
use super::layout::MachineLayout;
use super::manifest::{JournalFloor, Point};
use super::rules::{Rule, holds};
use super::shared::{create_anew, lock};
use super::suspicion::{self, Suspicion};
use redoubt_engine::buffer::AlignedBuffer;
use redoubt_engine::storage::{BlockFile, Open, Storage, WriteRequest};
use redoubt_log::frame::{Frame, FrameFlags, FrameHeader, PlacedRecord};
use redoubt_log::segment::{
    Chain, ChainValue, ENTRY_HEADER_SIZE, SEGMENT_HEADER_SIZE, SegmentHeader, entry_length,
};
use redoubt_log::{
    DiskIndex, DiskSet, Generation, Incarnation, MachineId, Record, RoleEpoch, Sequence,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// The most bytes that wait for one sync. Recovery relies on it: what a power cut can leave behind
/// the last good entry lies within this distance, so a whole entry beyond proves damage.
pub(super) const GROUP_LIMIT: u64 = 16 << 20;

/// What a frame must match to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fence {
    pub(super) generation: Generation,
    pub(super) incarnation: Incarnation,
    pub(super) role_epoch: RoleEpoch,
}

/// What an append did.
#[derive(Debug)]
pub struct Appended {
    /// Entries of the batch that stand in the journal, not durable yet.
    pub entries: usize,
    /// Why the next one does not, if one is left. Where [`StoreError::is_full`] holds, try again
    /// later.
    pub stopped: Option<StoreError>,
}

/// Whether the journal takes frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalState {
    /// It does.
    Ready,
    /// There was no room for the last ones: nothing is acknowledged until there is.
    Full,
    /// It failed, and takes nothing until the store is opened again.
    Failed(String),
}

/// The writing end.
pub(super) struct Journal {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) layout: MachineLayout,
    pub(super) machine: MachineId,
    pub(super) segment_bytes: u64,
    pub(super) fence: Fence,
    /// Each known disk's size.
    pub(super) sizes: BTreeMap<DiskIndex, u64>,
    /// What the records say at the tail, durable or not.
    pub(super) consistency: Consistency,
    /// Disks that any record wrote to.
    pub(super) written: DiskSet,
    /// Disks whose protection any record ended.
    pub(super) removed: DiskSet,
    /// Those of them of which that is durable.
    pub(super) let_go: DiskSet,
    pub(super) tail: Option<Tail>,
    /// The number of the next segment, and what its first entry follows.
    pub(super) next_segment: u64,
    pub(super) chain_value: ChainValue,
    pub(super) appended: Sequence,
    pub(super) durable: Sequence,
    pub(super) state: JournalState,
}

/// The open segment.
pub(super) struct Tail {
    pub(super) file: Arc<dyn BlockFile>,
    pub(super) generation: Generation,
    pub(super) offset: u64,
    pub(super) chain: Chain,
    /// Entries that wait for the sync.
    pub(super) waiting: Vec<Waiting>,
}

/// An entry that waits for the sync.
pub(super) struct Waiting {
    mark: Mark,
    end: u64,
    last: Sequence,
    is_marker: bool,
    /// What its marker makes.
    point: Option<Point>,
    suspicions: Vec<Suspicion>,
}

/// An entry that is about to be written.
struct Staged {
    records: Vec<PlacedRecord>,
    header: FrameHeader,
    waiting: Waiting,
    /// What the entry after it follows.
    chain: Chain,
}

impl Journal {
    /// Takes entries, each an aligned buffer with its frame at [`ENTRY_HEADER_SIZE`]. Stops at the
    /// first that does not belong here or has no room.
    pub(super) fn append(
        &mut self,
        index: &Mutex<JournalIndex>,
        batch: &mut [&mut [u8]],
    ) -> Appended {
        let mut entries = 0;
        while entries < batch.len() {
            match self.append_run(index, &mut batch[entries..]) {
                Ok(count) => entries += count,
                Err(error) => {
                    if error.is_full() {
                        self.state = JournalState::Full;
                        lock(index).full = true;
                    }
                    return Appended { entries, stopped: Some(error) };
                }
            }
        }
        if self.state == JournalState::Full {
            self.state = JournalState::Ready;
            lock(index).full = false;
        }
        Appended { entries, stopped: None }
    }

    /// Makes durable what was appended; returns the last durable sequence. Only then may it be
    /// acknowledged.
    pub(super) fn commit(&mut self, index: &Mutex<JournalIndex>) -> Result<Sequence> {
        self.check_state()?;
        let waiting = self.tail.as_ref().filter(|tail| !tail.waiting.is_empty());
        let Some(tail) = waiting else { return Ok(self.durable) };
        let removed = self.removed;
        let synced = if holds(Rule::AckAfterSync) { tail.file.sync() } else { Ok(()) };
        if let Err(error) = synced {
            // A failed sync may have given its writes up: only what recovery reads back counts from
            // here on.
            return Err(self.fail(error));
        }
        let Some(tail) = self.tail.as_mut() else { return Ok(self.durable) };
        let mut index = lock(index);
        let index = &mut *index;
        let segment = index.segments.back_mut().expect("an open segment is in the index");
        let (mut marker, mut points, mut suspicions) = (None, Vec::new(), Vec::new());
        for waiting in tail.waiting.drain(..) {
            segment.push(waiting.mark, waiting.end, waiting.last);
            marker = if waiting.is_marker { Some(waiting.last) } else { marker };
            points.extend(waiting.point);
            suspicions.extend(waiting.suspicions);
        }
        self.durable = segment.last;
        self.let_go = removed;
        points.into_iter().for_each(|point| index.point_waits(point));
        suspicions.into_iter().for_each(|suspicion| index.suspect(suspicion));
        index.last_marker = marker.unwrap_or(index.last_marker);
        Ok(self.durable)
    }

    /// Where the journal goes on without any of its segments, once all that they hold is applied:
    /// the way out where there is no room for one more beside them.
    pub(super) fn floor_without_segments(&self, applied: Sequence) -> Option<JournalFloor> {
        let spent = self.tail.is_some() && self.appended == self.durable && self.durable == applied;
        (spent && self.state == JournalState::Full)
            .then_some(JournalFloor { segment: self.next_segment, after: applied })
    }

    /// Appends at least one entry, and as many more as fit the open segment and the group.
    fn append_run(
        &mut self,
        index: &Mutex<JournalIndex>,
        batch: &mut [&mut [u8]],
    ) -> Result<usize> {
        self.check_state()?;
        let first = self.parse(batch[0])?;
        self.make_room(index, &first)?;
        let mut staged: Vec<Staged> = Vec::new();
        let mut refused = None;
        for entry in batch.iter_mut() {
            match self.stage(entry, staged.last()) {
                Ok(Some(next)) => staged.push(next),
                Ok(None) => break,
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        if let (true, Some(error)) = (staged.is_empty(), refused) {
            return Err(error);
        }
        self.write(&staged, batch)?;
        let count = staged.len();
        staged.into_iter().for_each(|staged| self.take(staged));
        Ok(count)
    }

    /// Opens the next segment where this one has no room for the frame, and ends the group where it
    /// is full.
    fn make_room(&mut self, index: &Mutex<JournalIndex>, first: &FrameHeader) -> Result<()> {
        let length = entry_length(first.frame_length()) as u64;
        let fits = self.tail.as_ref().is_some_and(|tail| {
            tail.generation == first.generation && tail.offset + length <= tail.file.size()
        });
        if !fits {
            // The next segment's existence proves that this one's entries were durable.
            self.commit(index)?;
            return self.open_segment(index, first.generation, length);
        }
        let group = self.tail.as_ref().map_or(0, |tail| tail.group_bytes());
        if group + length > GROUP_LIMIT {
            self.commit(index)?;
        }
        Ok(())
    }

    /// Checks an entry against the log as it will be after the ones staged before it, and chains
    /// it. `None` where it must wait for another segment or group.
    fn stage(&self, entry: &mut [u8], before: Option<&Staged>) -> Result<Option<Staged>> {
        let header = self.parse(entry)?;
        let last = before.map_or(self.appended, |staged| staged.header.last);
        let records = self.admit(&header, entry, last)?;
        let tail = self.tail.as_ref().expect("room was made");
        let (offset, mut chain) =
            before.map_or((tail.offset, tail.chain), |staged| (staged.waiting.end, staged.chain));
        let end = offset + entry_length(header.frame_length()) as u64;
        let group_start = tail.waiting.first().map_or(tail.offset, |first| first.mark.offset);
        let fits = header.generation == tail.generation
            && end <= tail.file.size()
            && end - group_start <= GROUP_LIMIT;
        if !fits {
            return Ok(None);
        }
        let mark = Mark { after: last, offset, chain };
        chain.append(entry).map_err(|error| self.refused(error.to_string()))?;
        let is_marker = header.flags.contains(FrameFlags::ENDS_WITH_MARKER);
        let waiting = Waiting {
            mark,
            end,
            last: header.last,
            is_marker,
            point: None,
            suspicions: Vec::new(),
        };
        Ok(Some(Staged { records, header, waiting, chain }))
    }

    fn parse(&self, entry: &[u8]) -> Result<FrameHeader> {
        FrameHeader::parse(entry.get(ENTRY_HEADER_SIZE..).unwrap_or_default())
            .map_err(|error| self.refused(error.to_string()))
    }

    /// Whether the frame may follow `last`: of this machine, not fenced, the next one, and possible
    /// to apply.
    fn admit(
        &self,
        header: &FrameHeader,
        entry: &[u8],
        last: Sequence,
    ) -> Result<Vec<PlacedRecord>> {
        let fence = self.fence;
        let said = Fence {
            generation: header.generation,
            incarnation: header.incarnation,
            role_epoch: header.role_epoch,
        };
        let reason = if header.machine != self.machine {
            Some(format!("it is of machine {}", header.machine))
        } else if said.role_epoch != fence.role_epoch {
            let (own, its) = (fence.role_epoch, said.role_epoch);
            Some(format!("its role epoch is {its}, here it is {own}: reprotect the machine first"))
        } else if said != fence {
            let (own, its) = (fence.incarnation, said.incarnation);
            Some(format!("generation {} incarnation {its} is fenced by {own}", said.generation))
        } else if header.previous != last {
            Some(format!("it follows {}, the journal ends at {last}", header.previous))
        } else {
            None
        };
        if let Some(reason) = reason {
            return Err(self.refused(reason));
        }
        let bytes = entry.get(ENTRY_HEADER_SIZE..ENTRY_HEADER_SIZE + header.frame_length());
        let records = Frame::check(bytes.unwrap_or_default())
            .and_then(|frame| frame.decode_table())
            .map_err(|error| self.refused(error.to_string()))?;
        let wrong = records.iter().find_map(|placed| self.objection(&placed.record));
        wrong.map_or(Ok(records), |reason| Err(self.refused(reason)))
    }

    /// What makes a record impossible to apply.
    fn objection(&self, record: &Record) -> Option<String> {
        let size_of = |disk| self.sizes.get(&disk).copied();
        if let Some((disk, range)) = record.extent() {
            return match size_of(disk) {
                Some(size) if range.end() <= size => None,
                Some(size) => Some(format!("disk {disk}: {range} is beyond its {size} bytes")),
                None => Some(format!("disk {disk} was not announced")),
            };
        }
        match record {
            Record::DiskAdded { disk, size, .. } | Record::DiskResized { disk, size } => {
                let known = size_of(*disk);
                (known != Some(*size)).then(|| {
                    format!(
                        "disk {disk} of {size} bytes was not announced: the agent must reconnect"
                    )
                })
            }
            Record::Gap { disk, .. }
            | Record::Consistent { disk }
            | Record::DiskRemoved { disk }
            | Record::Suspect { disk, .. } => {
                size_of(*disk).is_none().then(|| format!("disk {disk} was not announced"))
            }
            _ => None,
        }
    }

    /// Writes the staged entries, one behind the other.
    fn write(&mut self, staged: &[Staged], batch: &[&mut [u8]]) -> Result<()> {
        let tail = self.tail.as_ref().expect("room was made");
        let requests: Vec<WriteRequest<'_>> = staged
            .iter()
            .zip(batch)
            .map(|(staged, entry)| WriteRequest {
                offset: staged.waiting.mark.offset,
                data: &entry[..entry_length(staged.header.frame_length())],
            })
            .collect();
        match tail.file.write(&requests) {
            Ok(()) => Ok(()),
            Err(error) => {
                let error = StoreError::from(error);
                // Without room nothing of it counts: the next attempt writes the same place again.
                if error.is_full() { Err(error) } else { Err(self.fail(error)) }
            }
        }
    }

    fn take(&mut self, mut staged: Staged) {
        self.consistency.take(&staged.header, &staged.records);
        let last = staged.records.last();
        staged.waiting.point =
            last.and_then(|last| self.consistency.point(&last.record, staged.header.last));
        staged.waiting.suspicions = suspicion::told(&staged.header, &staged.records);
        note_disks(&staged.records, &mut self.written, &mut self.removed);
        self.appended = staged.header.last;
        let tail = self.tail.as_mut().expect("room was made");
        (tail.offset, tail.chain) = (staged.waiting.end, staged.chain);
        self.chain_value = tail.chain.value();
        tail.waiting.push(staged.waiting);
    }

    /// Makes the next segment, with room for an entry of `length` bytes at least.
    fn open_segment(
        &mut self,
        index: &Mutex<JournalIndex>,
        generation: Generation,
        length: u64,
    ) -> Result<()> {
        let header = SegmentHeader {
            machine: self.machine,
            generation,
            number: self.next_segment,
            salt: MachineId::random().0,
            chain_start: self.chain_value,
        };
        let path = self.layout.segment(header.number);
        let bytes = self.segment_bytes.max(SEGMENT_HEADER_SIZE as u64 + length);
        let file = create_segment(&*self.storage, &self.layout, &header, bytes);
        let file = file.inspect_err(|_| {
            // Best effort: the next attempt removes what is left as well.
            self.storage.remove(&path).ok();
        })?;
        let chain = Chain::start(&header);
        let offset = SEGMENT_HEADER_SIZE as u64;
        let number = header.number;
        let start = Mark { after: self.appended, offset, chain };
        lock(index).segments.push_back(Segment::new(number, start));
        self.tail = Some(Tail { file, generation, offset, chain, waiting: Vec::new() });
        self.next_segment += 1;
        Ok(())
    }

    fn check_state(&self) -> Result<()> {
        match &self.state {
            JournalState::Failed(reason) => {
                Err(StoreError::JournalFailed { machine: self.machine, reason: reason.clone() })
            }
            JournalState::Ready | JournalState::Full => Ok(()),
        }
    }

    fn fail(&mut self, error: impl Into<StoreError>) -> StoreError {
        let error = error.into();
        self.state = JournalState::Failed(error.to_string());
        error
    }

    fn refused(&self, reason: String) -> StoreError {
        StoreError::Refused { machine: self.machine, reason }
    }
}

/// Takes in which disks the records write to, and whose protection they end.
pub(super) fn note_disks(records: &[PlacedRecord], written: &mut DiskSet, removed: &mut DiskSet) {
    for placed in records {
        match placed.record {
            Record::DiskRemoved { disk } => removed.insert(disk),
            _ => placed.record.extent().into_iter().for_each(|(disk, _)| written.insert(disk)),
        }
    }
}

impl Tail {
    fn group_bytes(&self) -> u64 {
        self.waiting.first().map_or(0, |first| self.offset - first.mark.offset)
    }
}

/// Creates a segment, durably, before its first entry is written.
fn create_segment(
    storage: &dyn Storage,
    layout: &MachineLayout,
    header: &SegmentHeader,
    bytes: u64,
) -> Result<Arc<dyn BlockFile>> {
    let path = layout.segment(header.number);
    let file = create_anew(storage, &path, Open::CreateAllocated(bytes))?;
    let mut block = AlignedBuffer::zeroed(SEGMENT_HEADER_SIZE);
    header.encode(block.first_chunk_mut().expect("the buffer has the header's size"));
    file.write(&[WriteRequest { offset: 0, data: &block }])?;
    file.sync()?;
    storage.sync_directory(&layout.journal())?;
    Ok(file)
}
