//! Which recovery points are kept, and the removal of those that are too old, oldest first.
//! The manifest forgets a point before its file goes; a point that a view holds stays, and so does
//! the newest one.

use super::error::Result;
use super::manifest::{Manifest, RetentionSpan};
use super::shared::{Shared, lock};
use redoubt_log::{Sequence, WallTime};
use std::time::Duration;

/// Removes points older than `keep`; returns how many. Their age is measured at the newest point,
/// by the machine's own clock, so that the history of a machine that is silent does not melt away;
/// a clock that ran ahead of the target's `now` does not count.
pub(super) fn drop_expired(shared: &Shared, now: WallTime, keep: Duration) -> Result<usize> {
    let mut manifest = lock(&shared.manifest);
    let Some(newest) = manifest.points.last() else { return Ok(0) };
    let keep = u64::try_from(keep.as_nanos()).unwrap_or(u64::MAX);
    let oldest_kept = newest.taken_at.0.min(now.0).saturating_sub(keep);
    let pinned = lock(&shared.pins).keys().next().copied();
    let last = manifest.points.len() - 1;
    let expired = manifest.points[..last]
        .iter()
        .take_while(|point| point.taken_at.0 < oldest_kept)
        .take_while(|point| pinned.is_none_or(|pinned| point.sequence < pinned))
        .count();
    if expired == 0 {
        return Ok(0);
    }
    let mut next = manifest.clone();
    next.points.drain(..expired);
    let unneeded = drain_unneeded(&mut next);
    shared.save(&next)?;
    shared.publish(next.retention.clone());
    *manifest = next;
    // What a cut leaves behind here is in no manifest and goes at the next start.
    for span in unneeded {
        shared.storage.remove(&shared.layout.sealed(span.from, span.to))?;
    }
    shared.storage.sync_directory(&shared.layout.retention())?;
    Ok(expired)
}

/// Takes out the retention files that end at or before the oldest point: no view needs them.
fn drain_unneeded(manifest: &mut Manifest) -> Vec<RetentionSpan> {
    let oldest = manifest.points.first().map_or(Sequence(0), |point| point.sequence);
    let count = manifest.retention.iter().take_while(|span| span.to <= oldest).count();
    manifest.retention.drain(..count).collect()
}
