//! A target behind the simulated log, whose replica is garbled now and then, and checks by hash of
//! it under way while everything else happens. The judge knows what was garbled: nothing else may
//! be found, and all of it must be.

use super::{DISK, Run, SECTOR, Value, begin, index};
use crate::geometry::{Granule, GranuleRange, granules_of};
use crate::source::{ChangeSource, RingPosition};
use crate::tracking::{Comparable, ReadOrder};
use rand::Rng;
use redoubt_log::ByteRange;

/// What no write of the simulated machine writes.
const GARBAGE: Value = 1 << 60;

/// How much was done in a run.
#[derive(Debug, Default)]
pub(in crate::tracking) struct Done {
    /// Granules compared while the machine wrote.
    pub compared: usize,
    /// Granules found to differ meanwhile.
    pub found: usize,
}

/// A check, from its read to the target's answer.
struct Checking {
    order: ReadOrder,
    /// The world's time when it began.
    began: u64,
    data: Vec<Option<Value>>,
    /// The ring must be drained up to here before the next step.
    behind: Option<RingPosition>,
    point: Option<Fixed>,
}

/// What replica and log held at the point, by sectors of the check's range.
struct Fixed {
    /// In flight until after the answer, from before the check or with a submission that nobody
    /// saw: one that the tracker knew was left out, and of another nothing can be known before its
    /// end.
    unknown: Vec<ByteRange>,
    comparable: Comparable,
    replica: Vec<Option<Value>>,
    log: Vec<Option<Value>>,
}

struct Checks {
    run: Run,
    replica: Vec<Option<Value>>,
    applied: usize,
    garbled: u64,
    check: Option<Checking>,
    done: Done,
}

/// A run of one seed; `Err` says what the judge saw.
pub(in crate::tracking) fn run(seed: u64, steps: usize) -> Result<Done, String> {
    let mut run = begin(seed, true);
    // A lost tail is a gap like others to a check, and its target would have to forget as well.
    run.world.mix.loses_tail = 0.0;
    let replica = vec![None; index(run.world.sectors)];
    let done = Done::default();
    let mut checks = Checks { run, replica, applied: 0, garbled: 0, check: None, done };
    for _ in 0..steps {
        checks.step()?;
    }
    checks.rest()
}

impl Checks {
    fn step(&mut self) -> Result<(), String> {
        let chance: f64 = self.run.rng.random();
        if chance < 0.40 {
            self.run.anything();
        } else if chance < 0.48 {
            self.run.catch_up();
        } else if chance < 0.50 {
            self.garble();
        } else if chance < 0.65 {
            self.start_or_read();
        } else if chance < 0.90 {
            self.pump()?;
        } else {
            self.answer();
        }
        Ok(())
    }

    /// The target answers, if it was asked.
    fn answer(&mut self) {
        let Some(check) = self.check.as_mut().filter(|check| check.behind.is_none()) else {
            return;
        };
        if let Some(fixed) = &mut check.point {
            check.behind = Some(self.run.world.produced());
            let world = &self.run.world;
            let flying = world.flying.iter().map(|&at| &world.writes[at]);
            let unknown = flying.filter(|write| write.submitted <= check.began || !write.is_seen);
            fixed.unknown.extend(unknown.map(|write| write.range));
        }
    }

    fn garble(&mut self) {
        let sector = self.run.rng.random_range(0..self.replica.len());
        self.garbled += 1;
        self.replica[sector] = Some(GARBAGE + self.garbled);
    }

    /// A read sees each half of its range at a time of its own.
    fn start_or_read(&mut self) {
        let Some(check) = &mut self.check else {
            let all = granules_of(self.run.world.size());
            let first = self.run.rng.random_range(0..all);
            let end = self.run.rng.random_range(first + 1..=all.min(first + 3));
            let granules = GranuleRange { first: Granule(first), end: Granule(end) };
            let range = granules.bytes(self.run.world.size());
            let order = self.run.tracking.start_check(DISK, range).expect("a disk");
            let (began, data) = (self.run.world.time, vec![None; index(range.length / SECTOR)]);
            self.check = Some(Checking { order, began, data, behind: None, point: None });
            return;
        };
        if check.point.is_some() || check.behind.is_some() {
            return;
        }
        let now = values(&self.run.world.read(check.order.range));
        let half = check.data.len() / 2;
        let part = if self.run.rng.random() { 0..half } else { half..check.data.len() };
        if check.data[part.clone()].iter().all(Option::is_none) {
            check.data[part.clone()].copy_from_slice(&now[part]);
        }
        if check.data.iter().all(Option::is_some) {
            check.behind = Some(self.run.world.produced());
        }
    }

    fn pump(&mut self) -> Result<(), String> {
        let Ok(_) = self.run.tracking.pump(&mut self.run.world, &mut self.run.log);
        let drained = self.run.tracking.drained();
        let Some(check) = self.check.as_mut() else { return Ok(()) };
        if check.behind.is_none_or(|behind| behind > drained) {
            return Ok(());
        }
        if check.point.is_some() {
            return self.judge();
        }
        if self.run.paused || !self.run.tracking.settled().contains(DISK) {
            return Ok(());
        }
        let Some(comparable) = self.run.tracking.fix_check(check.order) else {
            self.check = None;
            return Ok(());
        };
        check.behind = None;
        let sectors = index(check.order.range.offset / SECTOR)..;
        let sectors = sectors.start..sectors.start + check.data.len();
        self.apply();
        let log = self.run.log.image[sectors.clone()].to_vec();
        let replica = self.replica[sectors].to_vec();
        let check = self.check.as_mut().expect("it was there a moment ago");
        check.point = Some(Fixed { unknown: Vec::new(), comparable, replica, log });
        Ok(())
    }

    /// The replica comes to the log's end; what it held before counts no more where that writes.
    fn apply(&mut self) {
        for (first, values) in &self.run.log.records[self.applied..] {
            for (at, value) in (index(*first)..).zip(values) {
                self.replica[at] = Some(*value);
            }
        }
        self.applied = self.run.log.records.len();
    }

    /// The target's answer stands, and the ring is drained up to when it came.
    fn judge(&mut self) -> Result<(), String> {
        let Checking { order, data, point, .. } = self.check.take().expect("one is judged");
        let fixed = point.expect("only after its point");
        let Some(doubtful) = self.run.tracking.end_check(order) else { return Ok(()) };
        let granules = fixed.comparable.untouched.iter().flat_map(|range| {
            let all = GranuleRange::touching(*range);
            (all.first.0..all.end.0)
                .map(|at| GranuleRange { first: Granule(at), end: Granule(at + 1) })
        });
        let granules: Vec<ByteRange> =
            granules.map(|granule| granule.bytes(self.run.world.size())).collect();
        for granule in granules {
            let start = index((granule.offset - order.range.offset) / SECTOR);
            let sectors = start..start + index(granule.length / SECTOR);
            let differs = data[sectors.clone()] != fixed.replica[sectors.clone()];
            let garbled = fixed.log[sectors.clone()] != fixed.replica[sectors.clone()];
            let is_doubtful = doubtful.intersects(granule);
            self.done.compared += 1;
            let is_unknown = fixed.unknown.iter().any(|range| range.overlaps(&granule));
            if differs && !garbled && !is_doubtful && !is_unknown {
                let log = &fixed.log[sectors.clone()];
                return Err(format!("{granule}: log {log:?}, disk {:?}", &data[sectors]));
            }
            if garbled && !differs {
                return Err(format!("{granule} was garbled and not found"));
            }
            if differs && !is_doubtful {
                self.done.found += usize::from(garbled);
                self.run.tracking.demand(&mut self.run.world, DISK, granule);
            }
        }
        Ok(())
    }

    /// The machine rests: every byte can be compared, what is garbled is found and repaired, and
    /// then nothing is found.
    fn rest(mut self) -> Result<Done, String> {
        self.run.rest()?;
        self.run.tracking.forget_checks();
        self.check = None;
        self.apply();
        self.garble();
        let size = self.run.world.size();
        for is_repaired in [false, true] {
            self.apply();
            let order =
                self.run.tracking.start_check(DISK, ByteRange::new(0, size)).expect("a disk");
            let data = values(&self.run.world.read(order.range));
            let comparable = self.run.tracking.fix_check(order).ok_or("not settled at rest")?;
            if comparable.untouched != [order.range] {
                return Err(format!("at rest {comparable:?} may be compared"));
            }
            let doubtful = self.run.tracking.end_check(order).ok_or("voided at rest")?;
            let differing = (0..data.len()).filter(|&at| data[at] != self.replica[at]);
            let differing: Vec<u64> = differing.map(|at| at as u64).collect();
            if differing.is_empty() != is_repaired || !doubtful.is_empty() {
                return Err(format!("repaired: {is_repaired}, {differing:?} differ"));
            }
            for sector in differing {
                let range = ByteRange::new(sector * SECTOR, SECTOR);
                self.run.tracking.demand(&mut self.run.world, DISK, range);
            }
            self.run.rest()?;
        }
        Ok(self.done)
    }
}

fn values(bytes: &[u8]) -> Vec<Option<Value>> {
    let sectors = bytes.chunks_exact(index(SECTOR));
    sectors.map(|sector| Some(Value::from_le_bytes(sector[..8].try_into().unwrap()))).collect()
}
