//! What changed, in which order, and can we prove it: the contract is that no write goes unmarked.
//! The bitmap is the truth, the capture is the order; nothing here ships or stores anything.

pub mod attach;
pub mod bitmap;
mod canary;
pub mod device;
pub mod geometry;
mod matcher;
pub mod probe;
pub mod ring;
mod rules;
pub mod sink;
pub mod source;
pub mod tracking;

pub use sink::LogSink;
pub use source::{Array, CaptureMode, ChangeSource, Event, Gather, Operation, RingPosition};
pub use tracking::{Comparable, DiskProgress, ReadOrder, Tracking};
