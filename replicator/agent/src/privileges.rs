//! What the agent gives up once the kernel side stands, and what it locks. It must keep no more
//! than its loop needs.

use crate::error::AgentError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::mman::{MlockAllFlags, mlockall};

/// What the loop needs: maps of the tracker (BPF, PERFMON), and registered buffers and locked pages
/// (IPC_LOCK).
const KEPT: [Capability; 3] =
    [Capability::CAP_BPF, Capability::CAP_PERFMON, Capability::CAP_IPC_LOCK];

/// Drops every other capability of this thread, and of those that it starts.
pub(crate) fn drop_to_needed() -> Result<(), AgentError> {
    let had = read(CapSet::Permitted)?;
    let kept: CapsHashSet =
        KEPT.into_iter().filter(|capability| had.contains(capability)).collect();
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set).map_err(failed)?;
    }
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).map_err(failed)?;
    }
    Ok(())
}

/// Keeps what is used in memory: an agent that waits for its own pages from a disk that it tracks
/// would be late.
pub(crate) fn lock_memory() {
    // Pages are locked as they are first used, not whole stacks and arenas at once.
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault;
    if let Err(error) = mlockall(flags) {
        tracing::warn!(%error, "memory is not locked: raise the memlock limit");
    }
}

fn read(set: CapSet) -> Result<CapsHashSet, AgentError> {
    caps::read(None, set).map_err(failed)
}

fn failed(error: caps::errors::CapsError) -> AgentError {
    AgentError::Privileges(error.to_string())
}
