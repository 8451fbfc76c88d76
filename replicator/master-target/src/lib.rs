//! The master target: journals frames, applies them to replica disks, keeps recovery points.

pub mod store;
