//! What a block device is by the kernel's own word: how large it is, who uses it, and by what it is
//! known again after a reboot. It only looks; it must never change a device.

use crate::locks::DiskBytes;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Sysfs counts sectors of this size, whatever the device's blocks are.
const SYSFS_SECTOR_BYTES: u64 = 512;
const STABLE_NAMES: &str = "/dev/disk/by-id";

/// What names a device for good, by kind of driver: the first that says something counts.
const IDENTITIES: [(&str, &str); 6] = [
    ("dm/uuid", "dm"),
    ("loop/backing_file", "file"),
    ("wwid", "wwid"),
    ("device/wwid", "wwid"),
    ("serial", "serial"),
    ("device/serial", "serial"),
];

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its node, links followed.
    pub node: PathBuf,
    /// A name that survives a reboot, where udev made one.
    pub stable: Option<PathBuf>,
    /// Its number: two paths with one number are one device.
    pub number: u64,
    /// Bytes.
    pub size: u64,
    /// The smallest write.
    pub logical_block_bytes: u64,
    /// The kernel's sequence number of the whole disk, and the first byte on it; tells two devices
    /// of one boot apart.
    pub diskseq: u64,
    /// First byte on the whole disk; not zero for a partition.
    pub start: u64,
    /// Whether it, or the disk that it lies on, takes no writes.
    pub read_only: bool,
    /// Who uses it or a part of it, as far as the kernel names them; an exclusive open decides.
    pub users: Vec<String>,
}

/// Why a path is no block device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Nothing there.
    #[error("{path}: no such device: look at lsblk for the right name", path = path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// A file, a directory, a character device.
    #[error("{path}: not a block device", path = path.display())]
    NotBlock {
        /// The path.
        path: PathBuf,
    },
    /// The kernel does not say.
    #[error("{path}: the kernel does not tell what it is: {source}", path = path.display())]
    Untold {
        /// The path.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

impl Device {
    /// Finds out what a path is: a device node, or a link to one.
    pub fn examine(path: &Path) -> Result<Self, DeviceError> {
        let missing = |_| DeviceError::Missing { path: path.to_owned() };
        let node = fs::canonicalize(path).map_err(missing)?;
        let metadata = fs::metadata(&node).map_err(missing)?;
        if !metadata.file_type().is_block_device() {
            return Err(DeviceError::NotBlock { path: path.to_owned() });
        }
        Self::of_node(node, metadata.rdev())
            .map_err(|source| DeviceError::Untold { path: path.to_owned(), source })
    }

    fn of_node(node: PathBuf, number: u64) -> io::Result<Self> {
        let sysfs = Sysfs::of(number)?;
        let sectors = |directory: &Path, name: &str| -> io::Result<u64> {
            Ok(read_number(&directory.join(name))? * SYSFS_SECTOR_BYTES)
        };
        let read_only =
            read_number(&sysfs.own.join("ro"))? != 0 || read_number(&sysfs.whole.join("ro"))? != 0;
        Ok(Self {
            stable: stable_name(&node),
            number,
            size: sectors(&sysfs.own, "size")?,
            logical_block_bytes: read_number(&sysfs.whole.join("queue/logical_block_size"))?,
            diskseq: read_number(&sysfs.whole.join("diskseq"))?,
            start: if sysfs.is_partition() { sectors(&sysfs.own, "start")? } else { 0 },
            read_only,
            users: users(&sysfs, &node)?,
            node,
        })
    }
}

/// The bytes of the device with this number on its whole disk, for its lock.
pub(crate) fn bytes(number: u64) -> io::Result<DiskBytes> {
    let sysfs = Sysfs::of(number)?;
    let sectors =
        |name: &str| Ok::<_, io::Error>(read_number(&sysfs.own.join(name))? * SYSFS_SECTOR_BYTES);
    let diskseq = read_number(&sysfs.whole.join("diskseq"))?;
    Ok(match sysfs.is_partition() {
        true => DiskBytes { diskseq, start: sectors("start")?, length: Some(sectors("size")?) },
        false => DiskBytes { diskseq, start: 0, length: None },
    })
}

/// By what the device with this number is known again after a reboot, whatever its node is called
/// then; `None` where its driver says nothing.
pub(crate) fn identity(number: u64) -> io::Result<Option<String>> {
    let sysfs = Sysfs::of(number)?;
    let said = IDENTITIES.iter().find_map(|(attribute, kind)| {
        let text = fs::read_to_string(sysfs.whole.join(attribute)).ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| format!("{kind}:{text}"))
    });
    // A part of a file or disk is known by where it begins, too.
    let from = |path: PathBuf| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let parts = [
        from(sysfs.whole.join("loop/offset")).filter(|offset| offset != "0"),
        from(sysfs.own.join("start")),
    ];
    Ok(said.map(|said| parts.into_iter().flatten().fold(said, |said, from| said + "+" + &from)))
}

/// The directories of a device in sysfs.
struct Sysfs {
    own: PathBuf,
    /// That of the whole disk; the same for one.
    whole: PathBuf,
}

impl Sysfs {
    fn of(number: u64) -> io::Result<Self> {
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let own = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))?;
        let parent = own.parent().filter(|_| own.join("partition").exists());
        let whole = parent.unwrap_or(&own).to_owned();
        Ok(Self { own, whole })
    }

    fn is_partition(&self) -> bool {
        self.own != self.whole
    }
}

fn read_number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The first by its name of udev's stable links to the node.
fn stable_name(node: &Path) -> Option<PathBuf> {
    let links = fs::read_dir(STABLE_NAMES).ok()?.flatten().map(|entry| entry.path());
    links.filter(|link| fs::canonicalize(link).is_ok_and(|target| target == node)).min()
}

/// Mounts, swap, and devices that lie on it, of the device and of its partitions.
fn users(sysfs: &Sysfs, node: &Path) -> io::Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut found = Vec::new();
    for directory in std::iter::once(sysfs.own.clone()).chain(partitions(&sysfs.own)?) {
        let name = directory.file_name().unwrap_or_default().to_string_lossy().replace('!', "/");
        let device = Path::new("/dev").join(&name);
        let number = fs::read_to_string(directory.join("dev"))?;
        let is_source =
            |source: &str| source == device.to_string_lossy() || Path::new(source) == node;
        for line in mounts.lines() {
            let Some((mount, file_system)) = line.split_once(" - ") else { continue };
            let fields: Vec<&str> = mount.split(' ').collect();
            let [_, _, mounted, _, point, ..] = fields[..] else { continue };
            let source = file_system.split(' ').nth(1).unwrap_or_default();
            if mounted == number.trim() || is_source(source) {
                found.push(format!("mounted at {point}"));
            }
        }
        let mut areas = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        if areas.any(is_source) {
            found.push("swap".to_owned());
        }
        for holder in fs::read_dir(directory.join("holders")).into_iter().flatten().flatten() {
            found.push(format!("part of {}", holder.file_name().to_string_lossy()));
        }
    }
    Ok(found)
}

fn partitions(own: &Path) -> io::Result<Vec<PathBuf>> {
    let entries: Result<Vec<_>, _> = fs::read_dir(own)?.collect();
    let paths = entries?.into_iter().map(|entry| entry.path());
    Ok(paths.filter(|path| path.join("partition").exists()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_block_device_is_told_apart() {
        let missing = Device::examine(Path::new("/dev/no-such-device"));
        assert!(matches!(missing, Err(DeviceError::Missing { .. })));
        let character = Device::examine(Path::new("/dev/null"));
        assert!(matches!(character, Err(DeviceError::NotBlock { .. })));
    }
}
