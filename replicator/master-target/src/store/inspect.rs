//! Explains a store and checks every checksum in it, with nothing but the files: no configuration,
//! no network, no role. It opens files for reading only and never writes, so it works on a
//! read-only mount and beside a running target. [`finish`] alone writes: it completes an apply that
//! was cut where no target will start again.
//!
//! Memory is bounded whatever the store's size: some windows of a few MiB, and what the manifests
//! themselves take.

mod behind;
mod findings;
mod finish;
mod harm;
mod journal;
mod machine;
mod manifest;
mod retention;
mod window;

pub use finish::finish;

use super::error::Result;
use super::layout::MACHINES;
use super::placement;
use findings::{Findings, Harm, Progress};
use redoubt_control::inspection::{Damage, MachineInspection, NewerFile};
use redoubt_engine::storage::Storage;
use redoubt_log::MachineId;
use std::path::{Path, PathBuf};

/// What there is, what is damaged, and what was read to tell.
#[derive(Debug, Default)]
pub struct StoreInspection {
    /// The machines that have a store, by their ids.
    pub machines: Vec<MachineInspection>,
    /// Everything that is not what was written.
    pub damage: Vec<Damage>,
    /// Files of a later release.
    pub newer: Vec<NewerFile>,
    /// Files that no manifest speaks of, and that are not needed.
    pub leftovers: Vec<PathBuf>,
    /// Bytes whose checksums were computed.
    pub checked_bytes: u64,
}

/// Looks at every machine of the store below `root`, which is the storage's root as the operator
/// knows it. `is_running` tells whether a target runs on it now: then only what is stable is
/// judged. `progress` hears how many bytes of how many are behind.
pub fn inspect(
    storage: &dyn Storage,
    root: &Path,
    is_running: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<StoreInspection> {
    let mut machines = Vec::new();
    let mut inspection = StoreInspection::default();
    for name in storage.list(Path::new(MACHINES))? {
        match name.parse::<MachineId>() {
            Ok(machine) => machines.push(machine),
            Err(_) => inspection.leftovers.push(root.join(MACHINES).join(name)),
        }
    }
    let total = machines.iter().map(|machine| machine::bytes_of(storage, *machine)).sum();
    let mut findings = Findings::new(Progress::new(total, progress));
    placements(storage, root, &mut findings, &mut inspection)?;
    for machine in machines {
        let subject = machine::Subject { storage, root, machine, is_running };
        machine::inspect(subject, &mut findings, &mut inspection)?;
    }
    inspection.checked_bytes = findings.progress.checked_bytes();
    Ok(inspection)
}

/// Checks the devices that were chosen for disks that are not known yet.
fn placements(
    storage: &dyn Storage,
    root: &Path,
    findings: &mut Findings<'_>,
    inspection: &mut StoreInspection,
) -> Result<()> {
    let path = root.join(placement::FILE);
    match placement::waiting(storage) {
        Ok((_, bytes)) => findings.progress.checked(bytes),
        Err(error) => findings.take(&path, 0, error, Harm::Manifest)?,
    }
    inspection.damage.extend(findings.damage.drain(..).map(|found| {
        Damage {
            machine: None,
            path: found.path,
            byte: found.byte,
            what: found.what,
            means: "the devices chosen for disks that are still to come are known no more, and no \
                target starts: remove this file and choose them again with `redoubt place`; \
                machines and points are not touched"
                .to_owned(),
            disks: Vec::new(),
            points: None,
            positions: None,
        }
    }));
    inspection.newer.extend(findings.newer.drain(..).map(|newer| NewerFile {
        machine: None,
        path: newer.path,
        version: newer.version,
        known: newer.known,
    }));
    Ok(())
}
