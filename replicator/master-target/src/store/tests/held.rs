//! A machine of the store while it is slow to write something down. It changes nothing.

use crate::store::StoreMachine;
use crate::store::shared::lock;

/// Holds what is held while journal and manifest are written, until the result is dropped.
pub(crate) fn hold_locks(machine: &StoreMachine) -> impl Sized + '_ {
    let journal = lock(&machine.shared.journal);
    (journal, lock(&machine.shared.manifest))
}
