//! What changed, in which order, and can we prove it: the contract is that no write goes unmarked.
//! The bitmap is the truth, the capture is the order; nothing here ships or stores anything.

pub mod source;

pub use source::{Array, CaptureMode, ChangeSource, Event, Gather, Operation, RingPosition};
