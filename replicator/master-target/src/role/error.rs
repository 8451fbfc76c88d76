//! What can end or stop the target, with what the operator can do about it.

use crate::store::StoreError;
use redoubt_control::runtime::DirectoryError;
use redoubt_control::socket::SocketError;
use redoubt_transport::TransportError;
use std::path::{Path, PathBuf};

/// Why the target does not start, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// A file of the data directory.
    #[error("{path}: {source} (is the data directory writable, with room?)")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another target runs here.
    #[error(
        "{data}: another master target runs with this directory: stop it, or give this one its \
         own --data"
    )]
    Locked {
        /// The directory.
        data: PathBuf,
    },
    /// A target runs here, and finishes by itself what is to be finished.
    #[error(
        "{data}: a master target runs with this directory and finishes its applies itself: stop \
         it before --finish, or leave it to it"
    )]
    RunsHere {
        /// The directory.
        data: PathBuf,
    },
    /// The directory is none of a target.
    #[error(
        "{directory}: not a master target's directory: {reason}; give the one that its --data names"
    )]
    NotATarget {
        /// The directory.
        directory: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The directory cannot be looked at.
    #[error("{directory}: cannot be inspected: {source}; run this as root or as the target's user")]
    Unreadable {
        /// The directory.
        directory: PathBuf,
        /// What the system said of what.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No target has ever run here.
    #[error(
        "{data}: no site here yet: start `redoubt master-target` with this --data once ({source})"
    )]
    NoSite {
        /// The directory.
        data: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A store that did not open.
    #[error("machine {machine}: its store did not open: the target's log says why since its start")]
    Unopened {
        /// The machine.
        machine: redoubt_log::MachineId,
    },
    /// A directory of ours.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The local socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Identity and network.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A thread panicked.
    #[error("{what} thread has failed: see the log above")]
    Failed {
        /// Which.
        what: &'static str,
    },
    /// Something that the process needs could not be had.
    #[error("cannot start {what}: {source}")]
    Start {
        /// What.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl TargetError {
    pub(super) fn start(what: &'static str, source: std::io::Error) -> Self {
        Self::Start { what, source }
    }

    pub(super) fn unreadable(
        directory: &Path,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Unreadable { directory: directory.to_owned(), source: source.into() }
    }
}
