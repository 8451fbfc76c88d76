//! What a store needs of a directory and its files, so that real disks and lying ones can stand
//! below it. A batch call returns only when the whole batch has ended; nothing written is durable
//! before `sync`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A failed operation on a named file.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {operation}: {source}", path = path.display())]
pub struct StorageError {
    /// The file or directory, as the operator knows it.
    pub path: PathBuf,
    /// What was attempted, e.g. `write 4096 bytes at 8192`.
    pub operation: String,
    /// What the system said.
    pub source: std::io::Error,
}

/// Result of a storage operation.
pub type Result<T> = std::result::Result<T, StorageError>;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// An existing file or block device, reading only.
    ReadOnly,
    /// An existing file or block device, reading and writing.
    ReadWrite,
    /// An existing block device, reading and writing, that nobody else may mount or claim while
    /// it is open.
    Claim,
    /// A file that must not exist yet, of this many bytes, sparse.
    CreateSparse(u64),
    /// A file that must not exist yet, of this many bytes, its blocks allocated.
    CreateAllocated(u64),
}

/// One read of a batch.
pub struct ReadRequest<'a> {
    /// First byte in the file.
    pub offset: u64,
    /// Filled completely; past the end of the file is an error.
    pub buffer: &'a mut [u8],
}

/// One write of a batch.
pub struct WriteRequest<'a> {
    /// First byte in the file.
    pub offset: u64,
    /// Written completely.
    pub data: &'a [u8],
}

/// A file or block device of fixed size. Any offset and length within it is allowed; aligned ones
/// are the fast path. Requests of one batch run in any order and must not overlap where one writes.
pub trait BlockFile: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;
    /// Reads the whole batch, in any order.
    fn read(&self, batch: &mut [ReadRequest<'_>]) -> Result<()>;
    /// Writes the whole batch, in any order; not durable before `sync`.
    fn write(&self, batch: &[WriteRequest<'_>]) -> Result<()>;
    /// Makes the range read as zeros, giving its space back where it can; not durable before
    /// `sync`.
    fn zero(&self, offset: u64, length: u64) -> Result<()>;
    /// The next range at or after `offset` that may hold other bytes than zero: `(offset, length)`.
    /// A block device cannot say: it returns all the rest.
    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>>;
    /// Everything written before is durable when this returns.
    fn sync(&self) -> Result<()>;
    /// By what the system knows this block device again after a reboot, whatever its path is then;
    /// `None` for a file, and for a device whose driver tells nothing.
    fn identity(&self) -> Result<Option<String>>;
}

/// A directory tree. Paths are relative to its root; an absolute one names a block device.
pub trait Storage: Send + Sync {
    /// Opens or creates a file.
    fn open(&self, path: &Path, how: Open) -> Result<Arc<dyn BlockFile>>;
    /// Creates a directory and its parents where missing, durably.
    fn create_directory(&self, path: &Path) -> Result<()>;
    /// Names in a directory, sorted; empty where it does not exist. What a cut `replace` left
    /// beside its target is not listed.
    fn list(&self, path: &Path) -> Result<Vec<String>>;
    /// Removes a file; not durable before `sync_directory`.
    fn remove(&self, path: &Path) -> Result<()>;
    /// Removes a directory and all below it; not durable before `sync_directory` of its parent, and
    /// a cut may leave any part of it.
    fn remove_tree(&self, path: &Path) -> Result<()>;
    /// Renames a file, replacing the target; not durable before `sync_directory`.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Creations, renames and removals in this directory are durable when this returns.
    fn sync_directory(&self, path: &Path) -> Result<()>;
    /// A whole small file, or `None` where there is none.
    fn load(&self, path: &Path) -> Result<Option<Vec<u8>>>;
    /// Replaces a small file atomically and durably (write beside, sync, rename, sync the
    /// directory).
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()>;
    /// Bytes still free.
    fn free_space(&self) -> Result<u64>;
}
