//! One verify from its request to its outcome: which batch is read, which waits for the target's
//! answer, what was found. It decides; the owner lends it the tracker and the reads.

use super::batch::{Fixed, Hashed, Reading};
use super::plan::Plan;
use super::{Untracked, VerifyEvent, VerifyRequest};
use crate::error::AgentError;
use crate::reader::{Finished, Reader};
use crate::requests::{Ask, CheckAnswer, NotChecked};
use redoubt_log::{DiskIndex, DiskSet, PointId, RangeSet, Sequence};
use redoubt_protocol::message::bounded_text;
use redoubt_protocol::verify::{DIFFERENCES_LISTED, Difference, PIECE_BYTES, VerifyOutcome};
use redoubt_tracker::{ChangeSource, ReadOrder, RingPosition, Tracking};
use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

/// Reads of a verify at once: half of the queue, so that reads of `D` always find room; the owner
/// hashes so much between two looks at the ring.
const READS_AT_ONCE: usize = 4;

/// Batches between their point and the end of the target's answer: one is answered while the next
/// is read and waits.
const FIXED_AT_ONCE: usize = 2;

/// How often is told how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// So long nothing may move: a disk that does not settle, a target that does not answer. What is
/// left then counts as not compared.
const PATIENCE: Duration = Duration::from_secs(600);

/// Answers in a row that say that nothing was compared; the reason then ends the verify.
const REFUSALS_MOST: u32 = 3;

/// What the owner lends.
pub(crate) struct Hands<'a, S> {
    pub source: &'a mut S,
    pub tracking: &'a mut Tracking,
    pub reader: &'a mut Reader,
}

/// What a step has come to.
pub(super) enum Step {
    GoesOn,
    /// All is compared, or tried often enough.
    Ended,
    Failed(String),
}

/// What differed from the disk at a point.
pub(crate) struct Found {
    pub disk: DiskIndex,
    pub different: RangeSet,
    pub point: PointId,
}

/// A disk that is compared.
pub(super) struct RunDisk {
    pub index: DiskIndex,
    pub name: String,
    pub size: u64,
}

/// A verify under way.
pub(super) struct Run {
    pub request: VerifyRequest,
    plans: Vec<(DiskIndex, Plan)>,
    names: BTreeMap<DiskIndex, String>,
    /// Bytes of disks that are not tracked, and which those are.
    untracked: (u64, Vec<String>),
    reading: Option<Reading>,
    /// Oldest first; the first is asked about.
    fixed: VecDeque<Fixed>,
    answer: Option<Receiver<CheckAnswer>>,
    refusals: u32,
    /// What differed, up to [`DIFFERENCES_LISTED`] ranges of all disks.
    listed: BTreeMap<DiskIndex, RangeSet>,
    unlisted: u64,
    differing_bytes: u64,
    /// What was found since this was last asked.
    found: Vec<Found>,
    point: Option<PointId>,
    hindrance: Option<String>,
    told: Instant,
    moved: Instant,
}

impl Run {
    /// Of these disks; the untracked ones count as not compared.
    pub fn new(
        request: VerifyRequest,
        disks: Vec<RunDisk>,
        untracked: &[Untracked],
        now: Instant,
    ) -> Self {
        let why = |disk: &Untracked| format!("{} is not tracked ({})", disk.name, disk.reason);
        let untracked_bytes = untracked.iter().map(|disk| disk.size).sum();
        Self {
            request,
            plans: disks.iter().map(|disk| (disk.index, Plan::new(disk.size))).collect(),
            names: disks.into_iter().map(|disk| (disk.index, disk.name)).collect(),
            untracked: (untracked_bytes, untracked.iter().map(why).collect()),
            reading: None,
            fixed: VecDeque::new(),
            answer: None,
            refusals: 0,
            listed: BTreeMap::new(),
            unlisted: 0,
            differing_bytes: 0,
            found: Vec::new(),
            point: None,
            hindrance: None,
            told: now,
            moved: now,
        }
    }

    /// Whether a batch is being read or waits for its point.
    pub fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// A read of this verify, or of an earlier one, has ended.
    /// The ring is filled up to `produced` by now.
    pub fn take_read(
        &mut self,
        read: &Finished,
        tracking: &mut Tracking,
        produced: RingPosition,
        now: Instant,
    ) {
        let order = read.order;
        let Some(reading) = &mut self.reading else { return };
        let Some(at) = reading.under_way.iter().position(|other| *other == order) else { return };
        reading.under_way.swap_remove(at);
        self.moved = now;
        match &read.completion.result {
            Ok(length) => {
                let data = &read.completion.buffer[..*length];
                reading.read.push((order, Hashed::new(order.range, data)));
            }
            Err(error) => {
                tracking.end_check(order);
                let name = &self.names[&order.disk];
                let why = format!("{name}: read-error: {error} at {}", order.range);
                self.hindrance = Some(why);
            }
        }
        self.close_if_read(produced);
    }

    /// Whether the ring must be drained before the batch that was read can have its point.
    pub fn wants_drain(&self, drained: RingPosition) -> bool {
        let behind = self.reading.as_ref().and_then(|reading| reading.behind);
        behind.is_some_and(|behind| behind > drained)
    }

    /// Whether the batch that was read wants its point here.
    pub fn wants_point(&self, drained: RingPosition, settled: DiskSet) -> bool {
        self.reading.as_ref().is_some_and(|reading| {
            reading.behind.is_some_and(|behind| behind <= drained) && settled.contains(reading.disk)
        })
    }

    /// The point stands behind the batch: what was not touched is asked about.
    pub fn fix(&mut self, point: PointId, sequence: Sequence, tracking: &mut Tracking) {
        let Some(reading) = self.reading.take() else { return };
        let mut fixed = Fixed::new(reading.disk, point, sequence);
        let plan = plan_of(&mut self.plans, reading.disk);
        let mut read = reading.read;
        read.sort_by_key(|(order, _)| order.range.offset);
        for (order, hashed) in &read {
            fixed.orders.push(*order);
            // A gap has voided it: it is read again in a later pass.
            let Some(comparable) = tracking.fix_check(*order) else { continue };
            comparable.discarded.into_iter().for_each(|range| plan.discarded(range));
            for range in comparable.untouched {
                let parts = plan.left_in(range, PIECE_BYTES);
                parts.into_iter().for_each(|part| fixed.ask(hashed, part));
            }
        }
        if fixed.question().is_none() {
            fixed.behind = Some(tracking.drained());
        }
        self.fixed.push_back(fixed);
    }

    /// Goes on as far as that is possible without waiting; only disks that are `ready` are read,
    /// and without `asks` nothing is asked.
    pub fn step<S: ChangeSource>(
        &mut self,
        hands: &mut Hands<'_, S>,
        asks: Option<&tokio::sync::mpsc::Sender<Ask>>,
        ready: DiskSet,
        reads: &mut Vec<ReadOrder>,
        now: Instant,
    ) -> Result<Step, AgentError> {
        if let Err(why) = self.hear(hands.source.produced()) {
            return Ok(Step::Failed(why));
        }
        self.judge(hands, now);
        asks.into_iter().for_each(|asks| self.ask(asks));
        self.read(hands, ready, reads)?;
        self.tell(now);
        let idle = self.reading.is_none() && self.fixed.is_empty();
        if idle && self.plans.iter().all(|(_, plan)| plan.is_over()) {
            return Ok(Step::Ended);
        }
        if now - self.moved >= PATIENCE {
            let why = "nothing could be compared for ten minutes: `redoubt status` says why";
            self.hindrance.get_or_insert_with(|| why.to_owned());
            return Ok(Step::Ended);
        }
        Ok(Step::GoesOn)
    }

    /// Takes the target's answer, if it has come.
    fn hear(&mut self, produced: RingPosition) -> Result<(), String> {
        let Some(answer) = &self.answer else { return Ok(()) };
        let answer = match answer.try_recv() {
            Ok(answer) => answer,
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => Err(NotChecked::Lost("the agent stops".to_owned())),
        };
        self.answer = None;
        let Some(fixed) = self.fixed.front_mut() else { return Ok(()) };
        match answer {
            Ok(different) => {
                self.refusals = 0;
                fixed.answer(&different).map_err(|error| error.to_string())?;
                self.point = Some(fixed.point);
            }
            Err(NotChecked::Lost(why)) => {
                self.hindrance = Some(why);
                fixed.skip();
            }
            Err(NotChecked::Refused(why)) => {
                self.refusals += 1;
                if self.refusals >= REFUSALS_MOST {
                    return Err(format!("the target does not compare: {why}"));
                }
                self.hindrance = Some(why);
                fixed.skip();
            }
        }
        if fixed.question().is_none() {
            fixed.behind = Some(produced);
        }
        Ok(())
    }

    /// Everything is known of the oldest batch: what differs is demanded at once.
    fn judge<S: ChangeSource>(&mut self, hands: &mut Hands<'_, S>, now: Instant) {
        let drained = hands.tracking.drained();
        let is_due = |fixed: &Fixed| fixed.behind.is_some_and(|behind| behind <= drained);
        while self.fixed.front().is_some_and(is_due)
            && let Some(mut fixed) = self.fixed.pop_front()
        {
            self.moved = now;
            for order in &fixed.orders {
                match hands.tracking.end_check(*order) {
                    Some(doubtful) => doubtful.iter().for_each(|part| fixed.different.remove(part)),
                    None => fixed.different.remove(order.range),
                }
            }
            let plan = plan_of(&mut self.plans, fixed.disk);
            fixed.equal.iter().chain(fixed.different.iter()).for_each(|part| plan.compared(part));
            if fixed.different.is_empty() {
                continue;
            }
            for range in fixed.different.iter() {
                hands.tracking.demand(hands.source, fixed.disk, range);
            }
            self.list(fixed.disk, fixed.different, fixed.point);
        }
    }

    fn list(&mut self, disk: DiskIndex, different: RangeSet, point: PointId) {
        self.differing_bytes += different.total_bytes();
        for range in different.iter() {
            if self.listed.values().map(RangeSet::len).sum::<usize>() < DIFFERENCES_LISTED {
                self.listed.entry(disk).or_default().insert(range);
            } else {
                self.unlisted += 1;
            }
        }
        self.found.push(Found { disk, different, point });
    }

    /// What was found since this was last asked.
    pub fn take_found(&mut self) -> Vec<Found> {
        std::mem::take(&mut self.found)
    }

    /// One question at a time is at the target.
    fn ask(&mut self, asks: &tokio::sync::mpsc::Sender<Ask>) {
        if self.answer.is_some() {
            return;
        }
        let Some(check) = self.fixed.front().and_then(Fixed::question) else { return };
        let (reply, answer) = mpsc::channel();
        // Where the session is busy it is tried again; where it has gone, the agent ends.
        if asks.try_send(Ask::Check { check, reply }).is_ok() {
            self.answer = Some(answer);
        }
    }

    fn read<S: ChangeSource>(
        &mut self,
        hands: &mut Hands<'_, S>,
        ready: DiskSet,
        reads: &mut Vec<ReadOrder>,
    ) -> Result<(), AgentError> {
        // A disk that is tracked no longer keeps the others waiting no longer.
        self.reading.take_if(|reading| hands.tracking.size(reading.disk).is_none());
        if self.reading.is_none() && self.fixed.len() < FIXED_AT_ONCE {
            self.reading = self.choose(ready).map(Reading::new);
        }
        let Some(reading) = &mut self.reading else { return Ok(()) };
        let plan = plan_of(&mut self.plans, reading.disk);
        let effort = plan.effort();
        while reading.behind.is_none() && hands.reader.has_room() && reads.len() < READS_AT_ONCE {
            if reading.is_full(effort) {
                break;
            }
            let Some(range) = plan.next(effort.batch_bytes - reading.bytes) else { break };
            let Some(order) = hands.tracking.start_check(reading.disk, range) else { break };
            hands.reader.submit(order)?;
            reads.push(order);
            reading.under_way.push(order);
            reading.bytes += range.length;
            reading.reads += 1;
        }
        self.close_if_read(hands.source.produced());
        Ok(())
    }

    /// Where nothing more is read for the batch, its point may stand when the ring is drained up to
    /// here.
    fn close_if_read(&mut self, produced: RingPosition) {
        let Some(reading) = self.reading.as_mut().filter(|reading| reading.under_way.is_empty())
        else {
            return;
        };
        let plan = plan_of(&mut self.plans, reading.disk);
        if reading.behind.is_none() && (reading.is_full(plan.effort()) || !plan.has_next()) {
            reading.behind = Some(produced);
        }
    }

    /// The disk of the next batch: the first of which something is left in its pass.
    fn choose(&mut self, ready: DiskSet) -> Option<DiskIndex> {
        let fixed = &self.fixed;
        let waits = |disk: DiskIndex| fixed.iter().any(|fixed| fixed.disk == disk);
        let plans = self.plans.iter_mut().filter(|(disk, _)| ready.contains(*disk));
        let mut open = plans.filter_map(|(disk, plan)| {
            (plan.has_next() || !waits(*disk) && plan.begin_pass()).then_some(*disk)
        });
        open.next()
    }

    fn tell(&mut self, now: Instant) {
        if now - self.told < PROGRESS_EVERY {
            return;
        }
        self.told = now;
        let sum = |of: fn(&Plan) -> u64| self.plans.iter().map(|(_, plan)| of(plan)).sum::<u64>();
        let (total, left) = (sum(Plan::size), sum(Plan::left_bytes));
        (self.request.tell)(VerifyEvent::Progress(total - left, total));
    }

    /// Tells the outcome; returns the answer that is still awaited.
    pub fn finish(mut self) -> Option<Receiver<CheckAnswer>> {
        let sum = |of: fn(&Plan) -> u64| self.plans.iter().map(|(_, plan)| of(plan)).sum::<u64>();
        let listed = self.listed.iter().flat_map(|(disk, ranges)| {
            ranges.iter().map(|range| Difference {
                disk: *disk,
                offset: range.offset,
                length: range.length,
            })
        });
        let left_bytes = sum(Plan::left_bytes);
        let hindrance = self.hindrance.take().filter(|_| left_bytes > 0);
        let (untracked_bytes, mut why) = self.untracked;
        why.extend(hindrance);
        let hindrance = (!why.is_empty()).then(|| why.join("; "));
        let not_compared_bytes = left_bytes + untracked_bytes;
        let outcome = VerifyOutcome {
            compared_bytes: sum(Plan::compared_bytes),
            not_compared_bytes,
            discarded_bytes: sum(Plan::discarded_bytes),
            differing_bytes: self.differing_bytes,
            differences: listed.collect(),
            unlisted: self.unlisted,
            point: self.point,
            hindrance: hindrance.map(|why| bounded_text(&why).to_owned()),
        };
        tracing::info!(
            compared = outcome.compared_bytes,
            differing = outcome.differing_bytes,
            not_compared = not_compared_bytes,
            "verify ends"
        );
        (self.request.tell)(VerifyEvent::Ended(Ok(outcome)));
        self.answer
    }

    /// Tells that there is no outcome; what was found before is told all the same. Returns the
    /// answer that is still awaited.
    pub fn fail(mut self, why: &str) -> Option<Receiver<CheckAnswer>> {
        let found = match self.differing_bytes {
            0 => String::new(),
            bytes => format!(" ({bytes} bytes were found to differ before, and are read again)"),
        };
        let why = format!("{why}{found}");
        (self.request.tell)(VerifyEvent::Ended(Err(bounded_text(&why).to_owned())));
        self.answer
    }
}

fn plan_of(plans: &mut [(DiskIndex, Plan)], disk: DiskIndex) -> &mut Plan {
    let found = plans.iter_mut().find(|(index, _)| *index == disk);
    &mut found.expect("only disks with a plan are read").1
}

#[cfg(test)]
mod tests;
