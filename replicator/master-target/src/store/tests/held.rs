//! A machine of the store while it is slow, for tests of what stands above it.

use super::agent::{Agent, consistent, marker, write};
use super::world::{admit, all_disks};
use crate::store::StoreMachine;
use crate::store::shared::lock;
use redoubt_engine::buffer::AlignedBuffer;
use redoubt_log::segment::{ENTRY_HEADER_SIZE, entry_length};
use redoubt_log::{MachineId, PointId, WallTime};

/// The machine of [`deliver_point`].
pub(crate) const MACHINE: MachineId = super::agent::MACHINE;

/// Holds what is held while journal and manifest are written, until the result is dropped.
pub(crate) fn hold_locks(machine: &StoreMachine) -> impl Sized + '_ {
    let journal = lock(&machine.shared.journal);
    (journal, lock(&machine.shared.manifest))
}

/// Lets nothing be applied until the result is dropped.
pub(crate) fn hold_apply(machine: &StoreMachine) -> impl Sized + '_ {
    lock(&machine.shared.applying)
}

/// Makes a point of both disks durable in the new journal of [`MACHINE`].
pub(crate) fn deliver_point(machine: &StoreMachine) -> PointId {
    let hello = admit(machine, None).unwrap();
    let mut agent = Agent::new(hello.generation, hello.incarnation);
    let marker = marker(all_disks(), WallTime(1));
    let records = vec![write(0, 0, 1), consistent(0), consistent(1), marker];
    let sent = agent.send(records, 0, WallTime(1));
    let mut entry = AlignedBuffer::zeroed(entry_length(sent.bytes.len()));
    entry[ENTRY_HEADER_SIZE..ENTRY_HEADER_SIZE + sent.bytes.len()].copy_from_slice(&sent.bytes);
    let appended = machine.append(&mut [&mut entry]);
    assert!(appended.stopped.is_none(), "{:?}", appended.stopped);
    machine.commit().unwrap();
    sent.point.unwrap()
}
