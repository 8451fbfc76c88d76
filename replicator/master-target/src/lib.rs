//! The master target: journals frames, applies them to replica disks, keeps recovery points.

mod role;
pub mod store;

pub use role::{TargetError, invite, run};
