//! Is one recovery point crash-consistent? Copies it out, mounts it, asks filesystem and database.
//! It must never look at the live disks: a point has to stand for itself.

use crate::commits::{Acknowledged, last_row};
use crate::disk::{Filesystem, LoopDisk, Mounted};
use crate::noise::{self, KeptFile};
use crate::report::Point;
use crate::site::Site;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::time::SystemTime;

/// The database's file on each disk.
pub const DATABASE: &str = "commits.db";
/// The directory of the noise on each disk.
pub const NOISE: &str = "noise";

/// One protected disk, as far as checking goes.
pub struct Checked {
    /// Its name.
    pub name: String,
    /// What is on it.
    pub filesystem: Filesystem,
    /// Its noise.
    pub files: Vec<KeptFile>,
}

/// Checks one point of all disks, the databases in the order of their commits. `marked` is how many
/// rows of each were acknowledged before the point was asked for, where a call of `mark` made it.
pub fn check_point(
    site: &Site,
    point: &Point,
    disks: &[Checked],
    acknowledged: &Acknowledged,
    marked: Option<&[usize]>,
    scratch: &Path,
) -> Result<()> {
    let mut rows = Vec::new();
    for disk in disks {
        let image = scratch.join(format!("point-{}.img", disk.name));
        site.copy_out(&disk.name, &point.id, &image)?;
        let found = check_image(&image, point.taken_at, disk, &scratch.join("point"));
        rows.push(found.with_context(|| format!("disk {} at {point:?}", disk.name))?);
        fs::remove_file(&image)?;
    }
    judge(point.taken_at, &rows, acknowledged, marked).with_context(|| format!("{point:?}"))
}

/// Mounts an image, which plays the journal back, and checks it; returns the last row.
pub fn check_image(
    image: &Path,
    taken_at: SystemTime,
    disk: &Checked,
    directory: &Path,
) -> Result<usize> {
    let copy = LoopDisk::over(image)?;
    let mounted = Mounted::new(disk.filesystem, &copy, directory)?;
    let rows = last_row(&directory.join(DATABASE))?;
    noise::check(&directory.join(NOISE), &disk.files, taken_at)?;
    mounted.unmount()?;
    disk.filesystem.check(&copy)?;
    Ok(rows)
}

/// Whether each database holds what was acknowledged before, and none is ahead of the one before
/// it.
fn judge(
    taken_at: SystemTime,
    rows: &[usize],
    acknowledged: &Acknowledged,
    marked: Option<&[usize]>,
) -> Result<()> {
    for (index, (&found, times)) in rows.iter().zip(acknowledged).enumerate() {
        let before = times.iter().filter(|time| **time < taken_at).count();
        let expected = marked.map_or(before, |marked| before.max(marked[index]));
        ensure!(
            found >= expected,
            "disk {index} ends with row {found}, and {expected} were acknowledged before"
        );
    }
    for (index, pair) in rows.windows(2).enumerate() {
        ensure!(
            pair[1] <= pair[0],
            "disk {} holds row {}, disk {index} before it only {}",
            index + 1,
            pair[1],
            pair[0]
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_lost_commit_and_a_second_ahead_of_the_first_are_found() {
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let acknowledged = vec![vec![at(1), at(3), at(5)], vec![at(2), at(4), at(6)]];
        // At 4.5 both hold two; the third of the first may be on its way.
        let point = at(4) + Duration::from_millis(500);
        assert!(judge(point, &[2, 2], &acknowledged, None).is_ok());
        assert!(judge(point, &[3, 2], &acknowledged, None).is_ok());
        assert!(judge(point, &[1, 2], &acknowledged, None).is_err());
        assert!(judge(point, &[2, 1], &acknowledged, None).is_err());
        assert!(judge(point, &[2, 3], &acknowledged, None).is_err());
        assert!(judge(point, &[2, 2], &acknowledged, Some(&[3, 2])).is_err());
    }
}
