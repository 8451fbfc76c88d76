//! An agent for tests: it seals frames, remembers what it sent, and knows what every disk held at
//! every position.

use redoubt_log::frame::{FrameBuilder, FrameKey, FrameLimits, FrameMeta, FramePool, SealBuffers};
use redoubt_log::segment::{ENTRY_HEADER_SIZE, entry_length};
use redoubt_log::{
    DiskIndex, DiskSet, Generation, Incarnation, MachineId, PointId, PointKind, Record, RoleEpoch,
    Sequence, WallTime,
};

pub(super) const MACHINE: MachineId = MachineId([7; 16]);
/// Bytes of a block: one sector of the lying disk, so that a cut may fall between any two.
pub(super) const BLOCK: usize = 512;

/// A change of one disk: these blocks get this value; 0 is zeros.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) disk: DiskIndex,
    pub(super) block: usize,
    pub(super) blocks: usize,
    pub(super) value: u32,
}

/// What a block of this value holds.
pub(super) fn block_of(value: u32) -> Vec<u8> {
    value.to_le_bytes().repeat(BLOCK / 4)
}

/// A frame that was sent.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) last: Sequence,
    pub(super) changes: Vec<Change>,
    pub(super) point: Option<PointId>,
    /// Disks that its point is good for.
    pub(super) good: DiskSet,
    /// What the log says of the disks behind it.
    consistent: DiskSet,
    pub(super) bytes: Vec<u8>,
}

/// The log as the agent tells it.
pub(super) struct Agent {
    pub(super) generation: Generation,
    pub(super) incarnation: Incarnation,
    pub(super) log: Vec<Sent>,
    /// What the agent says of the disks at the end of `log`.
    pub(super) consistent: DiskSet,
    pool: FramePool,
}

impl Agent {
    pub(super) fn new(generation: Generation, incarnation: Incarnation) -> Self {
        let pool = FramePool::new(4);
        Self { generation, incarnation, log: Vec::new(), consistent: DiskSet::default(), pool }
    }

    pub(super) fn last(&self) -> Sequence {
        self.log.last().map_or(Sequence(0), |sent| sent.last)
    }

    /// Seals a frame of these records, which follow what was sent before by `jump` sequences more
    /// than one.
    pub(super) fn send(
        &mut self,
        records: Vec<(Record, Vec<u8>)>,
        jump: u64,
        at: WallTime,
    ) -> &Sent {
        let previous = self.last();
        let mut builder = FrameBuilder::new(FrameLimits::default(), &self.pool);
        let (mut changes, mut point) = (Vec::new(), None);
        let mut good = DiskSet::default();
        let mut last = previous.0 + jump;
        for (record, payload) in records {
            last += 1;
            match &record {
                Record::Gap { disk, .. } => self.consistent.remove(*disk),
                Record::Consistent { disk } => self.consistent.insert(*disk),
                Record::Marker { point: id, disks, .. } => {
                    (point, good) = (Some(*id), DiskSet(disks.0 & self.consistent.0));
                }
                _ => {}
            }
            changes.extend(change_of(&record, &payload));
            builder.push(record, &[&payload]).unwrap();
        }
        let frame = builder.finish(&FrameMeta {
            machine: MACHINE,
            generation: self.generation,
            incarnation: self.incarnation,
            role_epoch: RoleEpoch(0),
            first: Sequence(previous.0 + jump + 1),
            previous,
            earliest: at,
            latest: at,
            ends_at_write_boundary: true,
        });
        let sealed = frame.seal(&FrameKey::new([1; 32]), &mut SealBuffers::default());
        let bytes = sealed.bytes().to_vec();
        self.log.push(Sent {
            last: Sequence(last),
            changes,
            point,
            good,
            consistent: self.consistent,
            bytes,
        });
        self.log.last().unwrap()
    }

    /// The blocks of a disk at a position.
    pub(super) fn truth(&self, disk: DiskIndex, blocks: usize, at: Sequence) -> Vec<u32> {
        let mut image = vec![0; blocks];
        for change in self.log.iter().take_while(|sent| sent.last <= at).flat_map(|s| &s.changes) {
            if change.disk == disk {
                image[change.block..change.block + change.blocks].fill(change.value);
            }
        }
        image
    }

    /// The agent died: what it sent after `resume` is lost.
    pub(super) fn truncate(&mut self, resume: Sequence) {
        self.log.retain(|sent| sent.last <= resume);
        self.consistent = self.log.last().map_or(DiskSet::default(), |sent| sent.consistent);
    }
}

fn change_of(record: &Record, payload: &[u8]) -> Option<Change> {
    let (disk, range) = record.extent()?;
    let value = payload.first_chunk().map_or(0, |first| u32::from_le_bytes(*first));
    let block = usize::try_from(range.offset).unwrap() / BLOCK;
    Some(Change { disk, block, blocks: usize::try_from(range.length).unwrap() / BLOCK, value })
}

pub(super) fn write(disk: u8, block: usize, value: u32) -> (Record, Vec<u8>) {
    let payload = block_of(value);
    let length = u32::try_from(BLOCK).unwrap();
    let record = Record::Write { disk: DiskIndex(disk), offset: (block * BLOCK) as u64, length };
    (record, payload)
}

pub(super) fn zero(disk: u8, block: usize, blocks: usize) -> (Record, Vec<u8>) {
    let (offset, length) = ((block * BLOCK) as u64, (blocks * BLOCK) as u64);
    (Record::Zero { disk: DiskIndex(disk), offset, length }, Vec::new())
}

pub(super) fn marker(disks: DiskSet, at: WallTime) -> (Record, Vec<u8>) {
    let kind = PointKind::CrashConsistent;
    let point = PointId::random();
    let label = String::new();
    (Record::Marker { point, kind, at, label, disks, proven: true }, Vec::new())
}

pub(super) fn consistent(disk: u8) -> (Record, Vec<u8>) {
    (Record::Consistent { disk: DiskIndex(disk) }, Vec::new())
}

/// The frame in a buffer as the journal takes it.
pub(super) fn entry_of(bytes: &[u8]) -> Vec<u8> {
    let mut entry = vec![0; entry_length(bytes.len())];
    entry[ENTRY_HEADER_SIZE..ENTRY_HEADER_SIZE + bytes.len()].copy_from_slice(bytes);
    entry
}
