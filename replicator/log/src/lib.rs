//! Records, frames and segments: the one log format, from the agent's memory to the master
//! target's disk.
//! This crate does no I/O and knows no other part of Redoubt; bincode and lz4_flex live here only.

pub mod block;
mod bytes;
pub mod codec;
pub mod frame;
pub mod ids;
pub mod name;
pub mod range;
pub mod range_map;
pub mod range_set;
pub mod record;
pub mod segment;
mod zero;

pub use ids::{
    DiskIndex, DiskSet, Generation, Incarnation, MachineId, PointId, RoleEpoch, Sequence, WallTime,
};
pub use name::Name;
pub use range::ByteRange;
pub use range_map::RangeMap;
pub use range_set::RangeSet;
pub use record::{GapReason, PointKind, Record};
pub use zero::is_zero;
