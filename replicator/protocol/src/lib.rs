//! Messages and session state machines: what the two ends of a connection say and when they may say
//! it. No socket, no clock, no disk: events and `now` go in, actions come out.

pub mod agent_session;
mod backoff;
pub mod frame_place;
pub mod message;
pub mod pause;
pub mod target_session;
pub mod verify;
mod window;

pub use agent_session::{
    AgentAction, AgentEvent, AgentPast, AgentSelf, AgentSession, FRAME_STREAMS, NotTaken,
};
pub use backoff::{RETRY_FIRST, RETRY_LONGEST};
pub use frame_place::{ConnectionId, FramePlace};
pub use message::{AgentMessage, MESSAGE_LIMIT, MessageError, PROTOCOL_VERSION, TargetMessage};
pub use pause::PauseWord;
pub use target_session::{
    Admission, Continuity, TargetAction, TargetEvent, TargetPast, TargetSession,
};
pub use window::{WINDOW_BYTES, WINDOW_FRAMES, WindowLimits};
