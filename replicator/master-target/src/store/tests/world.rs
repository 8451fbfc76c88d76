//! One machine, its agent and its store on a disk that lies, driven by a seeded schedule, with an
//! omniscient judge. The judge: an acknowledged frame stays, an incarnation is given once, a view
//! of a kept point reads what the log says, also while apply runs and after any cut.

use super::agent::{Agent, BLOCK, MACHINE, block_of, consistent, entry_of, marker, write, zero};
use super::hooked::{HookedStorage, hooked};
use crate::store::{
    Admitted, ApplyOutcome, DiskSpec, HelloAnswer, Point, PointChoice, Store, StoreMachine,
    StoreOptions, View,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redoubt_engine::lying::LyingStorage;
use redoubt_engine::storage::{Open, ReadRequest, Storage};
use redoubt_log::{DiskIndex, DiskSet, GapReason, Incarnation, Record, Sequence, WallTime};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub(super) const BLOCKS: usize = 6;
pub(super) const DISKS: u8 = 2;

/// What the judge found.
pub(super) type Verdict = Result<(), String>;

pub(super) struct World {
    pub(super) rng: StdRng,
    pub(super) disk: LyingStorage,
    pub(super) machine: Option<StoreMachine>,
    pub(super) agent: Agent,
    /// Frames of the log that stand in the journal, durable or not.
    pub(super) appended: usize,
    pub(super) acknowledged: Sequence,
    incarnations: BTreeSet<u64>,
    value: u32,
    pub(super) now: u64,
    /// Whether views are read in the middle of an apply, not only at rest.
    pub(super) readers: bool,
    /// Looks at what a cut has left, before anything mends it.
    pub(super) look: Option<fn(&LyingStorage) -> Verdict>,
    options: StoreOptions,
}

pub(super) fn options() -> StoreOptions {
    StoreOptions {
        segment_bytes: 6 * 4096,
        pending_limit: 5 * 4096,
        step_bytes: 1,
        ranges_limit: 8,
        ..StoreOptions::default()
    }
}

pub(super) fn disk_specs() -> Vec<DiskSpec> {
    let spec = |index| DiskSpec {
        index: DiskIndex(index),
        name: format!("disk{index}"),
        size: (BLOCKS * BLOCK) as u64,
        logical_block_size: 512,
    };
    (0..DISKS).map(spec).collect()
}

pub(super) fn all_disks() -> DiskSet {
    DiskSet((1 << DISKS) - 1)
}

/// What the session does: the newest run keeps its number, any other gets a new one.
pub(super) fn admit(
    machine: &StoreMachine,
    held: Option<Incarnation>,
) -> crate::store::Result<HelloAnswer> {
    let newest = machine.status().incarnation;
    let incarnation = held.filter(|held| *held == newest).unwrap_or(newest.next());
    let run = u128::from(incarnation.0).to_le_bytes();
    machine.hello(Admitted { incarnation, run }, false, &disk_specs())
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self::with(seed, options())
    }

    pub(super) fn with(seed: u64, options: StoreOptions) -> Self {
        let disk = LyingStorage::new(seed);
        let storage: Arc<dyn Storage> = Arc::new(HookedStorage(disk.clone()));
        let store = Store::open(storage, options, WallTime(0)).unwrap();
        let machine = store.create_machine(MACHINE, "m", WallTime(0)).unwrap();
        let hello = admit(&machine, None).unwrap();
        let agent = Agent::new(hello.generation, hello.incarnation);
        Self {
            rng: StdRng::seed_from_u64(seed),
            disk,
            machine: Some(machine),
            agent,
            appended: 0,
            acknowledged: Sequence(0),
            incarnations: BTreeSet::from([hello.incarnation.0]),
            value: 0,
            now: 1,
            readers: true,
            look: None,
            options,
        }
    }

    pub(super) fn machine(&self) -> StoreMachine {
        self.machine.clone().unwrap()
    }

    /// A random schedule, then everything to its end.
    pub(super) fn run(&mut self, steps: usize) -> Verdict {
        for _ in 0..steps {
            self.now += 1;
            if self.rng.random_bool(0.1) {
                self.disk.crash_after(self.rng.random_range(0..40));
            }
            match self.rng.random_range(0..100) {
                0..35 => self.send(),
                35..45 => self.append_some(),
                45..60 => self.commit(),
                60..80 => self.apply_among_readers()?,
                80..88 => self.read_among_applies()?,
                88..91 => self.disk.crash(),
                91..94 => self.machine = None,
                94..97 => self.agent_dies()?,
                _ => self.housekeep(),
            }
            if self.disk.is_crashed() || self.machine.is_none() {
                self.restart()?;
            }
        }
        self.finish()
    }

    fn send(&mut self) {
        let mut records = Vec::new();
        for _ in 0..self.rng.random_range(0..4) {
            let disk = self.rng.random_range(0..DISKS);
            let block = self.rng.random_range(0..BLOCKS);
            self.value += 1;
            records.push(match self.rng.random_range(0..10) {
                0 => zero(disk, block, self.rng.random_range(1..=BLOCKS - block)),
                _ => write(disk, block, self.value),
            });
        }
        let disk = self.rng.random_range(0..DISKS);
        match self.rng.random_range(0..20) {
            0 => {
                let reason = GapReason::RingOverflow;
                records.push((Record::Gap { disk: DiskIndex(disk), reason }, Vec::new()));
            }
            1..8 => records.push(consistent(disk)),
            _ => {}
        }
        if records.is_empty() || self.rng.random_bool(0.5) {
            records.push(marker(all_disks(), WallTime(self.now)));
        }
        let jump = self.rng.random_range(0..2) * 3;
        self.agent.send(records, jump, WallTime(self.now));
        if self.rng.random_bool(0.7) {
            self.append_some();
        }
    }

    /// Hands some of the frames that the journal does not have to it, in one batch.
    fn append_some(&mut self) {
        let left = self.agent.log.len() - self.appended;
        let count = self.rng.random_range(0..=left);
        self.append(count);
    }

    pub(super) fn append(&mut self, count: usize) {
        let frames = &self.agent.log[self.appended..self.appended + count];
        let mut entries: Vec<Vec<u8>> = frames.iter().map(|sent| entry_of(&sent.bytes)).collect();
        let mut batch: Vec<&mut [u8]> = entries.iter_mut().map(Vec::as_mut_slice).collect();
        let appended = self.machine().append(&mut batch);
        if let Some(error) = &appended.stopped {
            assert!(self.disk.is_crashed() || error.is_full(), "refused: {error}");
        }
        self.appended += appended.entries;
    }

    pub(super) fn commit(&mut self) {
        match self.machine().commit() {
            Ok(durable) => self.acknowledged = durable,
            Err(error) => assert!(self.disk.is_crashed(), "{error}"),
        }
    }

    /// Applies; before each of its steps a reader may look at a point that it opened before.
    fn apply_among_readers(&mut self) -> Verdict {
        let machine = self.machine();
        let views = self.open_views();
        let found = Rc::new(RefCell::new(Ok(())));
        let (out, disk) = (found.clone(), self.disk.clone());
        let mut rng = StdRng::seed_from_u64(self.rng.random());
        let look = move || {
            if out.borrow().is_ok() && !views.is_empty() && rng.random_bool(0.5) {
                let (view, truth) = &views[rng.random_range(0..views.len())];
                let verdict = judge(view, truth, rng.random_range(0..BLOCKS));
                if !disk.is_crashed() {
                    *out.borrow_mut() = verdict;
                }
            }
        };
        let applied = hooked(look, || machine.apply_next(WallTime(self.now)));
        if let Err(error) = applied {
            assert!(self.disk.is_crashed(), "{error}");
        }
        found.replace(Ok(()))
    }

    /// Reads; an apply may run, whole, before any of the reader's steps.
    fn read_among_applies(&mut self) -> Verdict {
        let machine = self.machine();
        for (view, truth) in self.open_views() {
            let (applier, now) = (machine.clone(), self.now);
            let mut rng = StdRng::seed_from_u64(self.rng.random());
            let apply = move || {
                if rng.random_bool(0.4) {
                    applier.apply_next(WallTime(now)).ok();
                }
            };
            let block = self.rng.random_range(0..BLOCKS);
            let verdict = hooked(apply, || judge(&view, &truth, block));
            if !self.disk.is_crashed() {
                verdict?;
            }
        }
        Ok(())
    }

    /// A view of each of some points, and what it must show.
    fn open_views(&mut self) -> Vec<(View, Vec<u32>)> {
        let mut views = Vec::new();
        let points = if self.readers { self.machine().points() } else { Vec::new() };
        for point in points {
            for disk in point.disks.iter() {
                if self.rng.random_bool(0.4) {
                    continue;
                }
                match self.machine().view(disk, PointChoice::Id(point.id)) {
                    Ok(view) => views.push((view, self.agent.truth(disk, BLOCKS, point.sequence))),
                    Err(error) => assert!(self.disk.is_crashed(), "{error}"),
                }
            }
        }
        views
    }

    fn housekeep(&mut self) {
        let now = WallTime(self.now);
        let machine = self.machine();
        let keep = Duration::from_nanos(self.rng.random_range(20..200));
        let dropped = machine.drop_expired(now, keep).and(machine.free_segments(now, keep / 4));
        if let Err(error) = dropped {
            assert!(self.disk.is_crashed(), "{error}");
        }
    }

    /// A new run of the agent connects.
    fn agent_dies(&mut self) -> Verdict {
        match admit(&self.machine(), None) {
            Ok(hello) => self.take_hello(&hello, true),
            Err(error) => {
                assert!(self.disk.is_crashed(), "{error}");
                Ok(())
            }
        }
    }

    fn take_hello(&mut self, hello: &HelloAnswer, is_new: bool) -> Verdict {
        if is_new && !self.incarnations.insert(hello.incarnation.0) {
            return Err(format!("incarnation {} was handed out twice", hello.incarnation));
        }
        if hello.resume < self.acknowledged {
            let resume = hello.resume;
            return Err(format!("resumes at {resume}, acknowledged was {}", self.acknowledged));
        }
        let count = self.agent.log.iter().take_while(|sent| sent.last <= hello.resume).count();
        let end = count.checked_sub(1).map_or(Sequence(0), |last| self.agent.log[last].last);
        if end != hello.resume {
            return Err(format!("resumes at {}, which no frame of the log ends at", hello.resume));
        }
        self.acknowledged = hello.resume;
        self.appended = count;
        if is_new {
            self.agent.truncate(hello.resume);
        }
        self.agent.incarnation = hello.incarnation;
        Ok(())
    }

    /// The target starts again, after a cut or after its process died; the agent connects again, or
    /// a new one does.
    pub(super) fn restart(&mut self) -> Verdict {
        loop {
            self.machine = None;
            if self.disk.is_crashed() {
                self.disk.restart();
                self.look.map_or(Ok(()), |look| look(&self.disk))?;
            }
            if self.rng.random_bool(0.2) {
                self.disk.crash_after(self.rng.random_range(0..30));
            }
            let storage: Arc<dyn Storage> = Arc::new(HookedStorage(self.disk.clone()));
            let store = Store::open(storage, self.options, WallTime(self.now));
            let store = match store {
                Err(_) if self.disk.is_crashed() => continue,
                other => other.map_err(|error| error.to_string())?,
            };
            let Ok(machine) = store.machine(MACHINE) else {
                if self.disk.is_crashed() {
                    continue;
                }
                return Err(format!("the machine does not open: {:?}", store.unopened()));
            };
            let is_new = self.rng.random_bool(0.4);
            let held = (!is_new).then_some(self.agent.incarnation);
            match admit(&machine, held) {
                Ok(hello) => {
                    self.machine = Some(machine);
                    return self
                        .take_hello(&hello, hello.incarnation != self.agent.incarnation || is_new);
                }
                Err(_) if self.disk.is_crashed() => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Everything is sent, committed and applied; then every point and the replica disks are
    /// compared.
    pub(super) fn finish(&mut self) -> Verdict {
        self.disk.crash();
        self.restart()?;
        while self.disk.is_crashed() {
            self.restart()?;
        }
        self.disk.clear_faults();
        self.disk.restart();
        self.restart_quietly()?;
        self.deliver();
        loop {
            match self.machine().apply_next(WallTime(self.now)) {
                Ok(ApplyOutcome::Idle) => break,
                Ok(ApplyOutcome::Applied { .. }) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        self.check_all()
    }

    /// Sends a frame of these records.
    pub(super) fn send_records(&mut self, records: Vec<(Record, Vec<u8>)>) {
        self.now += 1;
        self.agent.send(records, 0, WallTime(self.now));
    }

    /// Hands all that is left to the journal, and makes it durable.
    pub(super) fn deliver(&mut self) {
        self.append(self.agent.log.len() - self.appended);
        self.commit();
    }

    pub(super) fn marker(&self) -> (Record, Vec<u8>) {
        marker(all_disks(), WallTime(self.now))
    }

    pub(super) fn restart_quietly(&mut self) -> Verdict {
        let storage: Arc<dyn Storage> = Arc::new(HookedStorage(self.disk.clone()));
        let store =
            Store::open(storage, self.options, WallTime(self.now)).map_err(|e| e.to_string())?;
        let unopened = format!("{:?}", store.unopened());
        let machine = store.machine(MACHINE).map_err(|_| unopened)?;
        let hello = admit(&machine, Some(self.agent.incarnation));
        let hello = hello.map_err(|error| error.to_string())?;
        self.machine = Some(machine);
        self.take_hello(&hello, hello.incarnation != self.agent.incarnation)
    }

    /// Every kept point reads what the log says, no point of a disk is missing behind its oldest,
    /// the disks are at `applied`.
    pub(super) fn check_all(&self) -> Verdict {
        let machine = self.machine();
        let points = machine.points();
        for point in &points {
            for disk in point.disks.iter() {
                let truth = self.agent.truth(disk, BLOCKS, point.sequence);
                let view =
                    machine.view(disk, PointChoice::Id(point.id)).map_err(|e| e.to_string())?;
                (0..BLOCKS).try_for_each(|block| judge(&view, &truth, block))?;
            }
        }
        let applied = machine.status().applied;
        self.check_points(&points, applied)?;
        machine.check_retention().map_err(|error| error.to_string())?;
        (0..DISKS).try_for_each(|disk| self.check_replica(DiskIndex(disk), applied))
    }

    /// Of each disk the points up from the oldest that is kept, and its newest always.
    fn check_points(&self, points: &[Point], applied: Sequence) -> Verdict {
        for disk in all_disks().iter() {
            let given = points.iter().filter(|point| point.disks.contains(disk));
            let given: Vec<_> = given.map(|point| (point.id, point.sequence)).collect();
            let first = given.first().map_or(Sequence(0), |(_, sequence)| *sequence);
            let good = self.agent.log.iter().filter(|sent| sent.good.contains(disk));
            let expected: Vec<_> = good
                .filter(|sent| first <= sent.last && sent.last <= applied)
                .filter_map(|sent| Some((sent.point?, sent.last)))
                .collect();
            if given != expected {
                return Err(format!("points of disk {disk}: {given:?}, not {expected:?}"));
            }
        }
        Ok(())
    }

    pub(super) fn check_replica(&self, disk: DiskIndex, applied: Sequence) -> Verdict {
        let path = format!("machines/{MACHINE}/disks/{disk}");
        let file = self.disk.open(Path::new(&path), Open::ReadOnly).unwrap();
        let mut bytes = vec![0; BLOCKS * BLOCK];
        file.read(&mut [ReadRequest { offset: 0, buffer: &mut bytes }]).unwrap();
        let truth = self.agent.truth(disk, BLOCKS, applied);
        let expected: Vec<u8> = truth.iter().flat_map(|value| block_of(*value)).collect();
        if bytes == expected { Ok(()) } else { Err(format!("disk {disk} is not at {applied}")) }
    }
}

/// One block of a view against the truth.
pub(super) fn judge(view: &View, truth: &[u32], block: usize) -> Verdict {
    let mut bytes = vec![0; BLOCK];
    view.read((block * BLOCK) as u64, &mut bytes).map_err(|error| error.to_string())?;
    if bytes == block_of(truth[block]) {
        return Ok(());
    }
    let (at, value) = (view.point().sequence, truth[block]);
    let given = u32::from_le_bytes(*bytes.first_chunk().unwrap());
    Err(format!("view of {at}, block {block}: {given}, the log says {value}"))
}
