//! The store of all machines below one directory. Synchronous: no socket, no clock; times are
//! passed in. A machine whose files are damaged is named and left alone; the others are opened.

use super::error::{Result, StoreError};
use super::fold::RANGES_LIMIT;
use super::layout::{MACHINES, MachineLayout};
use super::machine::StoreMachine;
use super::manifest::Manifest;
use super::shared::lock;
use redoubt_engine::storage::Storage;
use redoubt_log::{Generation, MachineId, WallTime};
use std::collections::BTreeMap;
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
            // Two thousand blocks: the disk's queue runs dry seldom, and neighbours of different
            // frames meet. More was not faster, and every machine whose apply runs has it.
            write_bytes: 8 << 20,
        }
    }
}

/// All machines below one directory.
pub struct Store {
    storage: Arc<dyn Storage>,
    options: StoreOptions,
    machines: Mutex<BTreeMap<MachineId, StoreMachine>>,
    unopened: Vec<(MachineId, StoreError)>,
}

impl Store {
    /// Opens every machine; those that cannot be are in [`Store::unopened`].
    pub fn open(storage: Arc<dyn Storage>, options: StoreOptions, now: WallTime) -> Result<Self> {
        storage.create_directory(Path::new(MACHINES))?;
        let mut machines = BTreeMap::new();
        let mut unopened = Vec::new();
        for name in storage.list(Path::new(MACHINES))? {
            let Ok(id) = name.parse::<MachineId>() else { continue };
            match StoreMachine::open(&storage, options, id, now) {
                Ok(Some(machine)) => {
                    machines.insert(id, machine);
                }
                // Its creation was cut before the manifest: nothing was ever promised.
                Ok(None) => {}
                Err(error) => unopened.push((id, error)),
            }
        }
        Ok(Self { storage, options, machines: Mutex::new(machines), unopened })
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
        let machine = StoreMachine::open(&self.storage, self.options, id, now)?
            .ok_or(StoreError::UnknownMachine(id))?;
        machines.insert(id, machine.clone());
        Ok(machine)
    }

    /// Bytes still free below the store.
    pub fn free_space(&self) -> Result<u64> {
        Ok(self.storage.free_space()?)
    }
}
