//! What can be protected here, and how well: for `redoubt disks` and `redoubt agent --check`. It
//! changes nothing that stays.

use crate::error::AgentError;
use crate::locks::{self, Use, overlap};
use crate::own_state;
use redoubt_control::AgentOptions;
use redoubt_control::status::{CheckReport, DeviceReport, TrackerMode};
use redoubt_log::Name;
use redoubt_tracker::device::{BlockDevice, DeviceError, DeviceUse};
use redoubt_tracker::probe::{Capability, Probe, ProbeError, ProbeOptions};
use std::fs;
use std::path::{Path, PathBuf};

/// Ring of the trial: enough for the canary.
const TRIAL_RING_BYTES: u32 = 1 << 20;

const ORDER_REMEDY: &str = "nothing need be done: what is written is read back from the disk";
const BITMAP_REMEDY: &str = "no recovery point will be proven: try a newer kernel";

const BIO_BASED: &str = "the ends of writes to dm and md devices cannot be followed exactly yet";
const BIO_BASED_REMEDY: &str = "protect the disks that it lies on";

/// Why swap space is not protected.
pub(crate) const SWAP: &str = "is swap space, of which no recovery point could make use";
/// What to do about it.
pub(crate) const SWAP_REMEDY: &str = "leave it out, or `swapoff` it where it shall hold data";

/// Whether this machine, and the disks that were asked for, can be protected.
pub fn check(options: &AgentOptions) -> Result<CheckReport, AgentError> {
    let pins = PathBuf::from(format!("/sys/fs/bpf/redoubt-check-{}", std::process::id()));
    let trial = Probe::attach(&pins, ProbeOptions { ring_bytes: TRIAL_RING_BYTES });
    let (mode, reason, remedy) = match &trial {
        Ok(attached) => match attached.capability() {
            Capability::Data => (Some(TrackerMode::Data), None, None),
            Capability::Order(reason) => {
                (Some(TrackerMode::Metadata), Some(reason.clone()), Some(ORDER_REMEDY.to_owned()))
            }
            Capability::Bitmap(reason) => {
                (Some(TrackerMode::Bitmap), Some(reason.clone()), Some(BITMAP_REMEDY.to_owned()))
            }
        },
        Err(error) => (None, Some(error.to_string()), remedy_of(error)),
    };
    drop(trial);
    Probe::detach(&pins)?;
    let mut disks = Vec::new();
    let mut before: Vec<BlockDevice> = Vec::new();
    for asked in &options.disks {
        let mut disk = report(&asked.device, Some(&options.state));
        // No disk is tracked better than the machine can.
        disk.mode = disk.mode.map(|own| mode.unwrap_or(own));
        if disk.mode.is_some()
            && let Ok(device) = BlockDevice::resolve(&asked.device)
        {
            look_who_has_it(&mut disk, &device, &before, &options.state);
            before.push(device);
        }
        disks.push(disk);
    }
    Ok(CheckReport { mode, reason, remedy, disks })
}

/// Says where the disk is another's by now, or was asked for before.
fn look_who_has_it(
    disk: &mut DeviceReport,
    device: &BlockDevice,
    before: &[BlockDevice],
    state: &Path,
) {
    let error = match locks::look(device, state) {
        Use::Taken(error) => Some(error),
        Use::Own => {
            disk.reason = Some("the agent with this --state protects it already".to_owned());
            None
        }
        Use::Free => None,
    };
    let twice = before.iter().find(|other| overlap(other, device)).map(|other| {
        AgentError::DiskTwice { device: device.path.clone(), other: other.path.clone() }
    });
    if let Some(error) = error.or(twice) {
        let (reason, remedy) = told(&error.to_string());
        (disk.mode, disk.reason, disk.remedy) = (None, Some(reason), remedy);
    }
}

/// An error of a device as what is wrong, and what to do about it: that stands behind the last
/// colon.
fn told(error: &str) -> (String, Option<String>) {
    match error.rsplit_once(": ") {
        Some((reason, remedy)) => (reason.to_owned(), Some(remedy.to_owned())),
        None => (error.to_owned(), None),
    }
}

fn remedy_of(error: &ProbeError) -> Option<String> {
    match error {
        ProbeError::Load { .. } | ProbeError::BpfFs { .. } => {
            Some("run it as root, on Linux 5.17 or later with BPF enabled".to_owned())
        }
        ProbeError::NoTypes | ProbeError::Attach { .. } => {
            Some("run a distribution's own kernel, Linux 5.17 or later".to_owned())
        }
        // They say it themselves.
        _ => None,
    }
}

/// Every block device of this machine that holds anything.
pub fn devices() -> Result<Vec<DeviceReport>, AgentError> {
    let directory = Path::new("/sys/class/block");
    let failed = |source| AgentError::State { path: directory.to_owned(), source };
    let mut names: Vec<String> = fs::read_dir(directory)
        .map_err(failed)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| holds_anything(&directory.join(name)))
        .collect();
    names.sort();
    Ok(names.iter().map(|name| report(&Path::new("/dev").join(name), None)).collect())
}

fn holds_anything(sysfs: &Path) -> bool {
    fs::read_to_string(sysfs.join("size")).is_ok_and(|sectors| sectors.trim() != "0")
}

/// `state` is the directory of the agent that would protect it, where there is one.
fn report(path: &Path, state: Option<&Path>) -> DeviceReport {
    let name_of = |path: &Path| {
        let text = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Name::derive(&text).or_else(|_| Name::derive("disk")).expect("a plain word is a name")
    };
    match BlockDevice::resolve(path) {
        Ok(device) => {
            let hindrance = hindrance(&device);
            DeviceReport {
                device: device.path.clone(),
                name: name_of(device.stable_name.as_deref().unwrap_or(&device.path)),
                size_bytes: device.length,
                logical_block_bytes: device.logical_block_bytes,
                used_by: device.uses.iter().map(use_of).collect(),
                holds_agent_state: state.is_some_and(|state| own_state::is_on(state, &device)),
                mode: hindrance.is_none().then_some(TrackerMode::Data),
                reason: hindrance.map(|(reason, _)| reason.to_owned()),
                remedy: hindrance.map(|(_, remedy)| remedy.to_owned()),
            }
        }
        Err(error) => unfit(path, name_of(path), &error),
    }
}

/// Why a device that can be tracked is not protected, and what to do about it.
fn hindrance(device: &BlockDevice) -> Option<(&'static str, &'static str)> {
    if !device.request_based {
        Some((BIO_BASED, BIO_BASED_REMEDY))
    } else if device.is_swap {
        Some((SWAP, SWAP_REMEDY))
    } else {
        None
    }
}

fn use_of(usage: &DeviceUse) -> String {
    match usage {
        DeviceUse::Mounted(place) => place.display().to_string(),
        DeviceUse::Swap => "swap".to_owned(),
        DeviceUse::Held(holder) => holder.clone(),
    }
}

fn unfit(path: &Path, name: Name, error: &DeviceError) -> DeviceReport {
    let (reason, remedy) = told(&error.to_string());
    DeviceReport {
        device: path.to_owned(),
        name,
        size_bytes: 0,
        logical_block_bytes: 0,
        used_by: Vec::new(),
        holds_agent_state: false,
        mode: None,
        reason: Some(reason),
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_no_of_a_device_has_a_remedy() {
        let path = PathBuf::from("/dev/sdz");
        let (attribute, source) = (path.clone(), std::io::ErrorKind::NotFound.into());
        for error in [
            DeviceError::Missing { path: path.clone() },
            DeviceError::NotBlock { path: path.clone() },
            DeviceError::Empty { path: path.clone() },
            DeviceError::ReadOnly { path: path.clone() },
            DeviceError::Zoned { path: path.clone() },
            DeviceError::Dax { path: path.clone() },
            DeviceError::Attribute { path: path.clone(), attribute, source },
        ] {
            let report = unfit(&path, "sdz".parse().unwrap(), &error);
            let (reason, remedy) = (report.reason.unwrap(), report.remedy.unwrap());
            assert!(reason.contains("/dev/sdz") && !remedy.contains("/dev/sdz"), "{error}");
            assert_eq!(format!("{reason}: {remedy}"), error.to_string());
        }
        let held = AgentError::DiskLocked { device: path, holder: "the agent".to_owned() };
        let (reason, remedy) = told(&held.to_string());
        assert_eq!(reason, "/dev/sdz: the agent has this disk already");
        assert!(remedy.unwrap().contains("redoubt unprotect"));
    }
}
