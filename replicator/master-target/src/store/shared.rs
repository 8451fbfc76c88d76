//! What the journal's thread, the apply's thread and readers of one machine share, behind small
//! locks. Locks are taken in the order journal, manifest, all others; only the first two, the
//! apply's turn and that of the claimed devices span I/O.

use super::error::Result;
use super::history::History;
use super::index::JournalIndex;
use super::journal::Journal;
use super::layout::MachineLayout;
use super::manifest::{Manifest, RetentionSpan};
use super::placement::Placements;
use super::root::StoreOptions;
use redoubt_engine::storage::{BlockFile, Open, Storage, StorageError};
use redoubt_log::{DiskIndex, MachineId, Sequence};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Block devices that are claimed.
#[derive(Default)]
pub(super) struct Devices {
    /// Those that are proven.
    pub(super) proven: BTreeMap<DiskIndex, Arc<dyn BlockFile>>,
    /// Those that were let go: where a view reads one still, nobody can claim it anew.
    pub(super) let_go: BTreeMap<DiskIndex, Weak<dyn BlockFile>>,
}

/// One machine's parts.
pub(super) struct Shared {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) layout: MachineLayout,
    pub(super) machine: MachineId,
    pub(super) options: StoreOptions,
    /// The writing end of the journal; held by its thread during journal I/O.
    pub(super) journal: Mutex<Journal>,
    /// As it stands on the disk; held while it is replaced.
    pub(super) manifest: Mutex<Manifest>,
    /// Never held during I/O.
    pub(super) index: Mutex<JournalIndex>,
    /// The retention files that readers see, oldest first.
    pub(super) published: Mutex<Arc<Vec<RetentionSpan>>>,
    /// Points that views hold, and how many each.
    pub(super) pins: Mutex<BTreeMap<Sequence, usize>>,
    /// Block devices that are claimed and proven; held while one is claimed.
    pub(super) devices: Mutex<Devices>,
    /// Devices chosen for disks that are still to be announced.
    pub(super) placements: Arc<Placements>,
    /// What is known of the retention files; nothing else is locked below it.
    pub(super) history: Mutex<History>,
    /// One apply at a time.
    pub(super) applying: Mutex<()>,
}

impl Shared {
    /// Of the machine that the manifest describes, with its journal as it was found.
    pub(super) fn new(
        options: StoreOptions,
        layout: MachineLayout,
        manifest: Manifest,
        (journal, index): (Journal, JournalIndex),
        placements: Arc<Placements>,
    ) -> Self {
        Self {
            storage: journal.storage.clone(),
            layout,
            machine: manifest.machine,
            options,
            journal: Mutex::new(journal),
            published: Mutex::new(Arc::new(manifest.retention.clone())),
            history: Mutex::new(History::new(&manifest.retention)),
            manifest: Mutex::new(manifest),
            index: Mutex::new(index),
            pins: Mutex::new(BTreeMap::new()),
            devices: Mutex::default(),
            placements,
            applying: Mutex::new(()),
        }
    }

    /// What readers see now.
    pub(super) fn published(&self) -> Arc<Vec<RetentionSpan>> {
        lock(&self.published).clone()
    }

    /// Shows readers other retention files.
    pub(super) fn publish(&self, spans: Vec<RetentionSpan>) {
        *lock(&self.published) = Arc::new(spans);
    }

    /// Replaces the manifest on the disk; durable when this returns.
    pub(super) fn save(&self, manifest: &Manifest) -> Result<()> {
        manifest.save(&*self.storage, &self.layout.manifest())
    }
}

/// Creates a file that no manifest speaks of yet, in the place of what an attempt that failed may
/// have left.
pub(super) fn create_anew(
    storage: &dyn Storage,
    path: &Path,
    how: Open,
) -> std::result::Result<Arc<dyn BlockFile>, StorageError> {
    match storage.open(path, how) {
        Err(error) if error.source.kind() == ErrorKind::AlreadyExists => {
            storage.remove(path)?;
            storage.open(path, how)
        }
        other => other,
    }
}

/// Locks, also after a panic elsewhere: what these locks guard is replaced whole, or names its own
/// failure.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
