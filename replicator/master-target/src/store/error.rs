//! What can go wrong in the store, naming the file and what the operator can do. It decides
//! nothing.

use redoubt_engine::storage::StorageError;
use redoubt_log::{DiskIndex, MachineId, PointId, Sequence};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Result of a store operation.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A failed operation of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The storage below failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A file does not hold what was written to it.
    #[error(
        "{path}: damaged at byte {position}: {what}; `redoubt inspect` tells what is unharmed",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the damage begins.
        position: u64,
        /// What is wrong there.
        what: String,
    },
    /// A file was written by a newer program.
    #[error(
        "{path}: has format version {version}, this program knows up to {known}; use a newer one",
        path = path.display()
    )]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// The newest version known here.
        known: u32,
    },
    /// The journal failed before; nothing is acknowledged until the store is opened again.
    #[error(
        "machine {machine}: the journal failed and takes nothing until the target restarts: \
         {reason}"
    )]
    JournalFailed {
        /// The machine.
        machine: MachineId,
        /// The first failure.
        reason: String,
    },
    /// A frame that does not belong at the journal's end.
    #[error("machine {machine}: frame refused: {reason}")]
    Refused {
        /// The machine.
        machine: MachineId,
        /// Why.
        reason: String,
    },
    /// No such machine.
    #[error("machine {0}: not known to this store; it must be enrolled first")]
    UnknownMachine(MachineId),
    /// The machine is there already.
    #[error("machine {0}: exists already in this store")]
    MachineExists(MachineId),
    /// The machine was removed, and not all that was kept of it is gone.
    #[error(
        "machine {0}: its removal is not finished; the target's next start tries again, and its \
         log says what hinders it"
    )]
    RemovalUnfinished(MachineId),
    /// Another machine has the name.
    #[error("machine name {0}: taken by another machine; choose another")]
    NameTaken(String),
    /// No such disk.
    #[error("disk {0}: not known for this machine")]
    UnknownDisk(DiskIndex),
    /// The machine has as many disks as a log can name.
    #[error("disk {name}: a machine has at most {} disks", DiskIndex::LIMIT)]
    TooManyDisks {
        /// The disk that was to be added.
        name: String,
    },
    /// A disk came back with other properties.
    #[error("disk {name}: {what}")]
    DiskChanged {
        /// The disk.
        name: String,
        /// What changed and what can be done.
        what: String,
    },
    /// No such point.
    #[error("point {0}: not kept, or not applied yet; `redoubt points` lists those that are")]
    UnknownPoint(PointId),
    /// The point is durable in the journal.
    #[error(
        "point {0}: is safe in the journal, and waits for the replica disks to come to it: \
         `redoubt status` says what hinders that, and `redoubt points` when it is applied"
    )]
    PointWaits(PointId),
    /// The disk has no point yet.
    #[error("disk {0}: has no recovery point yet; `redoubt status` tells what it waits for")]
    NoPoint(DiskIndex),
    /// The point is not good for this disk.
    #[error("point at sequence {sequence}: not good for disk {disk}; choose a complete point")]
    PointWithoutDisk {
        /// The point.
        sequence: Sequence,
        /// The disk.
        disk: DiskIndex,
    },
    /// A view of one of the machine's points is open.
    #[error(
        "machine {machine}: one of its points is being read (a copy-out?): wait for its end, then \
         try again"
    )]
    BeingRead {
        /// The machine.
        machine: MachineId,
    },
    /// The disk's first sync has begun.
    #[error(
        "disk {disk}: its first sync has begun, so its replica stays where it is; end its \
         protection with `redoubt unprotect` and place it before it is protected again"
    )]
    HasData {
        /// The disk.
        disk: String,
    },
    /// A block device cannot be, or is not, the disk's replica.
    #[error("disk {disk}: {path}: {what}", path = path.display())]
    WrongDevice {
        /// The disk.
        disk: String,
        /// The device.
        path: PathBuf,
        /// What is wrong with it, and what can be done.
        what: String,
    },
    /// A file that held a replica is gone, or a part of it is.
    #[error(
        "{path}: the replica of disk {disk} {what}; stop the target and put the file back as it \
         was, or `redoubt unprotect --disk {disk} --delete-replica` and protect the disk again",
        path = path.display()
    )]
    ReplicaMissing {
        /// The disk.
        disk: String,
        /// The file.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// More devices are chosen than disks could come.
    #[error("{limit} devices wait for their disks: protect those disks first")]
    TooManyPlacements {
        /// The bound.
        limit: usize,
    },
    /// The copy's destination is smaller than the disk.
    #[error("the destination has {size} bytes, the disk needs {needed}; choose a larger one")]
    CopyTooSmall {
        /// Bytes of the destination.
        size: u64,
        /// Bytes of the disk.
        needed: u64,
    },
    /// A range beyond the disk's end.
    #[error("disk {disk}: {offset}+{length} lies beyond its end")]
    BeyondEnd {
        /// The disk.
        disk: DiskIndex,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
    },
}

impl StoreError {
    pub(crate) fn damaged(path: &Path, position: usize, what: impl Into<String>) -> Self {
        Self::damaged_at(path, position as u64, what)
    }

    pub(crate) fn damaged_at(path: &Path, position: u64, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), position, what: what.into() }
    }

    /// Whether there was no room: nothing is lost, and the operation may succeed when there is.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Storage(error) if matches!(
            error.source.kind(),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded
        ))
    }
}
