//! Real processes on real disks: loop disks, filesystems under load, a whole site, and the oracles.
//! It must never link the product: it knows the `redoubt` binary by its command line only.

pub mod check;
pub mod command;
pub mod commits;
pub mod disk;
pub mod launch;
pub mod load;
pub mod memory;
pub mod network;
pub mod noise;
pub mod oracle;
pub mod orders;
pub mod outage;
pub mod report;
pub mod site;
pub mod verified;
