//! Whether a disk to protect is there, held and open for this run, or why it is not. It changes no
//! device.

use crate::error::AgentError;
use crate::locks::{self, overlap};
use crate::reader::open_disk;
use crate::state::ProtectedDisk;
use redoubt_engine::locks::DiskLock;
use redoubt_tracker::device::{BlockDevice, DeviceError};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

/// A disk that is there.
pub(crate) struct Present {
    pub device: BlockDevice,
    /// For direct reads; taken by who reads.
    pub file: Option<File>,
    /// The same open device, whose end is its size.
    held: File,
    _lock: DiskLock,
}

/// A disk that cannot be protected in this run.
pub(crate) struct Absent {
    /// A reason code and the device.
    pub reason: String,
}

impl Present {
    /// Takes hold of a device, beside those that are held already. `has_log` is whether the target
    /// may know the disk: then its size must be what it was; `state` is where this agent's lies.
    pub fn hold<'a>(
        known: &mut ProtectedDisk,
        has_log: bool,
        state: &Path,
        mut held: impl Iterator<Item = &'a Self>,
    ) -> Result<Self, AgentError> {
        let device = BlockDevice::resolve(&known.device)?;
        if !device.request_based {
            return Err(AgentError::BioBased { device: known.device.clone() });
        }
        if device.is_swap {
            return Err(AgentError::Swap { device: known.device.clone() });
        }
        if let Some(other) = held.find(|other| overlap(&other.device, &device)) {
            let (device, other) = (known.device.clone(), other.device.path.clone());
            return Err(AgentError::DiskTwice { device, other });
        }
        let before = (known.size, known.logical_block_bytes);
        let now = (device.length, device.logical_block_bytes);
        if has_log && before != now {
            return Err(size_changed(known, now));
        }
        let lock = locks::take(&device, state)?;
        let file = open_disk(&device.path)?;
        let failed = |source| AgentError::OpenDisk { device: device.path.clone(), source };
        let held = file.try_clone().map_err(failed)?;
        (known.size, known.logical_block_bytes) = now;
        Ok(Self { device, file: Some(file), held, _lock: lock })
    }

    /// Whether the device has still the size that it was taken with.
    pub fn check(&self, known: &ProtectedDisk) -> Result<(), AgentError> {
        let end = (&self.held).seek(SeekFrom::End(0));
        match end.map_err(|source| AgentError::OpenDisk { device: known.device.clone(), source })? {
            0 => Err(DeviceError::Empty { path: known.device.clone() }.into()),
            bytes if bytes == self.device.length => Ok(()),
            bytes => Err(size_changed(known, (bytes, known.logical_block_bytes))),
        }
    }
}

fn size_changed(known: &ProtectedDisk, (bytes, block): (u64, u32)) -> AgentError {
    AgentError::SizeChanged {
        device: known.device.clone(),
        bytes,
        block,
        bytes_before: known.size,
        block_before: known.logical_block_bytes,
    }
}

impl Absent {
    /// What the status shows for an error that concerns one disk alone; an error of another kind
    /// comes back.
    pub fn because(known: &ProtectedDisk, error: AgentError) -> Result<Self, AgentError> {
        let code = match &error {
            AgentError::Device(error) => match error {
                DeviceError::Missing { .. }
                | DeviceError::NotBlock { .. }
                | DeviceError::Empty { .. } => "device-missing",
                DeviceError::ReadOnly { .. } => "device-read-only",
                DeviceError::Zoned { .. } | DeviceError::Dax { .. } => "device-unfit",
                DeviceError::Attribute { .. } => "device-unreadable",
            },
            AgentError::OpenDisk { .. } => "device-unreadable",
            AgentError::BioBased { .. } | AgentError::Swap { .. } => "device-unfit",
            AgentError::DiskLocked { .. }
            | AgentError::PartLocked { .. }
            | AgentError::DiskTwice { .. } => "device-in-use",
            AgentError::SizeChanged { .. } => "size-changed",
            _ => return Err(error),
        };
        tracing::error!(
            disk = %known.name,
            device = %known.device.display(),
            reason = code,
            %error,
            "this disk is not protected and no point has it, the others go on: \
             when its device is back, start the agent again"
        );
        Ok(Self { reason: format!("{code}: {}", known.device.display()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redoubt_log::DiskIndex;
    use std::path::PathBuf;

    fn known(device: &Path) -> ProtectedDisk {
        ProtectedDisk {
            index: DiskIndex(0),
            name: "db".parse().unwrap(),
            device: device.to_owned(),
            asked: None,
            size: 1 << 20,
            logical_block_bytes: 512,
            tracked: None,
            unmarked: 0,
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_a_reason_and_no_end() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("plain");
        std::fs::write(&file, "no device").unwrap();
        for path in [Path::new("/dev/no-such-disk"), &file] {
            let mut disk = known(path);
            let error =
                Present::hold(&mut disk, true, directory.path(), std::iter::empty()).err().unwrap();
            let absent = Absent::because(&disk, error).unwrap();
            assert_eq!(absent.reason, format!("device-missing: {}", path.display()));
        }
    }

    #[test]
    fn what_is_wrong_with_one_disk_has_a_code_and_what_is_wrong_with_all_has_none() {
        let device = PathBuf::from("/dev/sdz");
        let source = || std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let disk = known(&device);
        let reason = |error| Absent::because(&disk, error).map(|absent| absent.reason);
        let unreadable = AgentError::OpenDisk { device: device.clone(), source: source() };
        assert_eq!(reason(unreadable).unwrap(), "device-unreadable: /dev/sdz");
        let locked = AgentError::DiskLocked { device: device.clone(), holder: "x".to_owned() };
        assert_eq!(reason(locked).unwrap(), "device-in-use: /dev/sdz");
        let grown = AgentError::SizeChanged {
            device: device.clone(),
            bytes: 2 << 20,
            block: 512,
            bytes_before: 1 << 20,
            block_before: 512,
        };
        assert_eq!(reason(grown).unwrap(), "size-changed: /dev/sdz");
        let no_locks = AgentError::Lock { path: device, source: source() };
        assert!(reason(no_locks).is_err());
    }
}
