//! Finishes what an apply has left half done, where no target will start again: afterwards each
//! replica disk is a plain raw disk at one position of the log. It needs the journal up to that
//! position, and nothing behind it; it removes nothing.

use super::manifest;
use crate::store::apply::{ApplyOutcome, apply_next};
use crate::store::error::{Result, StoreError};
use crate::store::layout::{MACHINES, MachineLayout};
use crate::store::manifest::Manifest;
use crate::store::placement::Placements;
use crate::store::recovery::recover_until;
use crate::store::root::StoreOptions;
use crate::store::shared::{Shared, lock};
use redoubt_control::inspection::{FinishedApply, FinishedDisk};
use redoubt_engine::storage::Storage;
use redoubt_log::{MachineId, Sequence, WallTime};
use std::path::Path;
use std::sync::Arc;

/// Finishes the half-done apply of every machine that has one. Nobody else may use the store
/// meanwhile. Damage that prevents it is told in the answer, and leaves the machine as it was.
pub fn finish(
    storage: &Arc<dyn Storage>,
    root: &Path,
    now: WallTime,
) -> Result<Vec<FinishedApply>> {
    let mut finished = Vec::new();
    for name in storage.list(Path::new(MACHINES))? {
        let Ok(machine) = name.parse::<MachineId>() else { continue };
        let layout = MachineLayout::new(machine);
        // What cannot be used is told by the inspection.
        let manifest = manifest::peek(&**storage, &layout.manifest());
        let Some(manifest) = manifest.filter(|manifest| manifest.machine == machine) else {
            continue;
        };
        // What is being deleted needs no apply.
        if let Some(to) = manifest.applying.filter(|_| !manifest.removing) {
            finished.push(finish_one(storage, root, layout, manifest, to, now)?);
        }
    }
    Ok(finished)
}

fn finish_one(
    storage: &Arc<dyn Storage>,
    root: &Path,
    layout: MachineLayout,
    manifest: Manifest,
    to: Sequence,
    now: WallTime,
) -> Result<FinishedApply> {
    let before = manifest.clone();
    // A process that died may have left the manifest replaced, but not durably: before a replica is
    // written, that it is being written must be.
    storage.sync_directory(layout.root())?;
    let applied = recover_until(storage, &layout, &manifest, to).and_then(|journal| {
        let placements = Arc::new(Placements::none(storage));
        let options = StoreOptions::default();
        let shared = Shared::new(options, layout.clone(), manifest, journal, placements);
        let outcome = apply_next(&shared, now)?;
        Ok((outcome, lock(&shared.manifest).clone()))
    });
    let (point, failed, manifest) = match applied {
        Ok((ApplyOutcome::Applied { point, .. }, manifest)) => (point, None, manifest),
        Ok((ApplyOutcome::Idle, manifest)) => (None, None, manifest),
        Err(error @ (StoreError::Damaged { .. } | StoreError::NewerVersion { .. })) => {
            (None, Some(error.to_string()), before)
        }
        Err(error) if super::findings::is_missing(&error) => {
            (None, Some(error.to_string()), before)
        }
        Err(error) => return Err(error),
    };
    Ok(FinishedApply {
        machine: manifest.machine.into(),
        name: manifest.name.clone(),
        to: to.0,
        failed,
        point: point.map(|point| point.id.into()),
        disks: disks_of(root, &layout, &manifest),
    })
}

fn disks_of(root: &Path, layout: &MachineLayout, manifest: &Manifest) -> Vec<FinishedDisk> {
    let disk = |disk: &crate::store::manifest::Disk| {
        let mut points = manifest.points.iter().rev();
        let last = points.find(|point| point.disks.contains(disk.index));
        let replica = disk.replica_path(layout);
        FinishedDisk {
            name: disk.name.clone(),
            replica_path: root.join(replica),
            last_point: last.map(|point| point.id.into()),
            ahead_of_point: disk.ahead_of_point,
        }
    };
    manifest.disks.iter().filter(|disk| disk.is_kept()).map(disk).collect()
}
