//! The store under a seeded schedule on a disk that lies, rule by rule, and under each fault by
//! name.

mod agent;
mod clocks;
mod cuts;
mod directory;
mod endings;
mod faults;
mod finish;
pub(crate) mod held;
mod history;
mod hooked;
mod inspect;
mod inspect_flips;
mod placement;
mod removal;
mod rules;
mod versions;
mod waiting;
mod world;
