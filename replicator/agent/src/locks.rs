//! One agent a state directory, and one agent a byte of a disk: advisory locks that end with the
//! process, whatever ends it.

use crate::error::AgentError;
use nix::fcntl::{Flock, FlockArg};
use redoubt_engine::locks::{DiskBytes, DiskLock, Holder, LockError, is_named};
use redoubt_log::ByteRange;
use redoubt_tracker::device::BlockDevice;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const SYS_BLOCK: &str = "/sys/class/block";
/// Sysfs counts sectors of this size, whatever the device's blocks are.
const SYSFS_SECTOR_BYTES: u64 = 512;

/// The lock of a state directory.
pub(crate) struct StateLock {
    path: PathBuf,
    file: Flock<File>,
}

/// Where the lock of a state directory stands.
pub(crate) fn state_lock(directory: &Path) -> PathBuf {
    directory.join("agent.lock")
}

impl StateLock {
    /// Takes it, or says that another agent has it.
    pub fn take(directory: &Path) -> Result<Self, AgentError> {
        let path = state_lock(directory);
        let failed = |source| AgentError::Lock { path: path.clone(), source };
        loop {
            let file = match Flock::lock(open(&path)?, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, nix::Error::EWOULDBLOCK)) => {
                    return Err(AgentError::StateLocked { directory: directory.to_owned() });
                }
                Err((_, error)) => return Err(failed(error.into())),
            };
            // Who has opened it before its holder removed it holds nothing that others see.
            if is_named(&file, &path).map_err(failed)? {
                return Ok(Self { path, file });
            }
        }
    }

    /// Lets it go, and leaves no file.
    pub fn remove(self) {
        let Self { path, file } = self;
        // While it is held: nobody else can hold a file of this name. One that stays harms nobody.
        let _ = fs::remove_file(path);
        drop(file);
    }
}

/// Takes the lock of a disk, or says who has what of it; `state` is where this agent's state lies.
pub(crate) fn take(device: &BlockDevice, state: &Path) -> Result<DiskLock, AgentError> {
    DiskLock::take(bytes(device), &who(state)).map_err(|error| refused(device, error))
}

/// Who has what of a disk, as far as that can be told.
#[derive(Debug)]
pub(crate) enum Use {
    /// Nobody.
    Free,
    /// The agent with this state directory has just this device.
    Own,
    /// Somebody has it, or has something that shares bytes with it.
    Taken(AgentError),
}

/// Looks who has what of a disk, and takes nothing.
pub(crate) fn look(device: &BlockDevice, state: &Path) -> Use {
    let wanted = bytes(device);
    match DiskLock::look(wanted) {
        None => Use::Free,
        Some(held) if held.who == who(state) && is_same(&held, wanted) => Use::Own,
        Some(held) => Use::Taken(refused(device, LockError::Held(held))),
    }
}

fn is_same(held: &Holder, bytes: DiskBytes) -> bool {
    (held.start, held.length) == (bytes.start, bytes.length)
}

fn who(state: &Path) -> String {
    let state = std::path::absolute(state).unwrap_or_else(|_| state.to_owned());
    format!("the agent with --state {}", state.display())
}

fn refused(device: &BlockDevice, error: LockError) -> AgentError {
    let path = device.path.clone();
    match error {
        LockError::Failed { path, source } => AgentError::Lock { path, source },
        LockError::Open { path } => AgentError::LockDirectory { path },
        LockError::Held(held) if is_same(&held, bytes(device)) => {
            AgentError::DiskLocked { device: path, holder: held.who }
        }
        LockError::Held(held) => {
            let other = node(device, &held);
            AgentError::PartLocked { device: path, other, holder: held.who }
        }
    }
}

/// The bytes of the device on its whole disk; a whole disk has no end, for it may grow.
fn bytes(device: &BlockDevice) -> DiskBytes {
    let is_whole = device.name == device.whole_name;
    DiskBytes {
        diskseq: device.diskseq,
        start: device.start,
        length: (!is_whole).then_some(device.length),
    }
}

/// The device node of what is locked: the whole disk, or the partition that begins there.
fn node(wanted: &BlockDevice, held: &Holder) -> PathBuf {
    let node = |name: &str| Path::new("/dev").join(name);
    if held.length.is_none() {
        return node(&wanted.whole_name);
    }
    let whole = Path::new(SYS_BLOCK).join(wanted.whole_name.replace('/', "!"));
    let begins_there = |name: &String| {
        let start = fs::read_to_string(whole.join(name).join("start")).ok();
        let start = start.and_then(|sectors| sectors.trim().parse::<u64>().ok());
        let start = start.and_then(|sectors| sectors.checked_mul(SYSFS_SECTOR_BYTES));
        start == Some(held.start)
    };
    let entries = fs::read_dir(&whole).into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    // One that is gone is named by its place.
    let unknown = || format!("{} (from byte {} on)", wanted.whole_name, held.start);
    node(&names.find(begins_there).unwrap_or_else(unknown).replace('!', "/"))
}

/// Whether two devices share bytes.
pub(crate) fn overlap(one: &BlockDevice, other: &BlockDevice) -> bool {
    let bytes = |device: &BlockDevice| ByteRange::new(device.start, device.length);
    one.diskseq == other.diskseq && bytes(one).overlaps(&bytes(other))
}

fn open(path: &Path) -> Result<File, AgentError> {
    let mut options = OpenOptions::new();
    options
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| AgentError::Lock { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use redoubt_tracker::device::DeviceNumber;

    #[test]
    fn a_state_directory_has_one_agent() {
        let directory = tempfile::tempdir().unwrap();
        let first = StateLock::take(directory.path()).unwrap();
        assert!(matches!(StateLock::take(directory.path()), Err(AgentError::StateLocked { .. })));
        drop(first);
        StateLock::take(directory.path()).unwrap();
    }

    #[test]
    fn a_lock_that_is_removed_is_never_held_twice() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let directory = tempfile::tempdir().unwrap();
        let (holders, held) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        let Ok(lock) = StateLock::take(directory.path()) else { continue };
                        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                        held.fetch_add(1, Ordering::SeqCst);
                        holders.fetch_sub(1, Ordering::SeqCst);
                        lock.remove();
                    }
                });
            }
        });
        assert!(held.into_inner() > 0);
        assert!(!state_lock(directory.path()).exists());
    }

    /// The whole disk `no0`, or a partition of it.
    fn device(part: Option<(u32, u64, u64)>) -> BlockDevice {
        let (name, start, length) = match part {
            None => ("no0".to_owned(), 0, 1 << 30),
            Some((number, start, length)) => (format!("no0p{number}"), start, length),
        };
        BlockDevice {
            path: Path::new("/dev").join(&name),
            name,
            stable_name: None,
            whole: DeviceNumber { major: 7, minor: 0 },
            whole_name: "no0".to_owned(),
            start,
            length,
            device_bytes: 1 << 30,
            logical_block_bytes: 512,
            diskseq: 42,
            request_based: true,
            uses: Vec::new(),
            is_swap: false,
        }
    }

    #[test]
    fn who_has_what_of_a_disk_is_named() {
        let (whole, first) = (device(None), device(Some((1, 1 << 20, 8 << 20))));
        let who = "the agent with --state /other".to_owned();
        let held = |device: &BlockDevice| {
            let DiskBytes { start, length, .. } = bytes(device);
            LockError::Held(Holder { start, length, who: who.clone() })
        };
        let text = |device, error| refused(device, error).to_string();
        let same = text(&whole, held(&whole));
        assert!(same.starts_with("/dev/no0: the agent with --state /other has"), "{same}");
        let part = text(&first, held(&whole));
        assert!(part.starts_with("/dev/no0p1: the agent with --state /other has /dev/no0,"));
        let part = text(&whole, held(&first));
        assert!(part.contains(" has /dev/no0 (from byte 1048576 on),"), "{part}");
    }

    #[test]
    fn what_shares_bytes_overlaps() {
        let whole = device(None);
        let first = device(Some((1, 1 << 20, 8 << 20)));
        let second = device(Some((2, 9 << 20, 8 << 20)));
        assert!(overlap(&whole, &first) && overlap(&first, &whole) && overlap(&first, &first));
        assert!(!overlap(&first, &second));
        assert!(!overlap(&whole, &BlockDevice { diskseq: 43, ..first }));
    }
}
