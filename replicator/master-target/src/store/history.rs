//! Retention files that are missing or damaged, and the points that are lost with them. Those stay
//! listed, as lost: they are never read as something else. Nothing but them needs the files, so
//! journal and replicas go on, and what stands in front of the damage stays good.

use super::error::{Result, StoreError};
use super::machine::StoreMachine;
use super::manifest::{Point, RetentionSpan};
use super::retention::RetentionReader;
use super::shared::{Shared, lock};
use nix::errno::Errno;
use redoubt_log::{DiskIndex, DiskSet, Sequence, WallTime};
use std::collections::BTreeMap;
use std::io::ErrorKind;

/// Files that one look opens: a look is taken each second, beside all else that the disks do.
const FILES_A_LOOK: usize = 64;

/// The interval of a retention file, which is its name.
type Interval = (Sequence, Sequence);

/// What is known of the retention files since the machine was opened.
#[derive(Default)]
pub(super) struct History {
    /// Not looked at yet; the newest last. At most as many as the manifest listed.
    unseen: Vec<Interval>,
    /// Those that cannot be read, and why. The manifest forgets a file with its points: of one that
    /// it does not list nothing is told.
    lost: BTreeMap<Interval, String>,
}

/// The points of a disk that cannot be read, for a retention file that they need cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostPoints {
    /// The disk.
    pub disk: DiskIndex,
    /// The newest of them: every older one of the disk reads the same file.
    pub newest: Sequence,
    /// When that one was taken, by the protected machine's clock.
    pub taken_at: WallTime,
    /// Which file, and what is wrong with it.
    pub why: String,
}

/// The disks for which a point is lost.
pub fn harmed_disks(point: &Point, lost: &[LostPoints]) -> DiskSet {
    let mut harmed = DiskSet::default();
    let behind = lost.iter().filter(|lost| point.sequence <= lost.newest);
    let disks = behind.map(|lost| lost.disk).filter(|disk| point.disks.contains(*disk));
    disks.for_each(|disk| harmed.insert(disk));
    harmed
}

impl StoreMachine {
    /// The lost points of each disk that has any.
    pub fn lost_points(&self) -> Vec<LostPoints> {
        let manifest = lock(&self.shared.manifest);
        let history = lock(&self.shared.history);
        let mut found: Vec<LostPoints> = Vec::new();
        if history.lost.is_empty() {
            return found;
        }
        for span in manifest.retention.iter().rev() {
            let Some(why) = history.lost.get(&(span.from, span.to)) else { continue };
            for disk in span.disks.iter() {
                let mut points = manifest.points.iter().rev();
                let reads =
                    |point: &&Point| point.sequence <= span.from && point.disks.contains(disk);
                // A newer file that is lost takes all of these with it.
                let is_known = found.iter().any(|known| known.disk == disk);
                if let Some(newest) = points.find(reads).filter(|_| !is_known) {
                    let (newest, taken_at) = (newest.sequence, newest.taken_at);
                    found.push(LostPoints { disk, newest, taken_at, why: why.clone() });
                }
            }
        }
        found
    }

    /// Opens some of the retention files that nobody has looked at since the machine was opened:
    /// what is missing, or damaged where it begins, is known before somebody needs it. Damage
    /// farther inside shows where it is read.
    pub fn look_at_history(&self) {
        let shared = &self.shared;
        let unseen = {
            let mut history = lock(&shared.history);
            let rest = history.unseen.len().saturating_sub(FILES_A_LOOK);
            history.unseen.split_off(rest)
        };
        let listed = shared.published();
        let mut again = Vec::new();
        for interval in unseen {
            let Some(span) = listed.iter().find(|span| (span.from, span.to) == interval) else {
                continue;
            };
            if shared.open_retention(span).is_err_and(|error| !is_lasting(&error)) {
                again.push(interval);
            }
        }
        lock(&shared.history).unseen.extend(again);
    }
}

impl History {
    /// Of a machine that is opened.
    pub(super) fn new(listed: &[RetentionSpan]) -> Self {
        let unseen = listed.iter().map(|span| (span.from, span.to)).collect();
        Self { unseen, lost: BTreeMap::new() }
    }
}

impl Shared {
    /// Opens a sealed retention file; one that is missing or damaged is remembered.
    pub(super) fn open_retention(&self, span: &RetentionSpan) -> Result<RetentionReader> {
        let interval = (span.from, span.to);
        let opened = RetentionReader::open(&*self.storage, &self.layout, self.machine, interval);
        opened
            .map_err(|error| match error {
                StoreError::Storage(error) if error.source.kind() == ErrorKind::NotFound => {
                    let path = self.layout.sealed(span.from, span.to);
                    StoreError::damaged(&path, 0, "the retention file is missing")
                }
                other => other,
            })
            .inspect_err(|error| self.note_unread(interval, error))
    }

    /// Remembers that a retention file cannot be read, where that will not pass by itself.
    pub(super) fn note_unread(&self, interval: Interval, error: &StoreError) {
        if !is_lasting(error) {
            return;
        }
        let mut is_news = false;
        lock(&self.history).lost.entry(interval).or_insert_with(|| {
            is_news = true;
            error.to_string()
        });
        if is_news {
            let machine = self.machine;
            tracing::error!(%machine, %error, "the recovery points that need this file are lost");
        }
    }
}

/// Whether a file that cannot be read is lost, rather than out of reach for a moment.
fn is_lasting(error: &StoreError) -> bool {
    match error {
        StoreError::Damaged { .. } | StoreError::NewerVersion { .. } => true,
        StoreError::Storage(error) => error.source.raw_os_error() == Some(Errno::EIO as i32),
        _ => false,
    }
}
