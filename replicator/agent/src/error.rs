//! What can end or stop the agent, with what the operator can do about it.

use redoubt_control::runtime::DirectoryError;
use redoubt_control::socket::SocketError;
use redoubt_engine::ring::EngineError;
use redoubt_protocol::message::Refusal;
use redoubt_tracker::device::DeviceError;
use redoubt_tracker::probe::ProbeError;
use std::path::PathBuf;

/// Why the agent does not start, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The state directory's own file.
    #[error("state file {path}: {source} (is the state directory on a disk with room?)")]
    State {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The state file does not parse.
    #[error(
        "state file {path} is damaged: {source} (restore it, or begin with a new state directory \
         and a new token)"
    )]
    StateContent {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The state file is of a later build.
    #[error(
        "state file {path} has version {version}, which this build does not know: install the \
         newer redoubt again"
    )]
    StateVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Another agent runs on this state directory.
    #[error(
        "{directory}: another agent runs with this state directory: stop it, or give this one its \
         own --state"
    )]
    StateLocked {
        /// The directory.
        directory: PathBuf,
    },
    /// A lock file cannot be made.
    #[error("lock {path}: {source}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others could stand in for the disks' locks.
    #[error(
        "lock directory {path} is not a directory that only this user may write to: remove it, and \
         it is made anew"
    )]
    LockDirectory {
        /// The directory, or what is in its place.
        path: PathBuf,
    },
    /// Another agent protects the disk, or a target has it for a replica.
    #[error(
        "{device}: {holder} has this disk already: stop it, or let it go there (`redoubt \
         unprotect`)"
    )]
    DiskLocked {
        /// The device node.
        device: PathBuf,
        /// Who has it.
        holder: String,
    },
    /// Another agent protects the disk that it lies on, or a part of it.
    #[error(
        "{device}: {holder} has {other}, which is a part of it or of which it is one: protect the \
         disk or its partitions, not both; stop the other first, or let {other} go there \
         (`redoubt unprotect`)"
    )]
    PartLocked {
        /// The device node.
        device: PathBuf,
        /// What the other has.
        other: PathBuf,
        /// Who that is.
        holder: String,
    },
    /// The same bytes twice in one agent.
    #[error(
        "{device} shares bytes with {other}, which this agent protects: give the disk or its \
         partitions, not both, and each only once"
    )]
    DiskTwice {
        /// The device node.
        device: PathBuf,
        /// The other one.
        other: PathBuf,
    },
    /// A remembered disk came back with another size.
    #[error(
        "{device} has {bytes} bytes in blocks of {block}, and had {bytes_before} in blocks of \
         {block_before}: put the device back that was there, or end the disk's protection with \
         `redoubt unprotect --disk` and protect it again"
    )]
    SizeChanged {
        /// The device node.
        device: PathBuf,
        /// Its size now.
        bytes: u64,
        /// Its logical blocks now.
        block: u32,
        /// What the target knows of it.
        bytes_before: u64,
        /// The same of its blocks.
        block_before: u32,
    },
    /// A device-mapper or md device, or another that takes bios.
    #[error(
        "{device}: the ends of writes to this kind of device (dm, md) cannot be followed exactly \
         yet: protect the disks that it lies on",
        device = device.display()
    )]
    BioBased {
        /// The device node.
        device: PathBuf,
    },
    /// Swap space.
    #[error(
        "{device}: {what}: {remedy}",
        device = device.display(),
        what = crate::check::SWAP,
        remedy = crate::check::SWAP_REMEDY
    )]
    Swap {
        /// The device node.
        device: PathBuf,
    },
    /// Two disks of one name.
    #[error("two disks are called {name}: give one another name with --disk DEV=NAME")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Too many disks.
    #[error(
        "a machine has numbers for {limit} disks, those that are protected no more among them: \
         begin with a new state directory and a new token"
    )]
    TooManyDisks {
        /// The bound.
        limit: u8,
    },
    /// Nothing to protect.
    #[error("no disk to protect: give --disk DEV (`redoubt disks` lists them)")]
    NoDisk,
    /// No identity and no token.
    #[error(
        "{directory} has no identity yet: give the token that `redoubt invite` printed at the \
         target (--token or --token-file)"
    )]
    NoToken {
        /// The state directory.
        directory: PathBuf,
    },
    /// A device that cannot be protected.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernel side.
    #[error("tracker: {0}")]
    Probe(#[from] ProbeError),
    /// A disk that does not open.
    #[error("{device}: cannot be opened for reading: {source}")]
    OpenDisk {
        /// The device node.
        device: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The read queue.
    #[error("reading the disks: {0}")]
    Engine(EngineError),
    /// A directory of ours.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The local socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Identity, enrolment, connection.
    #[error(transparent)]
    Transport(#[from] redoubt_transport::TransportError),
    /// The target does not serve this run, and never will: another took its place, or the
    /// machine's name is another's.
    #[error("{0}; this agent ends")]
    Refused(Refusal),
    /// A thread or signal handler could not be had.
    #[error("cannot start {what}: {source}")]
    Start {
        /// Of what.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A capability set was refused.
    #[error("cannot give up privileges: {0}")]
    Privileges(String),
    /// A thread panicked.
    #[error("the {what} thread has failed: see the log above")]
    Failed {
        /// Which.
        what: &'static str,
    },
}
