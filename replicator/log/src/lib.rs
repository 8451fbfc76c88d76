//! Records, frames and segments: the one log format, from the agent's memory to the master target's disk.
//! This crate does no I/O and knows no other part of Redoubt; bincode and lz4_flex live here only.

pub mod ids;
pub mod range;

pub use ids::{
    DiskIndex, DiskSet, Generation, Incarnation, MachineId, PointId, RoleEpoch, Sequence, WallTime,
};
pub use range::ByteRange;
