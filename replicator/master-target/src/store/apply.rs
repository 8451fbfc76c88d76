//! Brings the replica disks forward by one interval, from one position at which they may stop to
//! the next. No replica byte is written before what it overwrites is sealed; a cut at any instant
//! is taken up by the next call.

use super::consistency::Consistency;
use super::error::{Result, StoreError};
use super::fold::Fold;
use super::journal_reader::JournalReader;
use super::manifest::{Manifest, Point, Protection, RetentionSpan};
use super::replica;
use super::retention::RetentionWriter;
use super::rules::{Rule, holds};
use super::shared::{Shared, lock};
use super::suspicion::{self, Suspicion};
use redoubt_engine::storage::Open;
use redoubt_log::frame::PlacedRecord;
use redoubt_log::{DiskSet, Generation, Record, Sequence, WallTime};

/// What one call of apply did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyOutcome {
    /// Nothing can be applied yet.
    Idle,
    /// The replica disks hold everything up to here; call again.
    Applied {
        /// The last applied record.
        to: Sequence,
        /// The recovery point there, where there is one.
        point: Option<Point>,
    },
}

/// Where an interval ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// Where an apply was cut: it must be finished as it began.
    Exactly(Sequence),
    /// At the next marker, or before it where the fold grows too large.
    Marker,
    /// At the durable end, or after this many bytes.
    Step(u64),
}

/// Applies the next interval, if one is due.
pub(super) fn apply_next(shared: &Shared, now: WallTime) -> Result<ApplyOutcome> {
    let _turn = lock(&shared.applying);
    let Some(goal) = choose_goal(shared) else { return Ok(ApplyOutcome::Idle) };
    // Also where nothing is written to the disk: a point must not name what is not there.
    if let Some((_, error)) = shared.missing_replicas().pop() {
        return Err(error);
    }
    let interval = Interval::fold(shared, goal)?;
    let begun = matches!(goal, Goal::Exactly(_));
    let retained = if begun { None } else { interval.write_old_content(shared)? };
    let seal_first = holds(Rule::SealBeforeWrite);
    if seal_first && !begun {
        interval.begin(shared, retained)?;
    }
    let replicas = replica::write(shared, interval.from, interval.frames, &interval.fold)?;
    if !seal_first && !begun {
        interval.begin(shared, retained)?;
    }
    if holds(Rule::SyncBeforeAdvance) {
        replica::sync(&replicas)?;
    }
    let point = interval.advance(shared, now)?;
    if !holds(Rule::SyncBeforeAdvance) {
        replica::sync(&replicas)?;
    }
    Ok(ApplyOutcome::Applied { to: interval.to, point })
}

/// What is due, if anything. A disk that has points stands still between them, unless the journal
/// outgrows its limit, or its disk.
fn choose_goal(shared: &Shared) -> Option<Goal> {
    let manifest = lock(&shared.manifest);
    if let Some(to) = manifest.applying {
        return Some(Goal::Exactly(to));
    }
    let index = lock(&shared.index);
    if index.last_marker > manifest.applied {
        return Some(Goal::Marker);
    }
    let pending = index.bytes_after(manifest.applied);
    let options = &shared.options;
    if pending > options.pending_limit {
        return Some(Goal::Step(options.pending_limit));
    }
    let stands_still = !manifest.retained_disks().is_empty();
    // Where the journal has no room its next marker cannot come before what it holds has gone.
    let due = pending >= options.step_bytes && !stands_still || pending > 0 && index.full;
    due.then_some(Goal::Step(options.step_bytes))
}

/// An interval `(from, to]` of the log, folded.
struct Interval {
    from: Sequence,
    to: Sequence,
    frames: u32,
    fold: Fold,
    /// Disks written whose old content must be kept.
    retained: DiskSet,
    /// Disks whose protection the log ends.
    removed: DiskSet,
    /// What the log says of the disks at the end.
    consistency: Consistency,
    generation: Generation,
    marker: Option<Record>,
    /// What the log says of older points.
    suspicions: Vec<Suspicion>,
}

impl Interval {
    /// Reads the records, not the payload, up to where the goal is.
    fn fold(shared: &Shared, goal: Goal) -> Result<Self> {
        let mut interval = Self::start(&lock(&shared.manifest));
        let retained = lock(&shared.manifest).retained_disks();
        let limit = match goal {
            Goal::Step(bytes) => bytes,
            Goal::Marker | Goal::Exactly(_) => shared.options.pending_limit,
        };
        let mut bytes = 0;
        let mut reader = JournalReader::new(shared, interval.from);
        while let Some(frame) = reader.next()? {
            let header = *frame.header();
            let records = frame.decode_table().map_err(|error| {
                StoreError::damaged(&shared.layout.journal(), 0, error.to_string())
            })?;
            bytes += header.frame_length() as u64;
            interval.consistency.take(&header, &records);
            interval.suspicions.extend(suspicion::told(&header, &records));
            interval.add(header.last, records);
            let large = bytes >= limit || interval.fold.is_large(shared.options.ranges_limit);
            let reached = match goal {
                Goal::Exactly(to) => interval.to >= to,
                Goal::Marker | Goal::Step(_) => interval.marker.is_some() || large,
            };
            if reached {
                break;
            }
        }
        if let Goal::Exactly(to) = goal
            && interval.to != to
        {
            let what = format!("an apply to {to} was begun, but the journal has no such end");
            return Err(StoreError::damaged(&shared.layout.journal(), 0, what));
        }
        interval.generation = interval.consistency.generation();
        interval.retained = DiskSet(retained.0 & interval.fold.disks().0);
        Ok(interval)
    }

    fn start(manifest: &Manifest) -> Self {
        Self {
            from: manifest.applied,
            to: manifest.applied,
            frames: 0,
            fold: Fold::without(manifest.deleted_disks()),
            retained: DiskSet::default(),
            removed: DiskSet::default(),
            consistency: Consistency::of_applied(manifest),
            generation: manifest.applied_generation,
            marker: None,
            suspicions: Vec::new(),
        }
    }

    fn add(&mut self, last: Sequence, mut records: Vec<PlacedRecord>) {
        self.fold.add(self.frames, &records);
        self.frames += 1;
        self.to = last;
        for placed in &records {
            if let Record::DiskRemoved { disk } = placed.record {
                self.removed.insert(disk);
            }
        }
        let last_record = records.pop().map(|placed| placed.record);
        self.marker = last_record.filter(|record| matches!(record, Record::Marker { .. }));
    }

    /// Writes and syncs what the interval will overwrite, where that must be kept. Still unsealed.
    fn write_old_content(&self, shared: &Shared) -> Result<Option<RetentionSpan>> {
        if self.retained.is_empty() {
            return Ok(None);
        }
        let unsealed = shared.layout.unsealed(self.from, self.to);
        let written = self.try_write_old_content(shared);
        if written.is_err() {
            // Best effort, so that a full disk gets its space back; else the next start removes it.
            shared.storage.remove(&unsealed).ok();
        }
        written.map(Some)
    }

    fn try_write_old_content(&self, shared: &Shared) -> Result<RetentionSpan> {
        let extent = self.fold.extent(self.retained);
        let interval = (self.from, self.to);
        let mut writer = RetentionWriter::create(
            &*shared.storage,
            &shared.layout,
            shared.machine,
            interval,
            extent,
        )?;
        for disk in self.retained.iter() {
            let file = shared.replica(disk, Open::ReadOnly)?;
            replica::copy_old_content(&*file, disk, &self.fold, &mut writer)?;
        }
        writer.finish()
    }

    /// Seals the old content and says in the manifest that the replica disks are about to change:
    /// from here on the retention file is never rebuilt.
    fn begin(&self, shared: &Shared, retained: Option<RetentionSpan>) -> Result<()> {
        if let Some(span) = retained {
            let unsealed = shared.layout.unsealed(span.from, span.to);
            shared.storage.rename(&unsealed, &shared.layout.sealed(span.from, span.to))?;
            shared.storage.sync_directory(&shared.layout.retention())?;
        }
        let mut manifest = lock(&shared.manifest);
        let mut next = manifest.clone();
        next.applying = Some(self.to);
        next.retention.extend(retained);
        shared.save(&next)?;
        if holds(Rule::PublishBeforeWrite) {
            shared.publish(next.retention.clone());
        }
        *manifest = next;
        Ok(())
    }

    /// States in the manifest that the replica disks have come to the interval's end.
    fn advance(&self, shared: &Shared, now: WallTime) -> Result<Option<Point>> {
        let floor = lock(&shared.index).floor(self.to);
        let mut manifest = lock(&shared.manifest);
        let mut next = manifest.clone();
        next.applied = self.to;
        next.applied_generation = self.generation;
        next.applying = None;
        next.journal = floor.unwrap_or(next.journal);
        let removed = next.disks.iter_mut().filter(|disk| self.removed.contains(disk.index));
        let active = removed.filter(|disk| disk.protection.is_active());
        active.for_each(|disk| disk.protection = Protection::EndedByAgent);
        let point = self.point(&next);
        let good = point.as_ref().map_or(DiskSet::default(), |point| point.disks);
        let written = self.fold.disks();
        for disk in next.disks.iter_mut().filter(|disk| disk.is_kept()) {
            disk.consistent_from = self.consistency.since(disk.index);
            disk.has_data |= written.contains(disk.index);
            disk.has_points |= good.contains(disk.index);
            let moved = disk.ahead_of_point || written.contains(disk.index);
            disk.ahead_of_point = disk.has_points && moved && !good.contains(disk.index);
        }
        let suspicions = self.suspicions.iter();
        suspicions.for_each(|newer| suspicion::take(&mut next.suspicions, *newer));
        next.points.extend(point.clone());
        shared.save(&next)?;
        shared.publish(next.retention.clone());
        let mut index = lock(&shared.index);
        index.move_floor(next.journal, now);
        index.points_applied(next.applied);
        drop(index);
        *manifest = next;
        Ok(point)
    }

    /// The recovery point at the end, where a marker stands there and a disk is consistent.
    fn point(&self, manifest: &Manifest) -> Option<Point> {
        let point = self.consistency.point(self.marker.as_ref()?, self.to)?;
        manifest.judged(point)
    }
}
