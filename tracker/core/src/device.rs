//! What a path to a block device is, by the kernel's own word: the whole disk, the range on it, who
//! uses it. It only looks; it must never change a device, nor take a name for an identity.

use crate::probe::DiskIdentity;
use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use thiserror::Error;

/// Sysfs counts sectors of this size, whatever the device's blocks are.
const SYSFS_SECTOR_BYTES: u64 = 512;
const STABLE_NAMES: &str = "/dev/disk/by-id";

/// The number of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

/// Bits of the minor number inside the kernel (MINORBITS in include/linux/kdev_t.h).
const MINOR_BITS: u32 = 20;

impl DeviceNumber {
    /// As the kernel itself writes it.
    pub fn kernel(self) -> u32 {
        self.major << MINOR_BITS | self.minor
    }

    /// From the kernel's own form.
    pub fn from_kernel(number: u32) -> Self {
        Self { major: number >> MINOR_BITS, minor: number & ((1 << MINOR_BITS) - 1) }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = std::io::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.trim().split_once(':').and_then(|(major, minor)| {
            Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
        });
        parsed.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidData))
    }
}

/// Who uses a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceUse {
    /// Mounted here.
    Mounted(PathBuf),
    /// Swap.
    Swap,
    /// Another block device lies on it (dm, md).
    Held(String),
}

/// A block device that can be tracked: writable, not empty, not zoned, not DAX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// The device node, links followed.
    pub path: PathBuf,
    /// The kernel's name of it.
    pub name: String,
    /// A name that survives a reboot, where udev made one.
    pub stable_name: Option<PathBuf>,
    /// The whole disk it is, or lies on.
    pub whole: DeviceNumber,
    /// The kernel's name of the whole disk.
    pub whole_name: String,
    /// First byte on the whole disk; not zero for a partition.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes of the whole disk.
    pub device_bytes: u64,
    /// The smallest write.
    pub logical_block_bytes: u32,
    /// The kernel's sequence number of the whole disk.
    pub diskseq: u64,
    /// Whether its driver takes requests (the exact case) rather than bios.
    pub request_based: bool,
    /// Who uses it, or a partition of it.
    pub uses: Vec<DeviceUse>,
    /// Whether it is swap space, all of it: not a disk with such a partition among others.
    pub is_swap: bool,
}

/// Why a path is no block device that can be tracked.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// Nothing there.
    #[error("no such device: {}: look at lsblk for the right name", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// A file, a directory, a character device.
    #[error(
        "{} is not a block device: give one of those that `redoubt disks` lists",
        path.display()
    )]
    NotBlock {
        /// The path.
        path: PathBuf,
    },
    /// No medium, or not set up.
    #[error("{} has no size: insert a medium, or set the device up", path.display())]
    Empty {
        /// The path.
        path: PathBuf,
    },
    /// Nobody writes to it.
    #[error(
        "{} is read-only, so there is nothing to track: blockdev --setrw makes it writable",
        path.display()
    )]
    ReadOnly {
        /// The path.
        path: PathBuf,
    },
    /// A zoned device.
    #[error(
        "{} is a zoned device, which the tracker does not follow: move its data to a disk without \
         zones to protect it",
        path.display()
    )]
    Zoned {
        /// The path.
        path: PathBuf,
    },
    /// Memory that is written without the block layer.
    #[error(
        "{} can be written past the block layer (DAX), where the tracker sees nothing: make it a \
         device that cannot, as `ndctl create-namespace --mode=sector` does",
        path.display()
    )]
    Dax {
        /// The path.
        path: PathBuf,
    },
    /// The kernel does not say.
    #[error(
        "{}: cannot read {}: run it as root, with sysfs and procfs mounted",
        path.display(),
        attribute.display()
    )]
    Attribute {
        /// The device.
        path: PathBuf,
        /// The file of sysfs or procfs.
        attribute: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
}

impl BlockDevice {
    /// Finds out what a path is: a device node, or a link to one.
    pub fn resolve(path: &Path) -> Result<Self, DeviceError> {
        let missing = |_| DeviceError::Missing { path: path.to_owned() };
        let node = fs::canonicalize(path).map_err(missing)?;
        let metadata = fs::metadata(&node).map_err(missing)?;
        if !metadata.file_type().is_block_device() {
            return Err(DeviceError::NotBlock { path: path.to_owned() });
        }
        let number = metadata.rdev();
        let link = PathBuf::from(format!(
            "/sys/dev/block/{}:{}",
            libc::major(number),
            libc::minor(number)
        ));
        let sysfs = fs::canonicalize(&link).map_err(missing)?;
        Self::from_sysfs(path, node, &Sysfs { device: path, directory: sysfs })
    }

    /// What the tracker remembers of it.
    pub fn identity(&self) -> DiskIdentity {
        DiskIdentity {
            device: self.whole,
            diskseq: self.diskseq,
            device_bytes: self.device_bytes,
            start: self.start,
            length: self.length,
        }
    }

    fn from_sysfs(path: &Path, node: PathBuf, sysfs: &Sysfs<'_>) -> Result<Self, DeviceError> {
        let is_partition = sysfs.directory.join("partition").exists();
        let parent = sysfs.directory.parent().filter(|_| is_partition);
        let directory = parent.unwrap_or(&sysfs.directory).to_owned();
        let whole = Sysfs { device: path, directory };
        let sectors = |sysfs: &Sysfs<'_>, name| {
            sysfs.number::<u64>(name).map(|sectors| sectors * SYSFS_SECTOR_BYTES)
        };
        let length = sectors(sysfs, "size")?;
        let path = path.to_owned();
        if length == 0 {
            return Err(DeviceError::Empty { path });
        }
        if sysfs.number::<u8>("ro")? != 0 || whole.number::<u8>("ro")? != 0 {
            return Err(DeviceError::ReadOnly { path });
        }
        if whole.text("queue/zoned").is_ok_and(|zoned| zoned.trim() != "none") {
            return Err(DeviceError::Zoned { path });
        }
        if whole.number::<u8>("queue/dax").is_ok_and(|dax| dax != 0) {
            return Err(DeviceError::Dax { path });
        }
        let (own, of_partitions) = uses(sysfs)?;
        let is_swap = own.contains(&DeviceUse::Swap);
        Ok(Self {
            stable_name: stable_name(&node),
            path: node,
            name: sysfs.name(),
            whole: whole.number("dev")?,
            whole_name: whole.name(),
            start: if is_partition { sectors(sysfs, "start")? } else { 0 },
            length,
            device_bytes: sectors(&whole, "size")?,
            logical_block_bytes: whole.number("queue/logical_block_size")?,
            diskseq: whole.number("diskseq")?,
            request_based: whole.directory.join("mq").is_dir(),
            uses: own.into_iter().chain(of_partitions).collect(),
            is_swap,
        })
    }
}

/// The directory of one device in sysfs.
struct Sysfs<'a> {
    /// What the administrator called it, for errors.
    device: &'a Path,
    directory: PathBuf,
}

impl Sysfs<'_> {
    fn name(&self) -> String {
        // Sysfs writes '!' for the '/' in names such as cciss/c0d0.
        let name = self.directory.file_name().unwrap_or_default();
        name.to_string_lossy().replace('!', "/")
    }

    fn text(&self, name: &str) -> Result<String, DeviceError> {
        let attribute = self.directory.join(name);
        fs::read_to_string(&attribute).map_err(|source| self.unreadable(attribute, source))
    }

    fn number<T: FromStr>(&self, name: &str) -> Result<T, DeviceError> {
        let wrong = || std::io::Error::from(std::io::ErrorKind::InvalidData);
        let text = self.text(name)?;
        text.trim().parse().map_err(|_| self.unreadable(self.directory.join(name), wrong()))
    }

    fn unreadable(&self, attribute: PathBuf, source: std::io::Error) -> DeviceError {
        DeviceError::Attribute { path: self.device.to_owned(), attribute, source }
    }

    /// The names in a directory below; none where it is missing.
    fn children(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.directory.join(name)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

/// The first by its name of udev's stable links to the node.
fn stable_name(node: &Path) -> Option<PathBuf> {
    let links = fs::read_dir(STABLE_NAMES).ok()?.flatten().map(|entry| entry.path());
    links.filter(|link| fs::canonicalize(link).is_ok_and(|target| target == node)).min()
}

/// Who uses the device and, where it is a whole disk, who its partitions.
fn uses(sysfs: &Sysfs<'_>) -> Result<(Vec<DeviceUse>, Vec<DeviceUse>), DeviceError> {
    let read = |path: &str| {
        fs::read_to_string(path).map_err(|source| sysfs.unreadable(path.into(), source))
    };
    let mounts = read("/proc/self/mountinfo")?;
    let swaps = read("/proc/swaps").unwrap_or_default();
    let part =
        |child: String| Sysfs { device: sysfs.device, directory: sysfs.directory.join(child) };
    let partitions = sysfs.children("").into_iter().map(part);
    let mut found = Vec::new();
    for partition in partitions.filter(|part| part.directory.join("partition").exists()) {
        found.extend(uses_of_one(&partition, &mounts, &swaps)?);
    }
    Ok((uses_of_one(sysfs, &mounts, &swaps)?, found))
}

fn uses_of_one(part: &Sysfs<'_>, mounts: &str, swaps: &str) -> Result<Vec<DeviceUse>, DeviceError> {
    let node = Path::new("/dev").join(part.name());
    let number: DeviceNumber = part.number("dev")?;
    let swap = |line: &&str| line.split_whitespace().next().is_some_and(|at| same(at, &node));
    let held = part.children("holders").into_iter().map(DeviceUse::Held);
    let swaps = swaps.lines().skip(1).filter(swap).map(|_| DeviceUse::Swap);
    let mounts = mounts.lines().filter_map(|line| mounted(line, number, &node));
    Ok(held.chain(swaps).chain(mounts).collect())
}

/// The mount that a line of mountinfo tells of, where it is of this device. File systems with
/// numbers of their own (btrfs) are known by their source.
fn mounted(line: &str, number: DeviceNumber, node: &Path) -> Option<DeviceUse> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(2);
    let by_number = fields.next()?.parse().is_ok_and(|found: DeviceNumber| found == number);
    let point = fields.nth(1)?;
    let source = file_system.split(' ').nth(1)?;
    (by_number || same(source, node)).then(|| DeviceUse::Mounted(unescape(point).into()))
}

fn same(name: &str, node: &Path) -> bool {
    name.starts_with('/') && fs::canonicalize(unescape(name)).is_ok_and(|path| path == node)
}

/// The kernel writes blanks and backslashes in mount points as three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                out.push_str(&part[3..]);
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_kernel_form() {
        let number: DeviceNumber = "259:1048575".parse().expect("a number");
        assert_eq!(number.kernel(), 259 << 20 | 0xf_ffff);
        assert_eq!(DeviceNumber::from_kernel(number.kernel()), number);
        assert_eq!(number.to_string(), "259:1048575");
        assert!("259".parse::<DeviceNumber>().is_err());
    }

    #[test]
    fn mounts_are_found_by_number_and_blanks_are_read() {
        let line = r"36 35 98:0 /sub /mnt/a\040b rw,noatime master:1 - ext3 /dev/none rw";
        let number = DeviceNumber { major: 98, minor: 0 };
        let node = Path::new("/dev/none");
        let expected = Some(DeviceUse::Mounted("/mnt/a b".into()));
        assert_eq!(mounted(line, number, node), expected);
        assert_eq!(mounted(line, DeviceNumber { major: 98, minor: 1 }, node), None);
    }

    /// What sysfs says of a disk that can be tracked, but for what is written over it.
    fn resolved(over: &[(&str, &str)]) -> Result<BlockDevice, DeviceError> {
        let sysfs = tempfile::tempdir().expect("a directory");
        let directory = sysfs.path().join("nvme9n9");
        fs::create_dir_all(directory.join("queue")).expect("a directory");
        fs::create_dir_all(directory.join("mq")).expect("a directory");
        fs::create_dir_all(directory.join("nvme9n9p1")).expect("a directory");
        let good = [
            ("dev", "259:900"),
            ("size", "2097152"),
            ("ro", "0"),
            ("diskseq", "77"),
            ("queue/zoned", "none"),
            ("queue/dax", "0"),
            ("queue/logical_block_size", "4096"),
            ("nvme9n9p1/partition", "1"),
            ("nvme9n9p1/dev", "259:901"),
            ("nvme9n9p1/size", "4096"),
            ("nvme9n9p1/start", "2048"),
            ("nvme9n9p1/ro", "0"),
        ];
        for (name, text) in good.iter().chain(over) {
            fs::write(directory.join(name), format!("{text}\n")).expect("an attribute");
        }
        let device = Path::new("/dev/nvme9n9");
        BlockDevice::from_sysfs(device, device.to_owned(), &Sysfs { device, directory })
    }

    #[test]
    fn a_disk_is_what_sysfs_says_of_it() {
        let disk = resolved(&[]).expect("a disk");
        assert_eq!((disk.name.as_str(), disk.length, disk.diskseq), ("nvme9n9", 1 << 30, 77));
        assert_eq!((disk.logical_block_bytes, disk.request_based), (4096, true));
        assert_eq!((disk.uses, disk.is_swap), (Vec::new(), false));
    }

    #[test]
    fn what_cannot_be_tracked_is_refused_with_its_remedy() {
        let refused = |name, text| resolved(&[(name, text)]).expect_err(name).to_string();
        for zoned in ["host-managed", "host-aware"] {
            let said = refused("queue/zoned", zoned);
            assert!(said.contains("zoned device") && said.contains("without zones"), "{said}");
        }
        let said = refused("queue/dax", "1");
        assert!(said.contains("DAX") && said.contains("--mode=sector"), "{said}");
        let said = refused("size", "0");
        assert!(said.contains("no size") && said.contains("set the device up"), "{said}");
        let said = refused("ro", "1");
        assert!(said.contains("read-only") && said.contains("--setrw"), "{said}");
        let said = refused("diskseq", "what");
        assert!(said.contains("diskseq") && said.contains("/dev/nvme9n9"), "{said}");
    }

    #[test]
    fn what_is_no_block_device_is_told_apart() {
        let missing = BlockDevice::resolve(Path::new("/dev/no-such-device"));
        assert!(matches!(missing, Err(DeviceError::Missing { .. })));
        let character = BlockDevice::resolve(Path::new("/dev/null"));
        assert!(matches!(character, Err(DeviceError::NotBlock { .. })));
    }
}
