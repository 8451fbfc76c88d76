//! One agent a state directory, and one agent a disk: advisory locks that end with the process,
//! whatever ends it.

use crate::error::AgentError;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const DISK_LOCKS: &str = "/run/lock/redoubt";

/// The lock of a state directory.
pub(crate) struct StateLock {
    _file: Flock<File>,
}

impl StateLock {
    /// Takes it, or says that another agent has it.
    pub fn take(directory: &Path) -> Result<Self, AgentError> {
        let taken = || AgentError::StateLocked { directory: directory.to_owned() };
        Ok(Self { _file: lock(&directory.join("agent.lock"))?.ok_or_else(taken)? })
    }
}

/// The lock of a disk, by its sequence number in this boot; a partition has one of its own.
pub(crate) struct DiskLock {
    _file: Flock<File>,
}

impl DiskLock {
    /// Takes it, or says that another agent has it.
    pub fn take(device: &Path, diskseq: u64, start: u64) -> Result<Self, AgentError> {
        let directory = PathBuf::from(DISK_LOCKS);
        fs::create_dir_all(&directory)
            .map_err(|source| AgentError::Lock { path: directory.clone(), source })?;
        let taken = || AgentError::DiskLocked { device: device.to_owned() };
        Ok(Self { _file: lock(&directory.join(format!("{diskseq}-{start}")))?.ok_or_else(taken)? })
    }
}

/// `None` where another process holds it.
fn lock(path: &Path) -> Result<Option<Flock<File>>, AgentError> {
    let failed = |source| AgentError::Lock { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(path);
    match Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(failed(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_has_one_agent() {
        let directory = tempfile::tempdir().unwrap();
        let first = StateLock::take(directory.path()).unwrap();
        assert!(matches!(StateLock::take(directory.path()), Err(AgentError::StateLocked { .. })));
        drop(first);
        StateLock::take(directory.path()).unwrap();
    }
}
