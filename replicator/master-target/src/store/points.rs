//! Which recovery points are kept, and the removal of those that are too old, oldest first.
//! The manifest forgets a point before its file goes; a point that a view holds stays, and so do
//! the newest one and, of each disk, those that are not old beside the disk's own newest.

use super::error::Result;
use super::manifest::{Manifest, Point, RetentionSpan};
use super::shared::{Shared, lock};
use super::suspicion::Suspicion;
use redoubt_log::{DiskIndex, DiskSet, Sequence, WallTime};
use std::time::Duration;

/// A point as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedPoint {
    /// The point.
    pub point: Point,
    /// Whether it is durable in the journal only: the replica disks have not come to it.
    pub waits: bool,
    /// What was found out later that makes it doubtful, if anything was.
    pub suspicion: Option<Suspicion>,
}

impl ListedPoint {
    /// Whether it can be gone back to, and nothing is known that speaks against it.
    pub fn is_proven(&self) -> bool {
        self.point.proven && !self.waits && self.suspicion.is_none()
    }
}

/// All points, oldest first: the applied ones, and behind them those that wait for that.
pub(super) fn listed(shared: &Shared) -> Vec<ListedPoint> {
    let manifest = lock(&shared.manifest);
    let index = lock(&shared.index);
    let list = |point: Point, waits| {
        // The newest first: it is the one that counts.
        let mut known = index.suspicions.iter().chain(&manifest.suspicions);
        let suspicion = known.find(|suspicion| suspicion.is_of(&point)).copied();
        ListedPoint { point, waits, suspicion }
    };
    let applied = manifest.points.iter().map(|point| list(point.clone(), false));
    let waiting = index.waiting_points(manifest.applied).cloned();
    let waiting = waiting.filter_map(|point| manifest.judged(point));
    applied.chain(waiting.map(|point| list(point, true))).collect()
}

/// Removes points older than `keep`; returns how many. Their age is measured at the newest point,
/// by the machine's own clock, so that the history of a machine that is silent does not melt away;
/// a clock that ran ahead of the target's `now` does not count. A disk of which no point comes, for
/// it is being read again, is not there or is protected no more, is such a machine of its own: an
/// old point stays for it alone.
pub(super) fn drop_expired(shared: &Shared, now: WallTime, keep: Duration) -> Result<usize> {
    let mut manifest = lock(&shared.manifest);
    let pinned = lock(&shared.pins).keys().next().copied();
    let kept = kept_disks(&manifest.points, Terms { now, keep, pinned });
    // Asked each second: a manifest of which nothing goes is not copied.
    if kept.iter().zip(&manifest.points).all(|(disks, point)| *disks == point.disks) {
        return Ok(0);
    }
    let mut next = manifest.clone();
    for (point, disks) in next.points.iter_mut().zip(kept) {
        if disks != point.disks {
            (point.disks, point.complete) = (disks, false);
        }
    }
    next.points.retain(|point| !point.disks.is_empty());
    let dropped = manifest.points.len() - next.points.len();
    let unneeded = drain_unneeded(&mut next);
    shared.save(&next)?;
    shared.publish(next.retention.clone());
    *manifest = next;
    shared.remove_retention(&unneeded)?;
    Ok(dropped)
}

/// When each point was taken, as far as that can be: one that was ahead of `reference` and is
/// followed by one that was not is as old as that one. Else a clock that was wrong for a moment
/// would keep everything behind it until it is right.
fn times(points: &[Point], reference: u64) -> Vec<u64> {
    let mut later = None;
    let mut times: Vec<u64> = Vec::with_capacity(points.len());
    for point in points.iter().rev() {
        if point.taken_at.0 <= reference {
            later = Some(point.taken_at.0);
        }
        times.push(later.unwrap_or(point.taken_at.0));
    }
    times.reverse();
    times
}

/// What decides whether a point is too old.
struct Terms {
    now: WallTime,
    keep: Duration,
    /// The oldest point that a view holds.
    pinned: Option<Sequence>,
}

/// Of each expired point, oldest first, the disks for which it stays all the same.
fn kept_disks(points: &[Point], terms: Terms) -> Vec<DiskSet> {
    let Some(newest) = points.last() else { return Vec::new() };
    let keep = u64::try_from(terms.keep.as_nanos()).unwrap_or(u64::MAX);
    let reference = newest.taken_at.0.min(terms.now.0);
    let times = times(points, reference);
    let oldest_kept = |newest: u64| newest.min(terms.now.0).saturating_sub(keep);
    let expired = points[..points.len() - 1]
        .iter()
        .zip(&times)
        .take_while(|(_, taken_at)| **taken_at < oldest_kept(reference))
        .take_while(|(point, _)| terms.pinned.is_none_or(|pinned| point.sequence < pinned))
        .count();
    if expired == 0 {
        return Vec::new();
    }
    let mut newest_of = [0; DiskIndex::LIMIT as usize];
    for (point, taken_at) in points.iter().zip(&times) {
        for disk in point.disks.iter() {
            newest_of[usize::from(disk.0)] = *taken_at;
        }
    }
    let kept = |(point, taken_at): (&Point, &u64)| {
        let mut kept = point.disks;
        let is_old = |disk: &DiskIndex| *taken_at < oldest_kept(newest_of[usize::from(disk.0)]);
        point.disks.iter().filter(is_old).for_each(|disk| kept.remove(disk));
        kept
    };
    points[..expired].iter().zip(&times).map(kept).collect()
}

/// Takes out the retention files that no view of a point could need.
pub(super) fn drain_unneeded(manifest: &mut Manifest) -> Vec<RetentionSpan> {
    // Both are in the order of the log: each is walked once.
    let mut points = manifest.points.iter().peekable();
    let mut before = DiskSet::default();
    let is_unneeded = |span: &mut RetentionSpan| {
        while let Some(point) = points.next_if(|point| point.sequence < span.to) {
            before.0 |= point.disks.0;
        }
        before.0 & span.disks.0 == 0
    };
    manifest.retention.extract_if(.., is_unneeded).collect()
}
