//! One agent a state directory, and one agent a byte of a disk: advisory locks that end with the
//! process, whatever ends it.

use crate::error::AgentError;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use redoubt_log::ByteRange;
use redoubt_tracker::device::BlockDevice;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const DISK_LOCKS: &str = "/run/lock/redoubt";
const SYS_BLOCK: &str = "/sys/class/block";
/// Sysfs counts sectors of this size, whatever the device's blocks are.
const SYSFS_SECTOR_BYTES: u64 = 512;

/// The lock of a state directory.
pub(crate) struct StateLock {
    _file: Flock<File>,
}

impl StateLock {
    /// Takes it, or says that another agent has it.
    pub fn take(directory: &Path) -> Result<Self, AgentError> {
        let path = directory.join("agent.lock");
        let failed = |source| AgentError::Lock { path: path.clone(), source };
        match Flock::lock(open(&path)?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { _file: file }),
            Err((_, nix::Error::EWOULDBLOCK)) => {
                Err(AgentError::StateLocked { directory: directory.to_owned() })
            }
            Err((_, error)) => Err(failed(error.into())),
        }
    }
}

/// The lock of a disk: of its bytes within a file that stands for the whole disk, by its sequence
/// number in this boot. So a disk and its partitions exclude each other, and two partitions do not.
#[derive(Debug)]
pub(crate) struct DiskLock {
    _file: File,
}

impl DiskLock {
    /// Takes it, or says who has what of it.
    pub fn take(device: &BlockDevice) -> Result<Self, AgentError> {
        let directory = PathBuf::from(DISK_LOCKS);
        fs::create_dir_all(&directory)
            .map_err(|source| AgentError::Lock { path: directory.clone(), source })?;
        Self::take_in(&directory, device)
    }

    fn take_in(directory: &Path, device: &BlockDevice) -> Result<Self, AgentError> {
        let path = directory.join(device.diskseq.to_string());
        let failed =
            |error: nix::Error| AgentError::Lock { path: path.clone(), source: error.into() };
        let file = open(&path)?;
        // Of the open file, not of the process: a disk that is asked for twice conflicts, too.
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&exclusive(device))) {
            Ok(_) => Ok(Self { _file: file }),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
                let (wanted, mut held) = (exclusive(device), exclusive(device));
                fcntl(&file, FcntlArg::F_OFD_GETLK(&mut held)).map_err(failed)?;
                let same = (held.l_start, held.l_len) == (wanted.l_start, wanted.l_len);
                Err(match same {
                    true => AgentError::DiskLocked { device: device.path.clone() },
                    false => AgentError::PartLocked {
                        device: device.path.clone(),
                        other: holder(device, &held),
                    },
                })
            }
            Err(error) => Err(failed(error)),
        }
    }
}

/// The bytes of the device on its whole disk; a whole disk has no end, for it may grow.
fn exclusive(device: &BlockDevice) -> libc::flock {
    let small = |kind: libc::c_int| libc::c_short::try_from(kind).expect("kinds are small numbers");
    let offset = |bytes: u64| libc::off_t::try_from(bytes).expect("disks are below 8 EiB");
    let length = if is_whole(device) { 0 } else { device.length };
    libc::flock {
        l_type: small(libc::F_WRLCK),
        l_whence: small(libc::SEEK_SET),
        l_start: offset(device.start),
        l_len: offset(length),
        l_pid: 0,
    }
}

fn is_whole(device: &BlockDevice) -> bool {
    device.name == device.whole_name
}

/// The device node of what is locked: the whole disk, or the partition that begins there.
fn holder(wanted: &BlockDevice, held: &libc::flock) -> PathBuf {
    let node = |name: &str| Path::new("/dev").join(name);
    if held.l_start == 0 && held.l_len == 0 {
        return node(&wanted.whole_name);
    }
    let whole = Path::new(SYS_BLOCK).join(wanted.whole_name.replace('/', "!"));
    let begins_there = |name: &String| {
        let start = fs::read_to_string(whole.join(name).join("start")).ok();
        let start = start.and_then(|sectors| sectors.trim().parse::<u64>().ok());
        let start = start.and_then(|sectors| sectors.checked_mul(SYSFS_SECTOR_BYTES));
        start.is_some_and(|start| libc::off_t::try_from(start).is_ok_and(|at| at == held.l_start))
    };
    let entries = fs::read_dir(&whole).into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    // One that is gone is named by its place.
    let unknown = || format!("{} (from byte {} on)", wanted.whole_name, held.l_start);
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
        }
    }

    #[test]
    fn a_disk_and_its_partitions_exclude_each_other_and_two_partitions_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let take = |device: &BlockDevice| DiskLock::take_in(directory.path(), device);
        let whole = device(None);
        let first = device(Some((1, 1 << 20, 8 << 20)));
        let second = device(Some((2, 9 << 20, 8 << 20)));
        let held = (take(&first).unwrap(), take(&second).unwrap());
        let refused = take(&whole).unwrap_err();
        assert!(matches!(&refused, AgentError::PartLocked { .. }), "{refused}");
        assert!(refused.to_string().starts_with("/dev/no0: "), "{refused}");
        assert!(matches!(take(&first).unwrap_err(), AgentError::DiskLocked { .. }));
        drop(held);
        let held = take(&whole).unwrap();
        let refused = take(&second).unwrap_err().to_string();
        assert!(refused.contains("/dev/no0p2") && refused.contains("/dev/no0,"), "{refused}");
        assert!(matches!(take(&whole).unwrap_err(), AgentError::DiskLocked { .. }));
        drop(held);
        take(&second).unwrap();
        let other = BlockDevice { diskseq: 43, ..device(None) };
        let _held = (take(&whole).unwrap(), take(&other).unwrap());
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
