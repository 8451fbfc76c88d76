//! The store: a machine's journal, replica disks, retention files and points, on any `Storage`.
//! It is synchronous and owns no clock and no socket, so that a simulator can drive it and cut it
//! anywhere.
//!
//! The life of a frame: [`StoreMachine::append`] → [`StoreMachine::commit`] (durable: acknowledge)
//! → [`StoreMachine::apply_next`] at the next recovery point (old content sealed, then written) →
//! [`View`].

mod apply;
mod checked_text;
mod consistency;
mod copy_out;
mod disks;
mod error;
mod fold;
mod history;
mod index;
pub mod inspect;
mod journal;
mod journal_reader;
mod layout;
mod machine;
mod manifest;
mod placement;
mod points;
mod recovery;
mod removal;
mod replica;
mod retention;
mod root;
mod rules;
mod segment_reader;
mod shared;
mod suspicion;
mod view;
mod window;

#[cfg(test)]
pub(crate) mod tests;

pub use apply::ApplyOutcome;
pub use copy_out::copy_out;
pub use error::{Result, StoreError};
pub use history::{LostPoints, harmed_disks};
pub use journal::{Appended, JournalState};
pub use machine::{Admitted, DiskSpec, DiskStatus, HelloAnswer, MachineStatus, StoreMachine};
pub use manifest::{Point, Protection};
pub use placement::{PlaceAt, Placed, Placement};
pub use points::ListedPoint;
pub use root::{Store, StoreOptions};
pub use suspicion::Suspicion;
pub use view::{PointChoice, View};
