//! The lock of a data directory: one target at a time, or whoever finishes what it left half done.
//! Looking whether it is held never keeps a target from starting.

use super::error::TargetError;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Its name in the directory.
pub(super) const FILE: &str = "target.lock";

/// Tries before the lock counts as another's: who only looks holds it for a moment.
const TRIES: u32 = 10;
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

/// Takes the lock, which lasts as long as what is returned.
pub(super) fn take(data: &Path) -> Result<Flock<File>, TargetError> {
    let path = path(data);
    let failed = |source| TargetError::File { path: path.clone(), source };
    let mut options = OpenOptions::new();
    let opened = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
    let mut file = opened.map_err(failed)?;
    for attempt in 1.. {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, nix::Error::EWOULDBLOCK)) if attempt < TRIES => file,
            Err((_, nix::Error::EWOULDBLOCK)) => break,
            Err((_, error)) => return Err(failed(error.into())),
        };
        std::thread::sleep(BETWEEN_TRIES);
    }
    Err(TargetError::Locked { data: data.to_owned() })
}

/// Whether somebody holds the lock, as far as it can be told; what cannot be told counts as held.
pub(super) fn is_held(data: &Path) -> bool {
    match File::open(path(data)) {
        Ok(file) => Flock::lock(file, FlockArg::LockSharedNonblock).is_err(),
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

fn path(data: &Path) -> PathBuf {
    data.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_tells_and_does_not_keep_a_target_away() {
        let data = tempfile::tempdir().unwrap();
        assert!(!is_held(data.path()), "nobody ever ran here");
        let held = take(data.path()).unwrap();
        assert!(is_held(data.path()));
        let error = take(data.path()).err().unwrap();
        assert!(matches!(error, TargetError::Locked { .. }), "{error}");
        drop(held);
        assert!(!is_held(data.path()));
        std::thread::scope(|scope| {
            let path = data.path();
            let looking = scope.spawn(move || (0..20_000).filter(|_| is_held(path)).count());
            for _ in 0..50 {
                drop(take(path).unwrap());
            }
            looking.join().unwrap();
        });
    }
}
