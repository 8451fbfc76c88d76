//! The local socket: newline-delimited JSON between a command and a role, one request a connection.
//! It knows nothing of what requests mean, and talks to root and the role's own user only.

mod client;
mod server;

pub use client::{Client, answering_roles};
pub use server::{Handler, Peer, Responder, Server};

use crate::exit::ExitStatus;
use crate::status::Role;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use std::{io, time};

/// A request is names, a label and a path.
const REQUEST_LIMIT_BYTES: u64 = 64 << 10;
/// Points of a month, one every few seconds, at some 300 bytes each, would be more than anyone
/// keeps.
const RESPONSE_LIMIT_BYTES: u64 = 256 << 20;
/// Conversations at once: operators and monitors are few; each costs a thread.
const CONVERSATION_LIMIT: usize = 32;
/// The other side is a program on the same machine: one that takes longer for a line hangs.
const LINE_PATIENCE: Duration = Duration::from_secs(10);

/// What goes wrong between a command and a role.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Nobody listens.
    #[error("no {role} behind {directory}: is it running? (start it, or give its --runtime-dir)")]
    NoRole {
        /// Who should.
        role: Role,
        /// Where.
        directory: PathBuf,
    },
    /// The socket is there and not for us.
    #[error("the {role} at {path} refuses this user: run the command as root or as its own user")]
    Refused {
        /// Whose socket.
        role: Role,
        /// Which socket.
        path: PathBuf,
    },
    /// Another process serves this socket already.
    #[error(
        "another {role} runs behind {directory}: stop it, or give this one its own --runtime-dir"
    )]
    Occupied {
        /// Which role.
        role: Role,
        /// Where.
        directory: PathBuf,
    },
    /// The path does not fit a socket address.
    #[error("the path {path} is too long for a socket: give a shorter --runtime-dir")]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// The role is there and does nothing.
    #[error(
        "the {role} behind {directory} does not answer: it hangs or was stopped; see its log, then \
         let it go on or restart it"
    )]
    Hangs {
        /// Which role.
        role: Role,
        /// Where.
        directory: PathBuf,
    },
    /// The other end does not read or write in time.
    #[error("the other end of {path} kept silent for too long")]
    Silent {
        /// Which socket.
        path: PathBuf,
    },
    /// The other end went away in the middle.
    #[error("the other end of {path} closed the conversation before its end: see the role's log")]
    Closed {
        /// Which socket.
        path: PathBuf,
    },
    /// What came is not of this version's language.
    #[error(
        "what came over {path} is not understood: are command and role of one version? {source}"
    )]
    Malformed {
        /// Which socket.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A line beyond its bound.
    #[error(
        "a line of more than {limit} bytes came over {path}: are command and role of one version?"
    )]
    Oversized {
        /// Which socket.
        path: PathBuf,
        /// The bound.
        limit: u64,
    },
    /// Anything else.
    #[error("socket {path}: {source}")]
    Io {
        /// Which socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl SocketError {
    /// How a command must end because of it.
    pub fn exit_status(&self) -> ExitStatus {
        match self {
            Self::NoRole { .. } => ExitStatus::NoRole,
            _ => ExitStatus::Failed,
        }
    }
}

/// One end of a conversation.
struct Line {
    reader: BufReader<UnixStream>,
    path: PathBuf,
}

impl Line {
    fn new(stream: UnixStream, path: PathBuf) -> Result<Self, SocketError> {
        let line = Self { reader: BufReader::new(stream), path };
        let stream = line.reader.get_ref();
        stream.set_write_timeout(Some(LINE_PATIENCE)).map_err(|source| line.failed(source))?;
        Ok(line)
    }

    fn write<T: serde::Serialize>(&mut self, value: &T) -> Result<(), SocketError> {
        let mut text = serde_json::to_vec(value)
            .map_err(|source| SocketError::Malformed { path: self.path.clone(), source })?;
        text.push(b'\n');
        self.reader.get_mut().write_all(&text).map_err(|source| self.failed(source))
    }

    /// Reads one line of at most `limit` bytes that must begin within `patience` and go on as fast.
    fn read<T>(&mut self, limit: u64, patience: Duration) -> Result<T, SocketError>
    where
        T: serde::de::DeserializeOwned,
    {
        // A timeout of zero would mean to wait for ever.
        let patience = patience.max(time::Duration::from_millis(1));
        self.reader
            .get_ref()
            .set_read_timeout(Some(patience))
            .map_err(|source| self.failed(source))?;
        let mut text = Vec::new();
        let read = (&mut self.reader).take(limit).read_until(b'\n', &mut text);
        read.map_err(|source| self.failed(source))?;
        if !text.ends_with(b"\n") {
            let path = self.path.clone();
            let full = u64::try_from(text.len()).is_ok_and(|length| length >= limit);
            return Err(match full {
                true => SocketError::Oversized { path, limit },
                false => SocketError::Closed { path },
            });
        }
        serde_json::from_slice(&text)
            .map_err(|source| SocketError::Malformed { path: self.path.clone(), source })
    }

    fn failed(&self, source: io::Error) -> SocketError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => SocketError::Silent { path },
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                SocketError::Closed { path }
            }
            _ => SocketError::Io { path, source },
        }
    }
}

#[cfg(test)]
mod tests;
