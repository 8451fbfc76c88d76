//! Whether a disk holds the agent's own state: what the agent writes there becomes a change that it
//! ships. That is allowed, and said. It only looks.

use redoubt_tracker::device::{BlockDevice, DeviceNumber, DeviceUse};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const SYS_BLOCK: &str = "/sys/class/block";
/// Device mapper and md stand on each other seldom more than twice.
const HOLDERS_DEEP: u32 = 8;

/// Whether the state directory, or where it would be made, lies on the device, one of its
/// partitions, or what is built on them.
pub(crate) fn is_on(state: &Path, device: &BlockDevice) -> bool {
    let exists = state.ancestors().find_map(|directory| fs::metadata(directory).ok());
    let Some(number) = exists.map(|metadata| metadata.dev()) else { return false };
    let kernel = DeviceNumber { major: libc::major(number), minor: libc::minor(number) };
    device.uses.iter().any(|usage| match usage {
        // File systems with numbers of their own (btrfs) are known by where they are mounted.
        DeviceUse::Mounted(place) => fs::metadata(place).is_ok_and(|place| place.dev() == number),
        DeviceUse::Held(holder) => is_under(Path::new(SYS_BLOCK), holder, kernel, HOLDERS_DEEP),
        DeviceUse::Swap => false,
    })
}

/// Whether a device, or one that is built on it, has this number.
fn is_under(sysfs: &Path, name: &str, wanted: DeviceNumber, deep: u32) -> bool {
    let directory = sysfs.join(name.replace('/', "!"));
    let number = fs::read_to_string(directory.join("dev"));
    if number.is_ok_and(|number| number.parse().is_ok_and(|found: DeviceNumber| found == wanted)) {
        return true;
    }
    let holders = fs::read_dir(directory.join("holders")).into_iter().flatten().flatten();
    deep > 0
        && holders
            .map(|holder| holder.file_name().to_string_lossy().into_owned())
            .any(|holder| is_under(sysfs, &holder, wanted, deep - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_on_a_volume_is_on_the_disk_below_it() {
        let sysfs = tempfile::tempdir().unwrap();
        let make = |name: &str, number: &str, holders: &[&str]| {
            let directory = sysfs.path().join(name);
            fs::create_dir_all(directory.join("holders")).unwrap();
            fs::write(directory.join("dev"), format!("{number}\n")).unwrap();
            for holder in holders {
                fs::create_dir(directory.join("holders").join(holder)).unwrap();
            }
        };
        make("md0", "9:0", &["dm-0", "dm-1"]);
        make("dm-0", "253:0", &[]);
        make("dm-1", "253:1", &["dm-2"]);
        make("dm-2", "253:2", &[]);
        let is_under = |minor, deep| {
            super::is_under(sysfs.path(), "md0", DeviceNumber { major: 253, minor }, deep)
        };
        assert!(is_under(0, 8) && is_under(1, 8) && is_under(2, 8));
        assert!(!is_under(3, 8));
        assert!(!is_under(2, 1), "bounded");
    }
}
