//! Messages and session state machines: what the two ends of a connection say and when they may say it.
//! No socket, no clock, no disk: events and `now` go in, actions come out.

pub mod message;
pub mod name;

pub use message::{AgentMessage, MESSAGE_LIMIT, MessageError, PROTOCOL_VERSION, TargetMessage};
pub use name::Name;
