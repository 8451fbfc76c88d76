//! Block I/O by io_uring, its blocking twin, and a disk that lies for tests. Knows no other part
//! of Redoubt. Nothing here acknowledges: `sync` returning is the only statement of durability.

pub mod buffer;
mod carry;
pub mod device;
pub mod directory;
pub mod locks;
#[cfg(feature = "lying")]
pub mod lying;
pub mod ring;
mod steps;
pub mod storage;
pub mod uring_directory;
