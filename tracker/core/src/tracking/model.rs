//! A simulated disk with writes in flight, a lossy ring and two bitmap arrays, and an omniscient
//! judge. The tracker under test is the product's own; only what lies below and behind it is
//! simulated.

mod checks;
mod log;
mod mix;
mod unseen;

use super::Tracking;
use crate::attach::{Side, attach_order};
use crate::geometry::{GRANULE_BYTES, GranuleRange};
use crate::source::*;
pub(super) use checks::run as run_checks;
use log::Log;
use mix::Mix;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use redoubt_log::GapReason;
use redoubt_log::{ByteRange, DiskIndex, Sequence};
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
pub(super) use unseen::{missed_in_a_pause, run_unseen};

pub(super) const DISK: DiskIndex = DiskIndex(3);
const SECTOR: u64 = 512;

/// What a block of one sector holds: the number of the write that put it there.
type Value = u64;

/// Of a simulated disk, which has room in memory.
fn index(count: u64) -> usize {
    usize::try_from(count).unwrap()
}

#[derive(Clone, Debug)]
struct Part {
    key: BioKey,
    range: ByteRange,
    landed: Option<u64>,
    failed: bool,
    ended: bool,
}

#[derive(Clone, Debug)]
struct Write {
    value: Value,
    range: ByteRange,
    submitted: u64,
    /// Whether its submission was seen.
    is_seen: bool,
    completed: Option<u64>,
    parts: Vec<Part>,
}

impl Write {
    fn failed(&self) -> bool {
        self.parts.iter().any(|part| part.failed)
    }

    /// When the sector at `offset` reached the medium.
    fn landed(&self, offset: u64) -> Option<u64> {
        let at = ByteRange::new(offset, SECTOR);
        self.parts.iter().find(|part| part.range.contains(&at)).and_then(|part| part.landed)
    }
}

#[derive(Clone, Debug)]
enum Record {
    Submitted { key: BioKey, range: ByteRange, data: Option<Vec<u8>> },
    Completed { key: BioKey, range: ByteRange, failed: bool },
    Split { front: BioKey, parent: BioKey, range: ByteRange },
}

/// What really happens. The tracker sees only ring, marks, loss counter, and what its reads return.
pub(super) struct World {
    rng: StdRng,
    pub sectors: u64,
    disk: Vec<Value>,
    time: u64,
    writes: Vec<Write>,
    flying: Vec<usize>,
    most_flying: usize,
    watched: Vec<Side>,
    mode: CaptureMode,
    ring: VecDeque<(u64, Record)>,
    capacity: usize,
    produced: u64,
    lost: u64,
    unmarked: u64,
    marks: [BTreeSet<u64>; 2],
    /// Simulated time of the last state that the drained prefix of the ring stands for.
    pub drained_at: u64,
    /// When the tracker last forgot what is in flight: what ends unseen after that, nothing tells.
    forgotten_at: u64,
    /// Steps of the world inside a call of the tracker: everything may happen at every boundary.
    restless: bool,
    marks_completions: bool,
    mix: Mix,
}

impl World {
    fn new(mut rng: StdRng, marks_completions: bool) -> Self {
        let most = if rng.random() { 48 } else { 400 };
        let sectors = rng.random_range(6..=most);
        Self {
            sectors,
            disk: vec![0; index(sectors)],
            time: 0,
            writes: Vec::new(),
            flying: Vec::new(),
            most_flying: rng.random_range(1..=6),
            watched: Vec::new(),
            mode: CaptureMode::Bitmap,
            ring: VecDeque::new(),
            capacity: *[4, 12, 1000].choose(&mut rng).unwrap(),
            produced: 0,
            lost: 0,
            unmarked: 0,
            marks: Default::default(),
            drained_at: 0,
            forgotten_at: 0,
            restless: true,
            marks_completions,
            mix: Mix::of(&mut rng),
            rng,
        }
    }

    pub fn size(&self) -> u64 {
        self.sectors * SECTOR
    }

    fn stir(&mut self) {
        if self.restless && self.rng.random_bool(0.3) {
            (0..self.rng.random_range(1..6)).for_each(|_| self.step());
        }
    }

    fn step(&mut self) {
        self.time += 1;
        let chance: f64 = self.rng.random();
        if chance < 0.40 && self.flying.len() < self.most_flying {
            self.submit();
        } else if let Some(&at) = self.flying.as_slice().choose(&mut self.rng) {
            self.advance(at);
        }
    }

    fn submit(&mut self) {
        let first = self.rng.random_range(0..self.sectors);
        let count = self.rng.random_range(1..=(self.sectors - first).min(10));
        let range = ByteRange::new(first * SECTOR, count * SECTOR);
        let key = self.free_key();
        let captured = self.mode == CaptureMode::Data && !self.rng.random_bool(self.mix.uncaptured);
        let value = self.writes.len() as u64 + 1;
        let part = Part { key, range, landed: None, failed: false, ended: false };
        let parts = vec![part];
        let is_seen =
            self.watched.contains(&Side::Submission) && !self.rng.random_bool(self.mix.missed);
        let write = Write { value, range, submitted: self.time, is_seen, completed: None, parts };
        let data = captured.then(|| value.to_le_bytes().repeat(index(range.length) / 8));
        self.flying.push(self.writes.len());
        self.writes.push(write);
        if self.watched.contains(&Side::Submission) {
            if is_seen {
                self.mark_granules(range);
                self.emit(Record::Submitted { key, range, data });
            }
            if count > 1 && self.rng.random_bool(self.mix.split) {
                self.split();
            }
        }
    }

    /// Keys are few, so that they are soon used again; a split bio keeps its own until its front
    /// has ended too.
    fn free_key(&mut self) -> BioKey {
        let used: Vec<BioKey> = self
            .flying
            .iter()
            .flat_map(|&at| self.writes[at].parts.iter().enumerate())
            .filter(|(at, part)| *at == 0 || !part.ended)
            .map(|(_, part)| part.key)
            .collect();
        let free: Vec<u64> = (1..20).filter(|key| !used.contains(&BioKey(*key))).collect();
        BioKey(*free.choose(&mut self.rng).unwrap())
    }

    fn split(&mut self) {
        let front = self.free_key();
        let write = self.writes.last_mut().unwrap();
        let (parent, range) = (write.parts[0].key, write.range);
        let cut = self.rng.random_range(1..range.length / SECTOR) * SECTOR;
        let part = ByteRange::new(range.offset, cut);
        write.parts[0].range = ByteRange::between(range.offset + cut, range.end());
        let split = Part { key: front, range: part, landed: None, failed: false, ended: false };
        write.parts.push(split);
        self.emit(Record::Split { front, parent, range: part });
    }

    /// One part of a write reaches the medium, fails, or ends.
    fn advance(&mut self, at: usize) {
        let open: Vec<usize> =
            (0..self.writes[at].parts.len()).filter(|&p| !self.writes[at].parts[p].ended).collect();
        let chosen = *open.choose(&mut self.rng).unwrap();
        let fails = self.rng.random_bool(self.mix.fails);
        let (time, value) = (self.time, self.writes[at].value);
        let part = &mut self.writes[at].parts[chosen];
        if part.landed.is_none() && !part.failed {
            if fails {
                part.failed = true;
            } else {
                part.landed = Some(time);
                let range = part.range;
                for sector in range.offset / SECTOR..range.end() / SECTOR {
                    self.disk[index(sector)] = value;
                }
            }
            return;
        }
        part.ended = true;
        let (key, range, failed) = (part.key, part.range, part.failed);
        if self.writes[at].parts.iter().all(|part| part.ended) {
            self.writes[at].completed = Some(time);
            self.flying.retain(|&flying| flying != at);
        }
        let write = &self.writes[at];
        let is_known = write.is_seen && write.submitted > self.forgotten_at;
        let is_unseen = is_known && self.rng.random_bool(self.mix.unseen_end);
        if self.watched.contains(&Side::Completion) && !is_unseen {
            if self.marks_completions {
                self.mark_completed(range);
            }
            self.emit(Record::Completed { key, range, failed });
        }
    }

    fn mark_granules(&mut self, range: ByteRange) {
        let granules = GranuleRange::touching(range);
        self.marks[0].extend(granules.first.0..granules.end.0);
    }

    fn mark_completed(&mut self, range: ByteRange) {
        let granules = GranuleRange::touching(range);
        let marked = |granule| self.marks.iter().any(|marks| marks.contains(&granule));
        let unmarked = !(granules.first.0..granules.end.0).all(marked);
        self.mark_granules(range);
        self.unmarked += u64::from(unmarked);
    }

    fn emit(&mut self, record: Record) {
        if self.mode == CaptureMode::Bitmap {
            return;
        }
        if self.ring.len() >= self.capacity {
            self.lost += 1;
            return;
        }
        self.produced += 1;
        self.ring.push_back((self.time, record));
    }

    /// What the sector at `offset` may hold in a crash image of time `at`.
    pub fn legal(&self, offset: u64, at: u64) -> BTreeSet<Value> {
        let sector = ByteRange::new(offset, SECTOR);
        let mut legal = BTreeSet::new();
        let mut newest = (0, 0);
        for write in self.writes.iter().filter(|write| write.range.contains(&sector)) {
            if write.submitted > at {
                continue;
            }
            match write.completed {
                Some(completed) if completed <= at => {
                    if let Some(landed) = write.landed(offset) {
                        newest = newest.max((landed, write.value));
                    }
                }
                _ => {
                    legal.insert(write.value);
                }
            }
            if write.failed() && write.completed.is_none_or(|completed| completed > at) {
                legal.insert(write.value);
            }
        }
        legal.insert(newest.1);
        legal
    }

    pub fn read(&self, range: ByteRange) -> Vec<u8> {
        let sectors = range.offset / SECTOR..range.end() / SECTOR;
        sectors.flat_map(|at| self.disk[index(at)].to_le_bytes().repeat(64)).collect()
    }

    /// No new writes; all that fly land and end.
    fn quiesce(&mut self) {
        self.restless = false;
        while let Some(&at) = self.flying.first() {
            self.time += 1;
            self.advance(at);
        }
    }
}

impl ChangeSource for World {
    type Error = Infallible;

    fn produced(&self) -> RingPosition {
        RingPosition(self.produced)
    }

    fn drain(&mut self, until: RingPosition, sink: &mut dyn FnMut(Event<'_>)) -> RingPosition {
        self.stir();
        let mut position = self.produced - self.ring.len() as u64;
        while position < until.0 {
            let (time, record) = self.ring.pop_front().expect("until was produced");
            position += 1;
            self.drained_at = time;
            let disk = DISK;
            match record {
                Record::Submitted { key: bio, range, data } => {
                    let pieces = data.as_ref().map(|data| data.chunks(700).collect::<Vec<_>>());
                    let (operation, data) = (Operation::Write, pieces.as_deref());
                    sink(Event::Submitted { disk, bio, range, operation, data, at: time });
                }
                Record::Completed { key: bio, range, failed } => {
                    sink(Event::Completed { disk, bio, range, failed });
                }
                Record::Split { front, parent, range } => {
                    sink(Event::Split { disk, front, parent, range });
                }
            }
        }
        if self.ring.is_empty() {
            self.drained_at = self.time;
        }
        self.stir();
        RingPosition(position)
    }

    fn forget_partial(&mut self, _disk: DiskIndex) {
        self.forgotten_at = self.time;
    }

    fn lost(&self, _disk: DiskIndex) -> u64 {
        self.lost
    }

    fn unmarked(&self, _disk: DiskIndex) -> u64 {
        self.unmarked
    }

    fn set_mode(&mut self, _disk: DiskIndex, mode: CaptureMode) -> Result<(), Infallible> {
        self.stir();
        self.mode = mode;
        self.stir();
        Ok(())
    }

    fn cut(&mut self, _disk: DiskIndex) -> Result<(), Infallible> {
        self.stir();
        assert!(self.marks[1].is_empty(), "the spare is clear at a cut");
        self.marks.swap(0, 1);
        self.stir();
        Ok(())
    }

    fn marks(&self, _disk: DiskIndex, array: Array, each: &mut dyn FnMut(ByteRange)) {
        for granule in &self.marks[usize::from(array == Array::Spare)] {
            let offset = granule * GRANULE_BYTES;
            each(ByteRange::between(offset, (offset + GRANULE_BYTES).min(self.size())));
        }
    }

    fn mark(&mut self, _disk: DiskIndex, range: ByteRange) {
        self.mark_granules(range);
    }

    fn clear_spare(&mut self, _disk: DiskIndex) {
        self.marks[1].clear();
    }
}

/// A run of one seed; `Err` says what the judge saw.
pub(super) fn run(seed: u64, steps: usize, marks_completions: bool) -> Result<(), String> {
    let mut run = begin(seed, marks_completions);
    for _ in 0..steps {
        run.anything();
        run.judge()?;
    }
    run.rest()
}

/// A machine at work and an agent that has just attached to it.
fn begin(seed: u64, marks_completions: bool) -> Run {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = World::new(StdRng::seed_from_u64(rng.random()), marks_completions);
    (0..rng.random_range(0..10)).for_each(|_| world.step());
    let [first, second] = attach_order();
    world.watched.push(first);
    (0..rng.random_range(0..4)).for_each(|_| world.step());
    let log = Log::new(index(world.sectors), rng.random(), world.mix.no_room);
    let (tracking, acked) = (Tracking::new(CaptureMode::Data), 0);
    let pace = rng.random_range(0.1..0.6);
    let (reads, paused) = (Vec::new(), false);
    let mut run = Run { rng, world, tracking, log, acked, reads, paused, pace };
    run.start();
    // Harsher than the product, which is attached as a whole before it begins.
    (0..run.rng.random_range(0..20)).for_each(|_| run.anything());
    run.world.watched.push(second);
    run
}

struct Run {
    rng: StdRng,
    world: World,
    tracking: Tracking,
    log: Log,
    acked: usize,
    reads: Vec<(super::ReadOrder, RefCell<Vec<u8>>)>,
    paused: bool,
    /// How often it is the machine's turn.
    pace: f64,
}

impl Run {
    fn start(&mut self) {
        let size = self.world.size();
        let (world, log) = (&mut self.world, &mut self.log);
        let Ok(()) = self.tracking.add_whole(world, DISK, size, GapReason::FirstSync, log);
    }

    /// Something happens to the machine, or the agent does something.
    fn anything(&mut self) {
        if self.rng.random_bool(self.pace) {
            self.world.step();
        } else if self.rng.random_bool(self.world.mix.loses_tail) {
            self.lose_tail();
        } else if self.rng.random_bool(self.world.mix.rotates) {
            let Ok(()) = self.tracking.rotate(&mut self.world);
        } else if self.rng.random_bool(self.world.mix.looks) {
            self.tracking.look_for_overdue(&mut self.world);
        } else if self.rng.random_bool(self.world.mix.catches_up) {
            self.catch_up();
            let Ok(_) = self.tracking.pump(&mut self.world, &mut self.log);
        } else {
            self.step();
        }
    }

    fn step(&mut self) {
        let chance: f64 = self.rng.random();
        if chance < 0.25 {
            let Ok(_) = self.tracking.pump(&mut self.world, &mut self.log);
        } else if chance < 0.50 {
            let limit = self.rng.random_range(1..3) * GRANULE_BYTES;
            if self.reads.len() < 6
                && let Some(order) = self.tracking.next_read(DISK, limit)
            {
                let unread = vec![0xff; index(order.range.length)];
                self.reads.push((order, RefCell::new(unread)));
            }
        } else if chance < 0.72 {
            self.read_some();
        } else if chance < 0.90 {
            self.finish_read();
        } else if chance < 0.96 {
            self.acked = self.rng.random_range(self.acked..=self.log.len());
            self.tracking.acknowledged(&mut self.world, Sequence(self.acked as u64));
        } else if self.paused {
            self.paused = false;
            let (world, log) = (&mut self.world, &mut self.log);
            let Ok(()) = self.tracking.resume(world, DISK, GapReason::Paused, log);
        } else if chance < 0.98 {
            self.paused = true;
            let Ok(()) = self.tracking.pause(&mut self.world, DISK);
        }
    }

    /// A read sees each half of its range at a time of its own.
    fn read_some(&mut self) {
        if let Some((order, data)) = self.reads.as_slice().choose(&mut self.rng) {
            let now = self.world.read(order.range);
            let mut data = data.borrow_mut();
            let half = data.len() / 1024 * 512;
            let part = if self.rng.random() { 0..half } else { half..data.len() };
            if data[part.clone()].iter().all(|byte| *byte == 0xff) {
                data[part.clone()].copy_from_slice(&now[part]);
            }
        }
    }

    fn finish_read(&mut self) {
        let whole = |data: &RefCell<Vec<u8>>| {
            data.borrow().chunks(512).all(|sector| sector.iter().any(|byte| *byte != 0xff))
        };
        if let Some(at) = self.reads.iter().position(|(_, data)| whole(data)) {
            let (order, data) = self.reads.remove(at);
            let (world, log) = (&mut self.world, &mut self.log);
            let Ok(()) = self.tracking.finish_read(world, order, &data.into_inner(), log);
        }
    }

    /// The agent dies, or the target forgets: what was not acknowledged is gone from the log.
    fn lose_tail(&mut self) {
        self.log.truncate(self.acked);
        // A paused agent has no session that could tell it.
        if !self.paused && self.rng.random() {
            let (world, log) = (&mut self.world, &mut self.log);
            let Ok(()) = self.tracking.tail_lost(world, GapReason::TargetBehind, log);
        } else {
            self.tracking = Tracking::new(CaptureMode::Data);
            self.paused = false;
            self.reads.clear();
            self.world.ring.clear();
            let size = self.world.size();
            let (world, log) = (&mut self.world, &mut self.log);
            // What the run before has answered, it may not have remembered.
            let answered = self.rng.random_range(0..=world.unmarked);
            let reason = GapReason::AgentRestarted;
            let Ok(()) = self.tracking.adopt(world, DISK, size, answered, reason, log);
        }
    }

    fn judge(&mut self) -> Result<(), String> {
        let lossless = self.tracking.progress(DISK).unwrap().lost == self.world.lost;
        if self.paused || !lossless || !self.tracking.settled().contains(DISK) {
            return Ok(());
        }
        let at = self.world.drained_at;
        for sector in 0..self.world.sectors {
            let legal = self.world.legal(sector * SECTOR, at);
            let held = self.log.image[index(sector)];
            if held.is_none_or(|value| !legal.contains(&value)) {
                return Err(format!(
                    "point at {at}: sector {sector} holds {held:?}, legal {legal:?}"
                ));
            }
        }
        Ok(())
    }

    /// Drains, reads everything there is to read, and finishes it.
    fn catch_up(&mut self) {
        let Ok(_) = self.tracking.pump(&mut self.world, &mut self.log);
        let mut orders: Vec<_> = self.reads.drain(..).map(|(order, _)| order).collect();
        orders.extend(std::iter::from_fn(|| self.tracking.next_read(DISK, 1 << 20)));
        for order in orders {
            let data = self.world.read(order.range);
            let (world, log) = (&mut self.world, &mut self.log);
            let Ok(()) = self.tracking.finish_read(world, order, &data, log);
        }
    }

    /// No more writes: the tracker comes to rest, and the log is the disk.
    fn rest(&mut self) -> Result<(), String> {
        self.world.quiesce();
        if self.paused {
            let (world, log) = (&mut self.world, &mut self.log);
            let Ok(()) = self.tracking.resume(world, DISK, GapReason::Paused, log);
        }
        for looks in 0..400 {
            self.catch_up();
            self.tracking.look_for_overdue(&mut self.world);
            let settled = self.tracking.settled().contains(DISK);
            // What ended unseen just before is overdue only now.
            if looks >= 2 && settled && self.world.ring.is_empty() {
                let answered = self.tracking.progress(DISK).unwrap().unmarked;
                assert_eq!(answered, self.world.unmarked, "nothing unmarked is passed over");
                let disk: Vec<_> = self.world.disk.iter().copied().map(Some).collect();
                return if self.log.image == disk {
                    Ok(())
                } else {
                    Err(format!("at rest: log {:?} disk {disk:?}", self.log.image))
                };
            }
        }
        Err(format!("never settles: {:?}", self.tracking))
    }
}
