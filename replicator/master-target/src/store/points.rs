//! Which recovery points are kept, and the removal of those that are too old, oldest first.
//! The manifest forgets a point before its file goes; a point that a view holds stays, and so does
//! the newest one, and those of a disk whose protection has ended.

use super::error::Result;
use super::manifest::{Manifest, Point, RetentionSpan};
use super::shared::{Shared, lock};
use redoubt_log::{DiskIndex, DiskSet, WallTime};
use std::time::Duration;

/// Removes points older than `keep`; returns how many. Their age is measured at the newest point,
/// by the machine's own clock, so that the history of a machine that is silent does not melt away;
/// a clock that ran ahead of the target's `now` does not count. A disk whose protection has ended
/// is such a machine of its own: an old point stays for it alone.
pub(super) fn drop_expired(shared: &Shared, now: WallTime, keep: Duration) -> Result<usize> {
    let mut manifest = lock(&shared.manifest);
    let Some(newest) = manifest.points.last() else { return Ok(0) };
    let keep = u64::try_from(keep.as_nanos()).unwrap_or(u64::MAX);
    let reference = newest.taken_at.0.min(now.0);
    let oldest_kept = reference.saturating_sub(keep);
    let pinned = lock(&shared.pins).keys().next().copied();
    let last = manifest.points.len() - 1;
    let expired = manifest.points[..last]
        .iter()
        .zip(times(&manifest.points, reference))
        .take_while(|(_, taken_at)| *taken_at < oldest_kept)
        .take_while(|(point, _)| pinned.is_none_or(|pinned| point.sequence < pinned))
        .count();
    let mut next = manifest.clone();
    for point in &mut next.points[..expired] {
        let disks = kept_for(&manifest, point, keep);
        if disks != point.disks {
            (point.disks, point.complete) = (disks, false);
        }
    }
    next.points.retain(|point| !point.disks.is_empty());
    if next.points == manifest.points {
        return Ok(0);
    }
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

/// The disks of an expired point for which it stays all the same.
fn kept_for(manifest: &Manifest, point: &Point, keep: u64) -> DiskSet {
    let newest_of = |disk: DiskIndex| {
        let good = |point: &&Point| point.disks.contains(disk);
        manifest.points.iter().rev().find(good).map_or(0, |point| point.taken_at.0)
    };
    let mut kept = DiskSet::default();
    for disk in manifest.disks.iter().filter(|disk| !disk.protection.is_active()) {
        let is_young = point.taken_at.0 >= newest_of(disk.index).saturating_sub(keep);
        if point.disks.contains(disk.index) && is_young {
            kept.insert(disk.index);
        }
    }
    kept
}

/// Takes out the retention files that no view of a point could need.
pub(super) fn drain_unneeded(manifest: &mut Manifest) -> Vec<RetentionSpan> {
    let points = &manifest.points;
    let is_needed = |span: &RetentionSpan| {
        let before = points.iter().filter(|point| point.sequence < span.to);
        before.into_iter().any(|point| point.disks.0 & span.disks.0 != 0)
    };
    let needed: Vec<bool> = manifest.retention.iter().map(is_needed).collect();
    let mut needed = needed.into_iter();
    manifest.retention.extract_if(.., |_| needed.next() == Some(false)).collect()
}
