//! How commands and roles talk on one machine: the local socket's messages (which are the JSON
//! interface), units, options, exit statuses, and what a role owes its service manager. No business
//! logic, and nothing that crosses the network.

pub mod audit;
pub mod bounded;
pub mod chronicle;
pub mod config;
pub mod exit;
pub mod inspection;
pub mod lines;
pub mod options;
pub mod request;
pub mod response;
pub mod results;
pub mod runtime;
#[cfg(test)]
mod schemas;
pub mod service;
pub mod socket;
pub mod status;
pub mod units;
pub mod verify;

pub use audit::{AuditEntry, AuditLog};
pub use bounded::{KeepTime, PointInterval, RingSize, TokenLife, WindowSize};
pub use exit::ExitStatus;
pub use inspection::Inspection;
pub use options::{
    AgentOptions, DiskArgument, HostPort, InspectOptions, InviteOptions, LogFormat, TargetOptions,
    Token,
};
pub use request::{PointSelector, Request};
pub use response::Response;
pub use results::{CopiedOut, Invited, Marked, Told};
pub use runtime::RuntimeDirectory;
pub use socket::{Client, Handler, Peer, Responder, Server, SocketError};
pub use status::Role;
pub use units::{Size, Span, UtcTime};
pub use verify::{DifferentRange, VerifyReport};
