//! One user a byte of a disk on one machine: an agent that protects it, or a target whose replica
//! lies on it. Advisory locks, which end with the process, whatever ends it.

use nix::fcntl::{FcntlArg, fcntl};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const DIRECTORY: &str = "/run/lock/redoubt";

/// A disk, or a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskBytes {
    /// The kernel's sequence number of the whole disk, in this boot.
    pub diskseq: u64,
    /// First byte.
    pub start: u64,
    /// How many; `None` for a whole disk, which may grow.
    pub length: Option<u64>,
}

/// Who has bytes of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The first of those bytes.
    pub start: u64,
    /// How many; `None` for a whole disk.
    pub length: Option<u64>,
    /// In its own words.
    pub who: String,
}

/// Why bytes are not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has them, or some of them.
    #[error("is held by {who}: let it go there, or take another device", who = .0.who)]
    Held(Holder),
    /// The lock cannot be made.
    #[error("lock {path}: {source}", path = path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could stand in for what the locks are made of.
    #[error(
        "lock directory {path} is not a directory that only this user may write to: remove it, and \
         it is made anew",
        path = path.display()
    )]
    Open {
        /// The directory, or what is in its place.
        path: PathBuf,
    },
}

/// The lock of a disk: of its bytes within a file that stands for the whole disk. So a disk and its
/// partitions exclude each other, and two partitions do not.
#[derive(Debug)]
pub struct DiskLock {
    _file: File,
}

impl DiskLock {
    /// Takes it, or says who has what of it; `who` is what others are told meanwhile.
    pub fn take(bytes: DiskBytes, who: &str) -> Result<Self, LockError> {
        let directory = Path::new(DIRECTORY);
        make_private(directory)?;
        Self::take_in(directory, bytes, who)
    }

    /// As [`DiskLock::take`], with the files in another directory.
    pub fn take_in(directory: &Path, bytes: DiskBytes, who: &str) -> Result<Self, LockError> {
        let path = directory.join(bytes.diskseq.to_string());
        let failed = |source: io::Error| LockError::Failed { path: path.clone(), source };
        let file = open(&path).map_err(failed)?;
        // Of the open file, not of the process: a disk that is asked for twice conflicts, too.
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&exclusive(bytes))) {
            Ok(_) => {
                let said = open(&said(directory, bytes.diskseq, bytes.start));
                said.and_then(|said| say(said, who)).map_err(failed)?;
                Ok(Self { _file: file })
            }
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
                let mut held = exclusive(bytes);
                fcntl(&file, FcntlArg::F_OFD_GETLK(&mut held))
                    .map_err(|error| failed(error.into()))?;
                Err(LockError::Held(holder(directory, bytes.diskseq, &held)))
            }
            Err(error) => Err(failed(error.into())),
        }
    }
}

fn exclusive(bytes: DiskBytes) -> libc::flock {
    let small = |kind: libc::c_int| libc::c_short::try_from(kind).expect("kinds are small numbers");
    let offset = |bytes: u64| libc::off_t::try_from(bytes).expect("disks are below 8 EiB");
    libc::flock {
        l_type: small(libc::F_WRLCK),
        l_whence: small(libc::SEEK_SET),
        l_start: offset(bytes.start),
        // Zero has no end.
        l_len: offset(bytes.length.unwrap_or(0)),
        l_pid: 0,
    }
}

fn holder(directory: &Path, diskseq: u64, held: &libc::flock) -> Holder {
    let start = u64::try_from(held.l_start).unwrap_or(0);
    let who = fs::read_to_string(said(directory, diskseq, start)).unwrap_or_default();
    // Between its lock and its word, or let go meanwhile.
    let who = if who.is_empty() { "somebody who has not said who".to_owned() } else { who };
    Holder { start, length: u64::try_from(held.l_len).ok().filter(|length| *length > 0), who }
}

/// Where who holds bytes from `start` on says so. It counts only while the lock is held: then
/// nobody else can have written it.
fn said(directory: &Path, diskseq: u64, start: u64) -> PathBuf {
    directory.join(format!("{diskseq}.{start}"))
}

/// Makes the directory unless it is there. Its parent is everybody's to write to: what is there may
/// be anybody's, and lead anywhere.
fn make_private(directory: &Path) -> Result<(), LockError> {
    let failed = |source| LockError::Failed { path: directory.to_owned(), source };
    match DirBuilder::new().mode(0o700).recursive(true).create(directory) {
        // A file or a dangling link in its place: told below.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let found = fs::symlink_metadata(directory).map_err(failed)?;
    let is_ours = found.uid() == nix::unistd::geteuid().as_raw() && found.mode() & 0o022 == 0;
    if found.is_dir() && is_ours {
        Ok(())
    } else {
        Err(LockError::Open { path: directory.to_owned() })
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW).open(path)
}

fn say(mut said: File, who: &str) -> io::Result<()> {
    said.set_len(0)?;
    said.write_all(who.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn bytes(part: Option<(u64, u64)>) -> DiskBytes {
        let (start, length) = part.map_or((0, None), |(start, length)| (start, Some(length)));
        DiskBytes { diskseq: 42, start, length }
    }

    #[test]
    fn a_disk_and_its_partitions_exclude_each_other_and_two_partitions_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let take = |bytes, who: &str| DiskLock::take_in(directory.path(), bytes, who);
        let refused = |bytes| match take(bytes, "a latecomer").unwrap_err() {
            LockError::Held(holder) => holder,
            other => panic!("{other}"),
        };
        let (whole, first) = (bytes(None), bytes(Some((1 << 20, 8 << 20))));
        let second = bytes(Some((9 << 20, 8 << 20)));
        let held = (take(first, "the first").unwrap(), take(second, "the second").unwrap());
        let found = refused(whole);
        assert_eq!(
            found,
            Holder { start: 1 << 20, length: Some(8 << 20), who: "the first".into() }
        );
        assert_eq!(refused(second).who, "the second");
        drop(held);
        let held = take(whole, "the whole").unwrap();
        let found = refused(second);
        assert_eq!(found, Holder { start: 0, length: None, who: "the whole".into() });
        assert_eq!(refused(whole), found);
        drop(held);
        // Nobody is named by what an earlier holder said.
        let _held = take(second, "another").unwrap();
        assert_eq!(refused(whole).who, "another");
        take(DiskBytes { diskseq: 43, ..whole }, "of another disk").unwrap();
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let refused = |path: &Path| matches!(make_private(path), Err(LockError::Open { .. }));
        let directory = base.path().join("locks");
        make_private(&directory).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        make_private(&directory).unwrap();
        let link = base.path().join("link");
        std::os::unix::fs::symlink(&directory, &link).unwrap();
        assert!(refused(&link), "a link to a directory of ours");
        let file = base.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(refused(&file), "a file");
        for mode in [0o720, 0o702] {
            fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
            assert!(refused(&directory), "mode {mode:o}");
        }
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        make_private(&directory).unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&directory, Some(65_534), None).unwrap();
            assert!(refused(&directory), "another user's");
        }
    }

    #[test]
    fn no_lock_is_made_through_a_link() {
        for name in ["42", "42.0"] {
            let base = tempfile::tempdir().unwrap();
            let victim = base.path().join("victim");
            fs::write(&victim, "what others must not touch").unwrap();
            std::os::unix::fs::symlink(&victim, base.path().join(name)).unwrap();
            let error = DiskLock::take_in(base.path(), bytes(None), "somebody").unwrap_err();
            assert!(matches!(error, LockError::Failed { .. }), "{name}: {error}");
            assert_eq!(fs::read_to_string(&victim).unwrap(), "what others must not touch");
        }
    }
}
