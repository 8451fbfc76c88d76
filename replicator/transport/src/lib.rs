//! QUIC and identity: who a machine is, how it joins a site, and how bytes get from one to the
//! other. The only crate that knows quinn, rustls and certificates. It never decides about a
//! session or a log.

mod agent_identity;
mod certificate;
mod connection;
mod door;
mod enrol;
mod error;
mod files;
mod listener;
mod site;
mod streams;
mod tls;
mod token;
mod version;

pub use agent_identity::AgentIdentity;
pub use connection::{
    CONNECT_TIMEOUT, CONNECTION_WINDOW_BYTES, Connection, ConnectionHandle, DEFAULT_WINDOW_FRAMES,
    MessageReceiver, MessageSender, Parts, connect,
};
pub use enrol::{EnrolRefusalCode, enrol};
pub use error::{Result, TransportError};
pub use listener::{Arrival, Arriving, Listener};
pub use site::{EnrolledMachine, Site, inspection};
pub use streams::{
    FrameReceiver, FrameSender, InStream, POINT_CHUNK_LIMIT, PointReceiver, PointSender,
};
pub use token::Token;
