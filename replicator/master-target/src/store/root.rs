//! The store of all machines below one directory. Synchronous: no socket, no clock; times are
//! passed in. A machine whose files are damaged is named and left alone; the others are opened.

use super::error::{Result, StoreError};
use super::fold::RANGES_LIMIT;
use super::layout::{MACHINES, MachineLayout};
use super::machine::StoreMachine;
use super::manifest::Manifest;
use super::placement::{PlaceAt, Placement, Placements};
use super::shared::lock;
use redoubt_engine::storage::{Open, Storage};
use redoubt_log::{Generation, MachineId, WallTime};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// What a store may take of memory and disk.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Bytes of a journal segment, preallocated.
    pub segment_bytes: u64,
    /// Journal bytes that may wait for a recovery point before they are applied in steps all the
    /// same.
    pub pending_limit: u64,
    /// Journal bytes of a step while no disk has a recovery point yet.
    pub step_bytes: u64,
    /// Ranges of a step: what its map may take of memory.
    pub ranges_limit: usize,
    /// Bytes gathered from several frames before they are written in the order of the disk; a frame
    /// at least. An apply holds two such windows, one that is filled and one that is written.
    pub write_bytes: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            // Large enough that making one is rare, small enough that a freed one gives space back
            // soon.
            segment_bytes: 64 << 20,
            // Some twenty seconds of 50 MB/s: longer silences become steps, so that space stays
            // bounded.
            pending_limit: 1 << 30,
            // One step syncs the disks and replaces the manifest: seldom enough at 64 MiB.
            step_bytes: 64 << 20,
            ranges_limit: RANGES_LIMIT,
            // A thousand blocks: the disk's queue runs dry seldom, and neighbours of different
            // frames meet. Up to eight times as much was no faster on a solid-state disk, and every
            // machine whose apply runs has it.
            write_bytes: 4 << 20,
        }
    }
}

/// All machines below one directory.
pub struct Store {
    storage: Arc<dyn Storage>,
    options: StoreOptions,
    placements: Arc<Placements>,
    machines: Mutex<BTreeMap<MachineId, StoreMachine>>,
    /// Machines whose removal a cut has ended early.
    cut_removals: Mutex<BTreeSet<MachineId>>,
    unopened: Vec<(MachineId, StoreError)>,
}

impl Store {
    /// Opens every machine; those that cannot be are in [`Store::unopened`].
    pub fn open(storage: Arc<dyn Storage>, options: StoreOptions, now: WallTime) -> Result<Self> {
        storage.create_directory(Path::new(MACHINES))?;
        let placements = Arc::new(Placements::load(&storage)?);
        let mut machines = BTreeMap::new();
        let mut cut_removals = BTreeSet::new();
        let mut unopened = Vec::new();
        for name in storage.list(Path::new(MACHINES))? {
            let Ok(id) = name.parse::<MachineId>() else { continue };
            match Manifest::load(&*storage, &MachineLayout::new(id).manifest()) {
                Ok(Some(manifest)) if manifest.removing => {
                    cut_removals.insert(id);
                    continue;
                }
                // The same is found below, and told there.
                _ => {}
            }
            match StoreMachine::open(&storage, &placements, options, id, now) {
                Ok(Some(machine)) => {
                    machines.insert(id, machine);
                }
                // Its creation was cut before the manifest: nothing was ever promised. Or its
                // removal was, behind the manifest: nothing is left.
                Ok(None) => {
                    let root = MachineLayout::new(id).root().to_owned();
                    if storage.list(&root)?.is_empty() {
                        storage.remove_tree(&root)?;
                        storage.sync_directory(Path::new(MACHINES))?;
                    }
                }
                Err(error) => unopened.push((id, error)),
            }
        }
        // One that was made and waits all the same hinders no machine.
        if let Err(error) =
            placements.forget(|choice| machines.values().any(|known| known.has_made(choice)))
        {
            tracing::error!(%error, "devices that hold replicas are still listed as waiting");
        }
        let (machines, cut_removals) = (Mutex::new(machines), Mutex::new(cut_removals));
        Ok(Self { storage, options, placements, machines, cut_removals, unopened })
    }

    /// The machines that were opened or created.
    pub fn machines(&self) -> Vec<StoreMachine> {
        lock(&self.machines).values().cloned().collect()
    }

    /// The machines that could not be opened, and why.
    pub fn unopened(&self) -> &[(MachineId, StoreError)] {
        &self.unopened
    }

    /// One machine.
    pub fn machine(&self, id: MachineId) -> Result<StoreMachine> {
        lock(&self.machines).get(&id).cloned().ok_or(StoreError::UnknownMachine(id))
    }

    /// Takes a machine in, with a new generation and no disk; durable when this returns.
    pub fn create_machine(&self, id: MachineId, name: &str, now: WallTime) -> Result<StoreMachine> {
        let mut machines = lock(&self.machines);
        if machines.contains_key(&id) || self.unopened.iter().any(|(machine, _)| *machine == id) {
            return Err(StoreError::MachineExists(id));
        }
        // What is left of it would be taken for the new one's.
        if lock(&self.cut_removals).contains(&id) {
            return Err(StoreError::RemovalUnfinished(id));
        }
        if machines.values().any(|machine| machine.name() == name) {
            return Err(StoreError::NameTaken(name.to_owned()));
        }
        let layout = MachineLayout::new(id);
        for directory in [layout.journal(), layout.disks(), layout.retention()] {
            self.storage.create_directory(&directory)?;
        }
        // Last, for the manifest is what makes it a machine.
        let manifest = Manifest::new(id, name, Generation::random());
        manifest.save(&*self.storage, &layout.manifest())?;
        let machine = StoreMachine::open(&self.storage, &self.placements, self.options, id, now)?
            .ok_or(StoreError::UnknownMachine(id))?;
        machines.insert(id, machine.clone());
        Ok(machine)
    }

    /// Chooses a block device for a disk that is not known yet, in the place of an earlier choice;
    /// durable when this returns. Whether it holds the replica already: its agent may have
    /// announced the disk meanwhile.
    pub fn place_later(&self, at: PlaceAt<'_>) -> Result<bool> {
        // Somebody who uses it is found now rather than at the first session.
        drop(self.storage.open(at.device, Open::Claim)?);
        self.placements.choose(Placement {
            machine: at.machine.to_owned(),
            disk: at.disk.to_owned(),
            device: at.device.to_owned(),
        })?;
        // One that was announced before the choice stood has its replica elsewhere, and nothing
        // would ever take the choice up.
        let machine = self.machines().into_iter().find(|machine| machine.name() == at.machine);
        let made = machine.map_or(Ok(false), |machine| machine.place_known(at));
        if made.is_err()
            && let Err(error) = self.placements.forget(|known| at.is(known))
        {
            tracing::error!(%error, "a device that cannot be placed is still listed as waiting");
        }
        made
    }

    /// Block devices that are chosen for disks which no agent has announced yet.
    pub fn waiting(&self) -> Vec<Placement> {
        self.placements.all()
    }

    /// Every block device that holds a replica disk or is chosen for one, with machine and disk.
    pub fn devices(&self) -> Vec<Placement> {
        let mut devices = self.placements.all();
        for machine in self.machines() {
            let manifest = lock(&machine.shared.manifest);
            for disk in manifest.disks.iter().filter(|disk| disk.is_kept()) {
                let device = disk.device.as_ref().map(|placed| placed.path.clone());
                let (machine, disk) = (manifest.name.clone(), disk.name.clone());
                devices.extend(device.map(|device| Placement { machine, disk, device }));
            }
        }
        devices
    }

    pub(super) fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    pub(super) fn cut_removals(&self) -> Vec<MachineId> {
        lock(&self.cut_removals).iter().copied().collect()
    }

    pub(super) fn forget_placements(&self, machine: &str) -> Result<()> {
        self.placements.forget(|known| known.machine == machine)
    }

    pub(super) fn forget_machine(&self, id: MachineId) {
        lock(&self.machines).remove(&id);
        lock(&self.cut_removals).remove(&id);
    }

    /// Bytes still free below the store.
    pub fn free_space(&self) -> Result<u64> {
        Ok(self.storage.free_space()?)
    }
}
