//! What a session has to know of a frame to order it. It never looks at a frame's bytes.

use redoubt_log::frame::FrameHeader;
use redoubt_log::{Generation, Incarnation, MachineId, RoleEpoch, Sequence};

/// One attempt at a connection. The target counts them over all machines, the agent over its run;
/// events of an older connection are thereby told from those of the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Where a frame stands in the logs of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramePlace {
    /// Whose log.
    pub machine: MachineId,
    /// Which log of the machine.
    pub generation: Generation,
    /// Which run sealed it.
    pub incarnation: Incarnation,
    /// Which side the machine was on.
    pub role_epoch: RoleEpoch,
    /// Of its first record.
    pub first: Sequence,
    /// Of its last record.
    pub last: Sequence,
    /// Of the last record of the frame before it.
    pub previous: Sequence,
    /// The whole frame, header and all.
    pub bytes: usize,
}

impl From<&FrameHeader> for FramePlace {
    fn from(header: &FrameHeader) -> Self {
        Self {
            machine: header.machine,
            generation: header.generation,
            incarnation: header.incarnation,
            role_epoch: header.role_epoch,
            first: header.first,
            last: header.last,
            previous: header.previous,
            bytes: header.frame_length(),
        }
    }
}
