//! Machines whose store did not open: nothing of them goes on, and nothing of them is touched. They
//! are named all the same, as not good.

use super::control::write;
use crate::store::{Store, StoreError};
use redoubt_control::audit::AuditLog;
use redoubt_control::status::{DiskState, MachineStatus};
use redoubt_log::{MachineId, Name};
use redoubt_transport::Site;
use std::path::Path;

/// Each as the status shows it; `data` is the target's directory.
pub(super) fn shown(store: &Store, site: &Site, data: &Path) -> Vec<MachineStatus> {
    let show = |(id, error): &(MachineId, StoreError)| MachineStatus {
        id: (*id).into(),
        name: name_of(site, *id),
        connected: false,
        reason: Some(reason(error, data)),
        rpo_seconds: None,
        disks: Vec::new(),
    };
    store.unopened().iter().map(show).collect()
}

/// Writes each down: nothing else of it is followed.
pub(super) fn note(store: &Store, site: &Site, data: &Path, audit: &AuditLog) {
    for machine in shown(store, site, data) {
        let outcome = (DiskState::Paused.as_str(), machine.reason);
        write(audit, None, "state", machine.name.as_str(), outcome);
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
