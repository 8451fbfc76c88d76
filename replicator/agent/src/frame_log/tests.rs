//! What leaves the log, in which order and when, and what it may hold at most.

use super::*;
use redoubt_log::frame::{Frame, FrameKey, SealBuffers};
use redoubt_tracker::source::{BioKey, Operation};
use redoubt_tracker::{Array, CaptureMode, ChangeSource, Event, RingPosition, Tracking};

const DISK: DiskIndex = DiskIndex(0);

fn log() -> FrameLog {
    let terms = Terms {
        machine: MachineId([1; 16]),
        generation: Generation([2; 16]),
        incarnation: Incarnation(3),
        role_epoch: RoleEpoch(0),
    };
    FrameLog::new(terms, Sequence(7), Sequence(0), (WallTime(5), Instant::now()))
}

fn records(log: &mut FrameLog) -> Vec<(Sequence, Record)> {
    let (key, mut buffers) = (FrameKey::new([9; 32]), SealBuffers::default());
    let mut all = Vec::new();
    while let Some(ready) = log.take() {
        let sealed = ready.frame.seal(&key, &mut buffers);
        let frame = Frame::check(sealed.bytes()).unwrap();
        let table = frame.decode_table().unwrap();
        let first = frame.header().first.0;
        all.extend(table.into_iter().zip(first..).map(|(r, at)| (Sequence(at), r.record)));
    }
    all
}

#[test]
fn nothing_leaves_before_its_checkpoint() {
    let mut log = log();
    log.write(DISK, ByteRange::new(0, 4096), &[&[1; 4096]]);
    assert!(log.take().is_none());
    log.checkpoint();
    assert_eq!(records(&mut log).len(), 1);
}

#[test]
fn a_gap_stands_before_the_batch_that_lost_something() {
    let mut log = log();
    log.write(DISK, ByteRange::new(0, 512), &[&[1; 512]]);
    log.checkpoint();
    log.write(DISK, ByteRange::new(512, 512), &[&[2; 512]]);
    log.gap(DISK, GapReason::RingOverflow);
    log.checkpoint();
    let kinds = records(&mut log);
    assert!(matches!(kinds[0].1, Record::Write { offset: 0, .. }));
    assert!(matches!(kinds[1].1, Record::Gap { .. }));
    assert!(matches!(kinds[2].1, Record::Write { offset: 512, .. }));
    assert!(kinds.windows(2).all(|pair| pair[0].0 < pair[1].0));
}

#[test]
fn a_write_larger_than_a_frame_is_split_and_only_its_end_is_a_boundary() {
    let mut log = log();
    let data = vec![7_u8; (1 << 20) + (1 << 19) + 512];
    let pieces: Vec<&[u8]> = data.chunks(4093).collect();
    log.write(DISK, ByteRange::new(4096, data.len() as u64), &pieces);
    log.checkpoint();
    use redoubt_log::frame::FrameFlags;
    let boundary =
        |ready: &Ready| ready.frame.header().flags.contains(FrameFlags::ENDS_AT_WRITE_BOUNDARY);
    let boundaries: Vec<bool> = log.ready.iter().map(boundary).collect();
    assert_eq!(boundaries, [false, true]);
    let total: u32 = records(&mut log).iter().map(|(_, r)| r.payload_length()).sum();
    assert_eq!(total as usize, data.len());
}

#[test]
fn zeros_of_a_disk_cost_no_payload() {
    let mut log = log();
    let mut data = vec![0; 64 << 10];
    data[8192..12288].fill(1);
    log.backfill(DISK, ByteRange::new(1 << 20, 64 << 10), &data);
    log.checkpoint();
    let records: Vec<Record> = records(&mut log).into_iter().map(|(_, r)| r).collect();
    assert_eq!(records.len(), 3);
    assert_eq!(records[1], Record::Backfill { disk: DISK, offset: (1 << 20) + 8192, length: 4096 });
}

#[test]
fn gaps_of_many_disks_share_a_buffer_before_the_batch() {
    let mut log = log();
    log.write(DISK, ByteRange::new(0, 512), &[&[1; 512]]);
    (0..60).for_each(|disk| log.gap(DiskIndex(disk), GapReason::RingOverflow));
    assert_eq!(log.batch.len(), 2);
    log.checkpoint();
    let kinds = records(&mut log);
    assert!(kinds[..60].iter().all(|(_, record)| matches!(record, Record::Gap { .. })));
    assert!(matches!(kinds[60].1, Record::Write { .. }));

    // A buffer of gaps that was gone on with is the batch's own.
    log.gap(DISK, GapReason::RingOverflow);
    log.write(DISK, ByteRange::new(0, 512), &[&[1; 512]]);
    log.gap(DISK, GapReason::Paused);
    log.checkpoint();
    let kinds: Vec<Record> = records(&mut log).into_iter().map(|(_, record)| record).collect();
    assert_eq!(kinds[0], Record::Gap { disk: DISK, reason: GapReason::Paused });
    assert!(matches!(kinds[2], Record::Write { .. }));
}

/// A ring of the default size, filled with the writes of one disk while another has lost an event.
struct FullRing {
    events: VecDeque<Entry>,
    produced: u64,
    writes: u64,
    lost: u64,
}

/// An event of the `number`th write; no two writes overlap.
struct Entry {
    at: u64,
    number: u64,
    operation: Option<Operation>,
}

const RING_BYTES: u64 = 64 << 20;
const WRITE_BYTES: u64 = 64 << 10;
const HEADER_BYTES: u64 = 56;
const BUSY: DiskIndex = DiskIndex(1);
const DISK_BYTES: u64 = 128 << 30;

impl FullRing {
    fn empty() -> Self {
        Self { events: VecDeque::new(), produced: 0, writes: 0, lost: 0 }
    }

    /// Submissions, as many as the ring holds.
    fn fill(&mut self, operation: Operation) {
        let first = self.produced;
        let data = if operation == Operation::Write { WRITE_BYTES } else { 0 };
        while self.produced + HEADER_BYTES + data - first <= RING_BYTES {
            self.put(self.writes, Some(operation), data);
            self.writes += 1;
        }
    }

    /// Every write ends.
    fn complete(&mut self) {
        (0..self.writes).for_each(|number| self.put(number, None, 0));
    }

    fn put(&mut self, number: u64, operation: Option<Operation>, data: u64) {
        self.events.push_back(Entry { at: self.produced, number, operation });
        self.produced += HEADER_BYTES + data;
    }
}

impl ChangeSource for FullRing {
    type Error = std::convert::Infallible;

    fn produced(&self) -> RingPosition {
        RingPosition(self.produced)
    }

    fn drain(&mut self, until: RingPosition, sink: &mut dyn FnMut(Event<'_>)) -> RingPosition {
        let bytes = vec![7; usize::try_from(WRITE_BYTES).unwrap()];
        let data = [&bytes[..]];
        while self.events.front().is_some_and(|entry| entry.at < until.0) {
            let Entry { number, operation, .. } = self.events.pop_front().unwrap();
            let range = ByteRange::new(number * WRITE_BYTES, WRITE_BYTES);
            let (disk, bio) = (BUSY, BioKey(number));
            sink(match operation {
                None => Event::Completed { disk, bio, range, failed: false },
                Some(operation) => {
                    let data = (operation == Operation::Write).then_some(&data[..]);
                    Event::Submitted { disk, bio, range, operation, data, at: 0 }
                }
            });
        }
        RingPosition(self.events.front().map_or(self.produced, |entry| entry.at))
    }

    fn forget_partial(&mut self, _disk: DiskIndex) {}
    fn lost(&self, disk: DiskIndex) -> u64 {
        if disk == DISK { self.lost } else { 0 }
    }
    fn unmarked(&self, _disk: DiskIndex) -> u64 {
        0
    }
    fn set_mode(&mut self, _: DiskIndex, _: CaptureMode) -> Result<(), Self::Error> {
        Ok(())
    }
    fn cut(&mut self, _disk: DiskIndex) -> Result<(), Self::Error> {
        Ok(())
    }
    fn marks(&self, _: DiskIndex, _: Array, _: &mut dyn FnMut(ByteRange)) {}
    fn mark(&mut self, _disk: DiskIndex, _range: ByteRange) {}
    fn clear_spare(&mut self, _disk: DiskIndex) {}
}

/// Two disks whose log has everything, and a ring that one of them has filled.
fn filled(operation: Operation) -> (FullRing, Tracking, FrameLog) {
    let (mut ring, mut log) = (FullRing::empty(), log());
    let mut tracking = Tracking::new(CaptureMode::Data);
    for disk in [DISK, BUSY] {
        let reason = GapReason::AgentRestarted;
        let Ok(()) = tracking.adopt(&mut ring, disk, DISK_BYTES, 0, reason, &mut log);
    }
    let Ok(_) = tracking.pump(&mut ring, &mut log);
    while log.take().is_some() {}
    ring.fill(operation);
    (ring, tracking, log)
}

fn expect_bounded(log: &FrameLog) {
    let frames = log.batch.len() + log.ready.len();
    // The gap's own, beside what has room.
    assert!(frames <= WAITING_FRAMES + 1, "{frames} frames wait");
}

#[test]
fn a_loss_of_one_disk_keeps_no_more_of_another_than_there_is_room_for() {
    for operation in [Operation::Write, Operation::Discard] {
        let (mut ring, mut tracking, mut log) = filled(operation);
        ring.lost += 1;
        let Ok(more) = tracking.pump(&mut ring, &mut log);
        assert!(!more && ring.events.is_empty(), "the ring is drained before the matcher forgets");
        expect_bounded(&log);
        // What found no room is read back once it has ended.
        let busy = tracking.progress(BUSY).unwrap();
        assert!(busy.in_flight > 0 && busy.demand_bytes == 0);
        ring.complete();
        while let Ok(true) = tracking.pump(&mut ring, &mut log) {}
        let busy = tracking.progress(BUSY).unwrap();
        assert!(busy.demand_bytes > 0 && !busy.settled, "{busy:?}");
        assert_eq!(busy.in_flight, 0);
        expect_bounded(&log);
    }
}

#[test]
fn the_end_of_a_read_and_of_a_pause_keep_no_more_than_there_is_room_for() {
    let (mut ring, mut tracking, mut log) = filled(Operation::Write);
    tracking.demand(&mut ring, DISK, ByteRange::new(0, 4096));
    let order = tracking.next_read(DISK, 4096).unwrap();
    let Ok(()) = tracking.finish_read(&mut ring, order, &[1; 4096], &mut log);
    expect_bounded(&log);
    assert_eq!(tracking.drained(), ring.produced());

    let (mut ring, mut tracking, mut log) = filled(Operation::Write);
    let Ok(()) = tracking.resume(&mut ring, DISK, GapReason::Paused, &mut log);
    expect_bounded(&log);
    assert_eq!(tracking.drained(), ring.produced());
}
