//! The agent's tracker of all disks: drains the ring into the log, reads what the log lacks, cuts
//! and drops epochs. A pure state machine over a [`ChangeSource`]: it never reads a disk, a clock
//! or a socket by itself.

mod checks;
mod disk;
mod epoch;
#[cfg(test)]
mod model;
mod reads;
#[cfg(test)]
mod rule_tests;

use crate::geometry::GRANULE_BYTES;
use crate::rules::{Rule, holds};
use crate::sink::LogSink;
use crate::source::{CaptureMode, ChangeSource, Event, Gather, Operation, RingPosition};
use disk::Disk;
use redoubt_log::GapReason;
use redoubt_log::{ByteRange, DiskIndex, DiskSet, Sequence};

pub use checks::Comparable;
pub use reads::{ReadId, ReadOrder};

/// Bytes of the ring that one batch takes: losses are looked for behind each, and what is not yet
/// known to be whole is kept in memory until then.
const BATCH_BYTES: u64 = 4 << 20;

/// What the tracker knows of a disk, for the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskProgress {
    /// Bytes whose content the log does not have yet.
    pub demand_bytes: u64,
    /// Reads under way.
    pub reads: usize,
    /// Writes in flight.
    pub in_flight: usize,
    /// Whether nothing is left to be read again: a point here is good for this disk.
    pub settled: bool,
    /// What the ring carries of this disk's writes now.
    pub mode: CaptureMode,
    /// Losses, by the kernel's counter.
    pub lost: u64,
    /// Submissions and completions that were missed, in this run or found at its start; each was
    /// answered.
    pub missed: u64,
    /// Unmarked completions, by the kernel's counter, that were answered.
    pub unmarked: u64,
    /// Why the log did not have all of it, the last time.
    pub gap: Option<GapReason>,
}

/// The tracker of all disks of a machine.
#[derive(Debug)]
pub struct Tracking {
    mode: CaptureMode,
    disks: Vec<Disk>,
    drained: RingPosition,
    next_read: u64,
}

impl Tracking {
    /// No disk yet. `mode` is what capture pays for while a disk is not paused.
    pub fn new(mode: CaptureMode) -> Self {
        Self { mode, disks: Vec::new(), drained: RingPosition::default(), next_read: 0 }
    }

    /// Takes a disk of `size` bytes in, of which the log has nothing that can be built on: `D` is
    /// the whole disk.
    pub fn add_whole<S: ChangeSource>(
        &mut self,
        source: &mut S,
        index: DiskIndex,
        size: u64,
        reason: GapReason,
        sink: &mut impl LogSink,
    ) -> Result<(), S::Error> {
        source.mark(index, ByteRange::new(0, size));
        // What was in flight before the disk was watched completes unmarked until here.
        let answered = source.unmarked(index);
        self.adopt(source, index, size, answered, reason, sink)
    }

    /// Takes a disk in that an earlier run of the agent has tracked without a break: `D` is every
    /// epoch not dropped. That run has answered `answered` unmarked completions; `D` answers the
    /// rest.
    pub fn adopt<S: ChangeSource>(
        &mut self,
        source: &mut S,
        index: DiskIndex,
        size: u64,
        answered: u64,
        reason: GapReason,
        sink: &mut impl LogSink,
    ) -> Result<(), S::Error> {
        let mut disk = Disk::new(index, size, answered, source);
        let missed = disk.unmarked_since(source);
        let reason = if missed { GapReason::MissedEvents } else { reason };
        self.disks.push(disk);
        self.resume(source, index, reason, sink)
    }

    /// Lets a disk go; its marks stay where they are.
    pub fn remove(&mut self, index: DiskIndex) {
        self.disks.retain(|disk| disk.index != index);
    }

    /// Stops paying for capture; the bitmap goes on.
    pub fn pause<S: ChangeSource>(
        &mut self,
        source: &mut S,
        index: DiskIndex,
    ) -> Result<(), S::Error> {
        let disk = self.disk_mut(index);
        (disk.capturing, disk.dropping) = (false, true);
        source.set_mode(index, CaptureMode::Bitmap)
    }

    /// Captures again, and puts into `D` what was only marked meanwhile: capture on first, cut
    /// second.
    pub fn resume<S: ChangeSource>(
        &mut self,
        source: &mut S,
        index: DiskIndex,
        reason: GapReason,
        sink: &mut impl LogSink,
    ) -> Result<(), S::Error> {
        if holds(Rule::ResumeThenCut) {
            source.set_mode(index, self.mode)?;
        }
        let lost = source.lost(index);
        self.drain_to(source, source.produced(), sink);
        let disk = self.disk_mut(index);
        (disk.capturing, disk.dropping) = (true, false);
        disk.seen_lost = lost;
        self.gap(source, index, reason, sink)?;
        if !holds(Rule::ResumeThenCut) {
            source.set_mode(index, self.mode)?;
        }
        Ok(())
    }

    /// A range must be shipped again. It is marked like a write, so that the demand outlives this
    /// process.
    pub fn demand<S: ChangeSource>(&mut self, source: &mut S, index: DiskIndex, range: ByteRange) {
        source.mark(index, range);
        self.disk_mut(index).want(range);
    }

    /// All of a disk must be shipped again, in a log that begins anew: nothing of it counts any
    /// more.
    pub fn demand_whole<S: ChangeSource>(
        &mut self,
        source: &mut S,
        index: DiskIndex,
        reason: GapReason,
        sink: &mut impl LogSink,
    ) -> Result<(), S::Error> {
        let size = self.disk_mut(index).demand.size();
        source.mark(index, ByteRange::new(0, size));
        self.disk_mut(index).epoch.void_cover();
        self.resume(source, index, reason, sink)
    }

    /// The target has lost, or never got, what was logged behind its last acknowledgement: covering
    /// positions named that tail, and every epoch not dropped goes into `D`.
    pub fn tail_lost<S: ChangeSource>(
        &mut self,
        source: &mut S,
        reason: GapReason,
        sink: &mut impl LogSink,
    ) -> Result<(), S::Error> {
        for index in self.indexes() {
            self.disk_mut(index).epoch.void_cover();
            self.resume(source, index, reason, sink)?;
        }
        Ok(())
    }

    /// Drains one batch of the ring into the log and looks for losses. Returns whether the ring
    /// held more.
    pub fn pump<S: ChangeSource>(
        &mut self,
        source: &mut S,
        sink: &mut impl LogSink,
    ) -> Result<bool, S::Error> {
        let produced = source.produced();
        let until = RingPosition(produced.0.min(self.drained.0 + BATCH_BYTES));
        self.drained = source.drain(until, &mut |event| handle(&mut self.disks, event, sink));
        let whole = self.look_for_losses(source, sink)?;
        self.look_for_misses(source);
        self.look_for_unmarked(source);
        // Positions are final only behind a checkpoint: a gap would still be put before them.
        if whole {
            for disk in &mut self.disks {
                if disk.became_consistent() {
                    sink.consistent(disk.index);
                }
            }
            sink.checkpoint();
            for disk in &mut self.disks {
                disk.cover(self.drained, sink.position());
            }
        }
        Ok(self.drained < produced)
    }

    /// Cuts the bitmap of every disk whose spare array is free, so that a later gap costs little.
    pub fn rotate<S: ChangeSource>(&mut self, source: &mut S) -> Result<(), S::Error> {
        for disk in &mut self.disks {
            if disk.epoch.is_free() {
                source.cut(disk.index)?;
                disk.epoch.cut(source.produced());
            }
        }
        Ok(())
    }

    /// Lets go of every write that was in flight already at the last call, and reads its range
    /// again. To be called at long intervals, with the ring drained: an end that still waits in
    /// there would be taken for missing.
    pub fn look_for_overdue<S: ChangeSource>(&mut self, source: &mut S) {
        for disk in &mut self.disks {
            disk.look_for_overdue(source);
        }
    }

    /// Whether an acknowledgement of `sequence` lets an epoch go: it must be remembered durably
    /// before [`acknowledged`](Self::acknowledged) is called.
    pub fn may_drop(&self, sequence: Sequence) -> bool {
        self.disks.iter().any(|disk| disk.epoch.may_drop(sequence))
    }

    /// The master target has durably everything up to `sequence`: epochs that it covers are
    /// dropped.
    pub fn acknowledged<S: ChangeSource>(&mut self, source: &mut S, sequence: Sequence) {
        for disk in &mut self.disks {
            if disk.epoch.may_drop(sequence) {
                source.clear_spare(disk.index);
                disk.epoch.drop_now();
            }
        }
    }

    /// The next range to read for `D`, at most `limit` bytes; the read may be issued any time after
    /// this call.
    pub fn next_read(&mut self, index: DiskIndex, limit: u64) -> Option<ReadOrder> {
        let limit = limit.max(GRANULE_BYTES);
        let id = ReadId(self.next_read);
        let range = self.disk_mut(index).start_read(id, limit)?;
        self.next_read += 1;
        Some(ReadOrder { id, disk: index, range })
    }

    /// A read has ended with `data`: drains the ring up to now and logs what the stream does not
    /// have.
    pub fn finish_read<S: ChangeSource>(
        &mut self,
        source: &mut S,
        order: ReadOrder,
        data: &[u8],
        sink: &mut impl LogSink,
    ) -> Result<(), S::Error> {
        self.drain_to(source, source.produced(), sink);
        if self.look_for_losses(source, sink)? {
            sink.checkpoint();
        }
        self.disk_mut(order.disk).finish_read(order, data, sink);
        Ok(())
    }

    /// A read has failed: its range stays in `D`.
    pub fn fail_read(&mut self, order: ReadOrder) {
        self.disk_mut(order.disk).void_read(order.id);
    }

    /// The disks for which a point at the newest position is good.
    pub fn settled(&self) -> DiskSet {
        let mut set = DiskSet::default();
        let good = self.disks.iter().filter(|disk| disk.is_consistent() && disk.settled());
        good.for_each(|disk| set.insert(disk.index));
        set
    }

    /// Whether no counter of losses or misses has risen since it was answered.
    pub fn counters_stand<S: ChangeSource>(&self, source: &S) -> bool {
        self.disks.iter().all(|disk| disk.counters_stand(source))
    }

    /// How a disk stands.
    pub fn progress(&self, index: DiskIndex) -> Option<DiskProgress> {
        let disk = self.disks.iter().find(|disk| disk.index == index);
        disk.map(|disk| disk.progress(self.mode))
    }

    /// Bytes of a disk that would have to be read if its capture began now: `D`, and what is only
    /// marked. It walks both arrays.
    pub fn bytes_to_come<S: ChangeSource>(&self, source: &S, index: DiskIndex) -> u64 {
        let disk = self.disks.iter().find(|disk| disk.index == index);
        disk.map_or(0, |disk| disk.bytes_to_come(source))
    }

    /// How far the ring has been drained.
    pub fn drained(&self) -> RingPosition {
        self.drained
    }

    /// The disks, in the order in which they came.
    pub fn indexes(&self) -> Vec<DiskIndex> {
        self.disks.iter().map(|disk| disk.index).collect()
    }

    /// Answers every loss with a gap. Returns whether there was none.
    fn look_for_losses<S: ChangeSource>(
        &mut self,
        source: &mut S,
        sink: &mut impl LogSink,
    ) -> Result<bool, S::Error> {
        let mut whole = true;
        for index in self.indexes() {
            let lost = source.lost(index);
            if lost == self.disk_mut(index).seen_lost {
                continue;
            }
            whole = false;
            if holds(Rule::DrainBeforeForget) {
                let dropped = std::mem::replace(&mut self.disk_mut(index).dropping, true);
                self.drain_to(source, source.produced(), sink);
                self.disk_mut(index).dropping = dropped;
            }
            self.disk_mut(index).seen_lost = lost;
            self.gap(source, index, GapReason::RingOverflow, sink)?;
        }
        Ok(whole)
    }

    /// A missed completion leaves everything on its disk in doubt.
    fn look_for_misses<S: ChangeSource>(&mut self, source: &mut S) {
        for disk in &mut self.disks {
            if disk.missed_since() {
                let whole = ByteRange::new(0, disk.demand.size());
                source.mark(disk.index, whole);
                disk.want(whole);
            }
        }
    }

    /// A completion that found its range unmarked has marked it: that is where to read. What is
    /// paused reads every mark when it goes on.
    fn look_for_unmarked<S: ChangeSource>(&mut self, source: &S) {
        for disk in &mut self.disks {
            if disk.unmarked_since(source) && disk.capturing {
                disk.want_marked(source, GapReason::MissedEvents);
            }
        }
    }

    fn gap<S: ChangeSource>(
        &mut self,
        source: &mut S,
        index: DiskIndex,
        reason: GapReason,
        sink: &mut impl LogSink,
    ) -> Result<(), S::Error> {
        sink.gap(index, reason);
        self.disk_mut(index).gap(source, reason)
    }

    /// Drains until nothing before `until` is left; a piece that another processor is writing is
    /// waited for.
    fn drain_to<S: ChangeSource>(
        &mut self,
        source: &mut S,
        until: RingPosition,
        sink: &mut impl LogSink,
    ) {
        loop {
            self.drained = source.drain(until, &mut |event| handle(&mut self.disks, event, sink));
            if self.drained >= until {
                return;
            }
            std::thread::yield_now();
        }
    }

    fn disk_mut(&mut self, index: DiskIndex) -> &mut Disk {
        self.disks
            .iter_mut()
            .find(|disk| disk.index == index)
            .expect("only disks taken in are named")
    }
}

/// One event: the matcher remembers it, the log gets it.
fn handle(disks: &mut [Disk], event: Event<'_>, sink: &mut impl LogSink) {
    let (Event::Submitted { disk: index, .. }
    | Event::Completed { disk: index, .. }
    | Event::Split { disk: index, .. }) = event;
    // What is dropped is marked, and goes into `D` with the gap that follows: it costs no memory.
    let Some(disk) = disks.iter_mut().find(|disk| disk.index == index && !disk.dropping) else {
        return;
    };
    match event {
        Event::Submitted { bio, range, operation, data, .. } => {
            let captured = log_write(index, range, operation, data, sink);
            disk.submitted(bio, range, captured);
            disk.given_up(range, operation == Operation::Discard);
        }
        Event::Completed { bio, range, failed, .. } => disk.completed(bio, range, failed),
        Event::Split { front, parent, .. } => disk.split(front, parent),
    }
}

/// Returns whether the log has what the write did: else it is read back when it has completed.
fn log_write(
    disk: DiskIndex,
    range: ByteRange,
    operation: Operation,
    data: Option<Gather<'_>>,
    sink: &mut impl LogSink,
) -> bool {
    let bytes = data.map_or(0, |_| range.length);
    if !sink.has_room(bytes) {
        return !holds(Rule::NoRoomIsUncaptured);
    }
    match (operation, data) {
        (Operation::Write, Some(pieces)) => sink.write(disk, range, pieces),
        (Operation::Write, None) => return false,
        (Operation::WriteZeroes, _) => sink.zero(disk, range),
        (Operation::Discard, _) => sink.discard(disk, range),
    }
    true
}
