//! What an operator takes away: a disk's protection, its replica, a whole machine. The manifest
//! says so first, durably, and files go second: a cut in the middle is taken up at the next start.
//! Nothing that a view reads is taken away.

use super::error::{Result, StoreError};
use super::layout::MachineLayout;
use super::machine::StoreMachine;
use super::manifest::{Disk, Manifest, Protection, RetentionSpan};
use super::points::drain_unneeded;
use super::root::Store;
use super::rules::{Rule, holds};
use super::shared::{Shared, lock};
use redoubt_engine::storage::Storage;
use redoubt_log::{DiskIndex, DiskSet, MachineId};
use std::io::ErrorKind;
use std::path::Path;

impl StoreMachine {
    /// Ends the protection of disks at this side; replicas and points stay. Durable when this
    /// returns.
    pub fn end_protection(&self, disks: DiskSet) -> Result<()> {
        self.change(|manifest| {
            let ended = manifest.disks.iter_mut().filter(|disk| disks.contains(disk.index));
            let active = ended.filter(|disk| disk.protection.is_active());
            active.for_each(|disk| disk.protection = Protection::EndedByTarget);
        })
    }

    /// Disks that the agent has let go, as the log says up to its durable end.
    pub fn let_go(&self) -> DiskSet {
        let mut let_go = lock(&self.shared.journal).let_go;
        // Of what was applied the journal may have gone.
        let manifest = lock(&self.shared.manifest);
        let by_agent = |disk: &&Disk| disk.protection == Protection::EndedByAgent;
        manifest.disks.iter().filter(by_agent).for_each(|disk| let_go.insert(disk.index));
        let_go
    }

    /// What a disk is called here, also one whose replica was deleted.
    pub fn disk_name(&self, disk: DiskIndex) -> Option<String> {
        lock(&self.shared.manifest).disk(disk).map(|disk| disk.name.clone())
    }

    /// Whether nothing of the machine is being read, so that it could be deleted.
    pub fn check_unread(&self) -> Result<()> {
        self.shared.check_unread()
    }

    /// Deletes a disk's replica and takes the disk out of every point; its number stays taken. A
    /// block device is let go as it is. Durable when this returns.
    pub fn delete_replica(&self, disk: DiskIndex) -> Result<()> {
        let shared = &self.shared;
        let _turn = lock(&shared.applying);
        let unneeded = {
            let mut manifest = lock(&shared.manifest);
            shared.check_unread()?;
            manifest.kept_disk(disk).ok_or(StoreError::UnknownDisk(disk))?;
            let mut next = manifest.clone();
            forget(&mut next, disk);
            let unneeded = drain_unneeded(&mut next);
            if !holds(Rule::ForgetFirst) {
                shared.storage.remove(&shared.layout.disk(disk))?;
                shared.remove_retention(&unneeded)?;
            }
            shared.save(&next)?;
            shared.publish(next.retention.clone());
            *manifest = next;
            unneeded
        };
        lock(&shared.devices).proven.remove(&disk);
        shared.remove_retention(&unneeded)?;
        shared.remove_stray_replicas()
    }

    /// States, durably, that all of the machine goes: from here on no view of it is opened, and
    /// [`Store::finish_removal`] is due, also after a cut.
    pub fn begin_removal(&self) -> Result<()> {
        let shared = &self.shared;
        let _turn = lock(&shared.applying);
        let mut manifest = lock(&shared.manifest);
        shared.check_unread()?;
        let mut next = manifest.clone();
        next.removing = true;
        shared.save(&next)?;
        *manifest = next;
        Ok(())
    }
}

impl Store {
    /// Machines whose removal was begun and not finished.
    pub fn removing(&self) -> Vec<MachineId> {
        let machines = self.machines();
        let begun = machines.iter().filter(|machine| lock(&machine.shared.manifest).removing);
        let begun = begun.map(StoreMachine::id);
        self.cut_removals().into_iter().chain(begun).collect()
    }

    /// Deletes all that is left of a machine whose removal was begun; nothing may use it any more.
    pub fn finish_removal(&self, id: MachineId) -> Result<()> {
        let layout = MachineLayout::new(id);
        let storage = self.storage();
        let manifest = Manifest::load(storage, &layout.manifest())?;
        let Some(manifest) = manifest.filter(|manifest| manifest.removing) else {
            return Err(StoreError::UnknownMachine(id));
        };
        self.forget_placements(&manifest.name)?;
        // The manifest, which says what goes on, goes last.
        for directory in [layout.journal(), layout.disks(), layout.retention()] {
            remove_tree(storage, &directory)?;
        }
        storage.sync_directory(layout.root())?;
        remove_tree(storage, layout.root())?;
        storage.sync_directory(layout.root().parent().unwrap_or(Path::new("")))?;
        self.forget_machine(id);
        Ok(())
    }
}

impl Shared {
    /// Files of replica disks that were deleted or went to a device: a cut may have left them.
    pub(super) fn remove_stray_replicas(&self) -> Result<()> {
        let is_stray = |disk: &DiskIndex| {
            let manifest = lock(&self.manifest);
            manifest.disk(*disk).is_some_and(|disk| !disk.is_kept() || disk.device.is_some())
        };
        let names = self.storage.list(&self.layout.disks())?;
        let disks = names.iter().filter_map(|name| name.parse().ok()).map(DiskIndex);
        let strays: Vec<DiskIndex> = disks.filter(is_stray).collect();
        for disk in &strays {
            self.storage.remove(&self.layout.disk(*disk))?;
        }
        if strays.is_empty() { Ok(()) } else { self.sync(&self.layout.disks()) }
    }

    /// Removes files that no manifest lists any more; what a cut leaves goes at the next start.
    pub(super) fn remove_retention(&self, spans: &[RetentionSpan]) -> Result<()> {
        for span in spans {
            match self.storage.remove(&self.layout.sealed(span.from, span.to)) {
                // It was lost: that was told when it was missed.
                Err(error) if error.source.kind() == ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
        if spans.is_empty() { Ok(()) } else { self.sync(&self.layout.retention()) }
    }

    fn sync(&self, directory: &Path) -> Result<()> {
        Ok(self.storage.sync_directory(directory)?)
    }

    /// With the manifest's lock held no view is opened meanwhile.
    fn check_unread(&self) -> Result<()> {
        match lock(&self.pins).is_empty() {
            true => Ok(()),
            false => Err(StoreError::BeingRead { machine: self.machine }),
        }
    }
}

/// What the manifest says of a disk whose replica is deleted: its number is taken, no more.
fn forget(manifest: &mut Manifest, index: DiskIndex) {
    for disk in manifest.disks.iter_mut().filter(|disk| disk.index == index) {
        disk.protection = Protection::Deleted;
        (disk.device, disk.consistent_from) = (None, None);
        (disk.has_data, disk.has_points, disk.ahead_of_point) = (false, false, false);
    }
    manifest.points.iter_mut().for_each(|point| point.disks.remove(index));
    manifest.points.retain(|point| !point.disks.is_empty());
    manifest.retention.iter_mut().for_each(|span| span.disks.remove(index));
}

/// Fine where a cut has removed it already.
fn remove_tree(storage: &dyn Storage, path: &Path) -> Result<()> {
    match storage.remove_tree(path) {
        Err(error) if error.source.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
