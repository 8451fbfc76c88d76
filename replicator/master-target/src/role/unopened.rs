//! Machines that are not served, for their store did not open or the record of their identity
//! cannot be read: nothing of them goes on, and nothing of them is touched. They are named all the
//! same, as not good.

use super::protected::Registry;
use super::status::name_of as name_of_stored;
use crate::store::{StoreError, StoreMachine};
use redoubt_control::audit::AuditLog;
use redoubt_control::status::{DiskState, MachineStatus};
use redoubt_log::{MachineId, Name};
use redoubt_transport::{Site, TransportError};
use std::path::Path;

/// Each as the status shows it; `data` is the target's directory.
pub(super) fn shown(registry: &Registry, site: &Site, data: &Path) -> Vec<MachineStatus> {
    let store = registry.store();
    let unopened = store.unopened().iter();
    let unopened = unopened.map(|(id, error)| show(*id, name_of(site, *id), reason(error, data)));
    let opened = store.machines();
    let is_served = |machine: &&StoreMachine| registry.get(machine.id()).is_some();
    let locked_out = opened.iter().filter(|machine| !is_served(machine)).filter_map(|machine| {
        // One that the site does not know was shut out by an operator.
        let error = site.machine(machine.id()).err()?;
        let code = match error {
            TransportError::Damaged { .. } => "record-damaged",
            _ => "record-unread",
        };
        let name = name_of_stored(&machine.name());
        Some(show(machine.id(), name, format!("{code}: {error}")))
    });
    unopened.chain(locked_out).collect()
}

fn show(id: MachineId, name: Name, reason: String) -> MachineStatus {
    MachineStatus {
        id: id.into(),
        name,
        connected: false,
        reason: Some(reason),
        rpo_seconds: None,
        disks: Vec::new(),
    }
}

/// Writes each down: nothing else of it is followed.
pub(super) fn note(registry: &Registry, site: &Site, data: &Path, audit: &AuditLog) {
    for machine in shown(registry, site, data) {
        let paused = DiskState::Paused.as_str();
        audit.note(None, "state", machine.name.as_str(), paused, machine.reason);
    }
}

/// As it joined; by its id where that record cannot be read, either.
fn name_of(site: &Site, id: MachineId) -> Name {
    let joined = site.machine(id).ok().flatten().map(|joined| joined.name);
    joined.unwrap_or_else(|| id.to_string().parse().expect("an id has the letters of a name"))
}

fn reason(error: &StoreError, data: &Path) -> String {
    let code = match error {
        StoreError::Damaged { .. } => "store-damaged",
        _ => "store-unopened",
    };
    format!("{code}: {error} (`redoubt inspect {}` says what is harmed)", data.display())
}
