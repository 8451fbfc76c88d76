//! The master target: journals frames, applies them to replica disks, keeps recovery points. It
//! must never acknowledge what is not synced, nor overwrite what a kept point still needs.

mod role;
pub mod store;

pub use role::{TargetError, inspect, invite, run};
