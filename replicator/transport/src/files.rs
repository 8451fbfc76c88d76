//! Small secret files: readable by their owner only, replaced whole and durably. Nothing here knows
//! what they hold.

use crate::error::{Result, TransportError};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Creates a directory (and its parents) for its owner only, where it is missing.
pub(crate) fn create_directory(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed(path, "create directory"))
}

/// Replaces a file durably.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = write_beside(path, bytes)?;
    fs::rename(&beside, path).map_err(failed(path, "replace"))?;
    sync_parent(path)
}

/// Creates a file durably, or leaves the one that is there, whoever else does the same at the same
/// time. Whether it was created.
pub(crate) fn create(path: &Path, bytes: &[u8]) -> Result<bool> {
    let beside = write_beside(path, bytes)?;
    let linked = fs::hard_link(&beside, path);
    fs::remove_file(&beside).map_err(failed(&beside, "remove"))?;
    match linked {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(failed(path, "create")(error)),
    }
}

/// A whole file, or `None` where there is none.
pub(crate) fn load(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, "read")(error)),
    }
}

/// The names in a directory, in order.
pub(crate) fn list(path: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(path).map_err(failed(path, "list"))?;
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    let names: std::io::Result<Vec<String>> = entries.map(name).collect();
    let mut names = names.map_err(failed(path, "list"))?;
    names.sort();
    Ok(names)
}

/// A whole file of text that must be there.
pub(crate) fn load_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(failed(path, "read"))
}

/// Waits until nobody else holds the lock with this path, and holds it until the file is dropped.
pub(crate) fn lock(path: &Path) -> Result<Flock<File>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    let file = file.map_err(failed(path, "open"))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| failed(path, "lock")(error.into()))
}

/// Makes creations, renames and removals beside `path` durable.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed(parent, "sync"))
}

/// Turns what the system said into our error.
pub(crate) fn failed(
    path: &Path,
    operation: &'static str,
) -> impl FnOnce(std::io::Error) -> TransportError {
    let path = path.to_owned();
    move |source| TransportError::File { path, operation, source }
}

fn write_beside(path: &Path, bytes: &[u8]) -> Result<std::path::PathBuf> {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    let mut name = std::ffi::OsString::from(".new-");
    name.push(unique);
    let beside = path.with_file_name(name);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .map_err(failed(&beside, "write"))?;
    Ok(beside)
}
