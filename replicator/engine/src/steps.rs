//! What every storage does by the same steps: range checks, path checks, and the atomic replacement
//! of a small file. Must never touch a disk but through the `Storage` that it is given.

use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::storage::{Open, Result, Storage, StorageError, WriteRequest};

/// Ends the names of files that a replacement writes beside its target. Such files are not listed:
/// one that a power cut left behind is nobody's and goes with the next replacement.
const BESIDE_SUFFIX: &str = ".replacing";

/// Replaces a small file: write beside, sync, rename, sync the directory. A cut between any two of
/// these leaves the old content or the new one, whole.
pub(crate) fn replace(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = beside(path);
    match storage.remove(&beside) {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
        other => other?,
    }
    let written = write_new(storage, &beside, bytes).and_then(|()| storage.rename(&beside, path));
    if written.is_err() {
        // The first error is the one to report; what is left beside goes with the next attempt.
        storage.remove(&beside).ok();
    }
    written?;
    storage.sync_directory(parent(path))
}

fn write_new(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> Result<()> {
    let file = storage.open(path, Open::CreateSparse(bytes.len() as u64))?;
    file.write(&[WriteRequest { offset: 0, data: bytes }])?;
    file.sync()
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(BESIDE_SUFFIX);
    path.with_file_name(name)
}

/// Whether a name belongs in a listing.
pub(crate) fn is_listed(name: &OsStr) -> bool {
    !name.as_encoded_bytes().ends_with(BESIDE_SUFFIX.as_bytes())
}

/// The directory of a path; the root is the empty path.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// Refuses paths that climb: whatever a peer made us name stays below the root.
pub(crate) fn check_path(path: &Path) -> io::Result<()> {
    if path.components().any(|part| part == Component::ParentDir) {
        let message = "the path leaves its root by '..': name it without";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(())
}

/// Refuses ranges past the end: a file's size is fixed when it is created.
pub(crate) fn check_range(size: u64, offset: u64, length: u64) -> io::Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("the range ends past the end of the file ({size} bytes)"),
        )),
    }
}

/// Names file and operation in an error.
pub(crate) fn named<T>(
    path: &Path,
    operation: impl FnOnce() -> String,
    result: io::Result<T>,
) -> Result<T> {
    result.map_err(|source| StorageError {
        path: path.to_path_buf(),
        operation: operation(),
        source,
    })
}
