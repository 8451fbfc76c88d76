//! One user a byte of a disk on one machine: an agent that protects it, or a target whose replica
//! lies on it. Advisory locks, which end with the process, whatever ends it.

use nix::fcntl::{FcntlArg, fcntl};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

const DIRECTORY: &str = "/run/lock/redoubt";

/// Tries before bytes count as another's: who has let a part of the disk go holds all of it for a
/// moment, to remove its file.
const TRIES: u32 = 10;
const BETWEEN_TRIES: Duration = Duration::from_millis(10);

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
    file: File,
    directory: PathBuf,
    bytes: DiskBytes,
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
        let path = file_of(directory, bytes.diskseq);
        let failed = |source: io::Error| LockError::Failed { path: path.clone(), source };
        let mut refused = 0;
        loop {
            let file = open(&path).map_err(failed)?;
            if !lock(&file, bytes).map_err(failed)? {
                refused += 1;
                if refused < TRIES {
                    std::thread::sleep(BETWEEN_TRIES);
                    continue;
                }
                match held(&file, bytes).map_err(failed)? {
                    Some(held) => return Err(LockError::Held(holder(directory, bytes, &held))),
                    None => continue,
                }
            }
            // Who has opened it before its last holder removed it holds what nobody else sees.
            if !is_named(&file, &path).map_err(failed)? {
                continue;
            }
            let taken = Self { file, directory: directory.to_owned(), bytes };
            let said = open(&said(directory, bytes.diskseq, bytes.start));
            said.and_then(|said| say(said, who)).map_err(failed)?;
            return Ok(taken);
        }
    }

    /// Who has what of the bytes, as far as it can be told; nothing is changed.
    pub fn look(bytes: DiskBytes) -> Option<Holder> {
        Self::look_in(Path::new(DIRECTORY), bytes)
    }

    /// As [`DiskLock::look`], with the files in another directory.
    pub fn look_in(directory: &Path, bytes: DiskBytes) -> Option<Holder> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(file_of(directory, bytes.diskseq)).ok()?;
        let held = held(&file, bytes).ok()??;
        Some(holder(directory, bytes, &held))
    }

    /// Removes the files of a disk of which nobody has anything any more. What cannot be removed
    /// harms nobody: a lock is held by a process, not by a file.
    fn leave_nothing(&self) {
        let DiskBytes { diskseq, start, .. } = self.bytes;
        // Nobody else can have said this, for these bytes are still held here.
        let _ = fs::remove_file(said(&self.directory, diskseq, start));
        // All of the disk, so that nobody else has a part; whoever comes now waits a moment, and
        // sees then that the file which it has opened has no name any more.
        let whole = DiskBytes { diskseq, start: 0, length: None };
        if !lock(&self.file, whole).unwrap_or(false) {
            return;
        }
        // What holders that were killed have said.
        let prefix = format!("{diskseq}.");
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let _ = fs::remove_file(entry.path());
            }
        }
        let _ = fs::remove_file(file_of(&self.directory, diskseq));
    }
}

impl Drop for DiskLock {
    fn drop(&mut self) {
        self.leave_nothing();
    }
}

/// Locks the bytes for the open file, not for the process: a disk that is asked for twice
/// conflicts, too. Whether that was possible.
fn lock(file: &File, bytes: DiskBytes) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&exclusive(bytes))) {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What keeps these bytes from being locked, if anything does.
fn held(file: &File, bytes: DiskBytes) -> io::Result<Option<libc::flock>> {
    let mut held = exclusive(bytes);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut held))?;
    let free = libc::c_short::try_from(libc::F_UNLCK).expect("kinds are small numbers");
    Ok((held.l_type != free).then_some(held))
}

/// Whether a path names the open file: a lock of one that was removed excludes nobody.
pub fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let opened = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (opened.dev(), opened.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The file that stands for a disk.
fn file_of(directory: &Path, diskseq: u64) -> PathBuf {
    directory.join(diskseq.to_string())
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

fn holder(directory: &Path, wanted: DiskBytes, held: &libc::flock) -> Holder {
    let start = u64::try_from(held.l_start).unwrap_or(0);
    let who = fs::read_to_string(said(directory, wanted.diskseq, start)).unwrap_or_default();
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
    fn who_has_what_is_seen_without_a_change() {
        let directory = tempfile::tempdir().unwrap();
        let look = |bytes| DiskLock::look_in(directory.path(), bytes);
        let (whole, first) = (bytes(None), bytes(Some((1 << 20, 8 << 20))));
        assert_eq!(look(whole), None);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let _held = DiskLock::take_in(directory.path(), first, "the first").unwrap();
        let who = "the first".to_owned();
        let expected = Holder { start: 1 << 20, length: Some(8 << 20), who };
        assert_eq!((look(whole), look(first)), (Some(expected.clone()), Some(expected)));
        assert_eq!(look(bytes(Some((9 << 20, 1 << 20)))), None);
    }

    #[test]
    fn the_last_holder_of_a_disk_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let files = || fs::read_dir(directory.path()).unwrap().count();
        let take = |bytes| DiskLock::take_in(directory.path(), bytes, "somebody").unwrap();
        let (first, second) = (bytes(Some((1 << 20, 8 << 20))), bytes(Some((9 << 20, 8 << 20))));
        // One that was killed has said something.
        fs::write(directory.path().join("42.777"), "long dead").unwrap();
        fs::write(directory.path().join("421"), "").unwrap();
        let held = (take(first), take(second));
        drop(held.0);
        let refused = DiskLock::take_in(directory.path(), bytes(None), "a latecomer");
        assert!(matches!(refused, Err(LockError::Held(_))), "the second is there");
        drop(held.1);
        assert_eq!(files(), 1, "another disk's file alone");
        drop(take(bytes(None)));
        assert_eq!(files(), 1);
    }

    #[test]
    fn files_that_come_and_go_let_nobody_hold_what_another_holds() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let directory = tempfile::tempdir().unwrap();
        let parts = [bytes(Some((0, 8 << 20))), bytes(Some((8 << 20, 8 << 20)))];
        let holders = [AtomicU32::new(0), AtomicU32::new(0)];
        let taken = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let (directory, holders, taken) = (directory.path(), &holders, &taken);
                scope.spawn(move || {
                    let which = thread % parts.len();
                    for _ in 0..100 {
                        match DiskLock::take_in(directory, parts[which], "one of six") {
                            Ok(lock) => {
                                assert_eq!(holders[which].fetch_add(1, Ordering::SeqCst), 0);
                                taken.fetch_add(1, Ordering::SeqCst);
                                std::thread::yield_now();
                                holders[which].fetch_sub(1, Ordering::SeqCst);
                                drop(lock);
                            }
                            Err(LockError::Held(_)) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                });
            }
        });
        assert!(taken.into_inner() > 0);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
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
