//! The messages of the control stream, in both directions, and their bytes. Bulk data never travels
//! here: frames and point content have streams of their own.
//!
//! ```text
//! | length u32 LE | bincode of one AgentMessage or TargetMessage, `length` bytes |
//! ```
//!
//! Variants and fields are only ever appended; a change of what stands here raises
//! [`PROTOCOL_VERSION`]. Version 1: the first. Version 2: a pause tells when it was said, and a
//! welcome tells of it and of disks whose protection was ended. Version 3: a marked point
//! tells which protected disks it lacks, and whether it is proven; a point names the disks for
//! which it is lost, and the target those whose replicas stand still; a list of points has those
//! that wait to be applied, and says which are suspect.

use crate::pause::PauseWord;
use crate::verify::{Check, DifferentPiece, VerifyOutcome};
use redoubt_log::codec::{CodecError, decode_bounded, encode_bounded};
use redoubt_log::{
    DiskIndex, DiskSet, Generation, Incarnation, MachineId, Name, PointId, RoleEpoch, Sequence,
    WallTime,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What this build speaks. A hello with another version is refused with both numbers.
pub const PROTOCOL_VERSION: u32 = 3;

/// Largest message in bytes, without its length: a hello of 64 disks or a page of points is far
/// below it, and a hostile peer cannot make us hold more.
pub const MESSAGE_LIMIT: usize = redoubt_log::codec::MESSAGE_LIMIT;

/// Bytes of the length that stands before each message.
pub const LENGTH_BYTES: usize = 4;

/// Most points in one [`TargetMessage::Points`]: at under 300 bytes each they stay below
/// [`MESSAGE_LIMIT`].
pub const POINTS_PER_MESSAGE: usize = 2000;

/// Longest label of a point in a list, in bytes.
pub const POINT_LABEL_LIMIT: usize = 200;

/// Longest free text (reason, label, version) that a sender puts into a message; longer is cut.
pub const TEXT_LIMIT: usize = 1024;

/// From the agent to the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// First on every connection.
    Hello(Box<Hello>),
    /// Every second, and when something changes.
    Report(Report),
    /// Answer to [`TargetMessage::Mark`], or a point that the agent took by itself.
    Marked {
        /// The mark's request.
        request: RequestId,
        /// The point and its place in the log, or why there is none.
        result: Result<MarkedPoint, String>,
    },
    /// Asks for the points, oldest first; answered by [`TargetMessage::Points`].
    ListPoints {
        /// Returned in the answer.
        request: RequestId,
        /// Only points after this one: the last of the page before, or 0.
        after: Sequence,
    },
    /// Asks for a disk as it was at a point. Answered by [`TargetMessage::PointOpened`]; then the
    /// target opens a unidirectional stream with the bytes.
    ReadPoint {
        /// Returned in the answer and at the head of the stream.
        request: RequestId,
        /// Which disk.
        disk: DiskIndex,
        /// Which point; `None` means the latest that is good for the disk.
        point: Option<PointId>,
    },
    /// The agent stops in order; what it sent stays valid.
    Goodbye {
        /// For the log and the status.
        reason: String,
    },
    /// Answer to [`TargetMessage::Confirm`].
    Confirmed,
    /// Asks whether a disk is at a point what hashes say; answered by [`TargetMessage::Checked`].
    /// One at a time.
    Check {
        /// Returned in the answer.
        request: RequestId,
        /// The question.
        check: Check,
    },
    /// How far a [`TargetMessage::Verify`] has come.
    VerifyProgress {
        /// The verify's request.
        request: RequestId,
        /// Bytes that are done with.
        done_bytes: u64,
        /// Of so many.
        total_bytes: u64,
    },
    /// Answer to [`TargetMessage::Verify`].
    Verified {
        /// The verify's request.
        request: RequestId,
        /// What came of it, or why it was not carried to its end.
        result: Result<VerifyOutcome, String>,
    },
    /// Whether the operator has paused the machine, as far as the agent was told; it is stored
    /// there before this is said.
    Pause(PauseWord),
}

/// From the target to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetMessage {
    /// Answer to a hello: the session stands.
    Welcome(Welcome),
    /// Answer to a hello, or the end of a session; the connection closes after it.
    Refused(Refusal),
    /// Every frame up to here survives a power cut at the target.
    Durable {
        /// The last durable record.
        sequence: Sequence,
    },
    /// The replica disks hold every record up to here.
    Applied {
        /// The last applied record: that of a point.
        sequence: Sequence,
    },
    /// Take a recovery point now.
    Mark {
        /// Returned in [`AgentMessage::Marked`].
        request: RequestId,
        /// Shown with the point; at most [`TEXT_LIMIT`] bytes.
        label: String,
        /// Whether applications are to be quiesced around it.
        application_consistent: bool,
    },
    /// Whether the operator has paused the machine, as far as the target was told: a paused one
    /// tracks, but sends no frames. The agent answers with what counts.
    Pause(PauseWord),
    /// The target has no space: it goes on reading, but acknowledges nothing until `Room`.
    Full {
        /// What is full and what can be done.
        reason: String,
    },
    /// The target has space again.
    Room,
    /// Answer to [`AgentMessage::ListPoints`].
    Points {
        /// The request.
        request: RequestId,
        /// Oldest first, at most [`POINTS_PER_MESSAGE`].
        points: Vec<PointSummary>,
        /// Whether there are more after the last of these.
        more: bool,
    },
    /// Answer to [`AgentMessage::ReadPoint`].
    PointOpened {
        /// The request.
        request: RequestId,
        /// The point and the size of the disk at it, or why there is none.
        result: Result<OpenedPoint, String>,
    },
    /// Answer to a hello that may be admitted: say that you still live. Without it, a hello that a
    /// dead run left in the network would fence the run that lives.
    Confirm,
    /// Answer to [`AgentMessage::Check`].
    Checked {
        /// The request.
        request: RequestId,
        /// The pieces that differ, ascending, or why nothing was compared.
        result: Result<Vec<DifferentPiece>, String>,
    },
    /// Prove by hash that disks and replicas agree, and read again what differs. One at a time on a
    /// machine.
    Verify {
        /// Returned in [`AgentMessage::VerifyProgress`] and [`AgentMessage::Verified`].
        request: RequestId,
        /// Which disk; `None` means all.
        disk: Option<DiskIndex>,
    },
    /// Nobody waits for this [`TargetMessage::Verify`] any more: it may end.
    GiveUpVerify {
        /// The verify's request.
        request: RequestId,
    },
    /// The operator has ended the protection of these disks: the agent lets them go and says so in
    /// the log.
    Unprotect {
        /// Which.
        disks: DiskSet,
    },
    /// Disks whose replicas are not brought forward, though frames are taken; all others are. Said
    /// when that changes, and behind a welcome where there are any.
    Standstill {
        /// Which, and why: each once.
        disks: Vec<DiskStandstill>,
    },
}

/// A disk whose replica is not brought forward.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStandstill {
    /// Which.
    pub index: DiskIndex,
    /// A reason code with its details behind a colon, as the target shows it; at most
    /// [`TEXT_LIMIT`] bytes.
    pub reason: String,
}

/// Pairs an answer with its question; counted by the side that asks, per connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);

/// One run of the agent's process: 16 random bytes drawn when it starts. With it the target tells
/// an agent that comes back from a second one that has its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub [u8; 16]);

/// Who the agent is and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the agent; first, so that it can be read whatever follows.
    pub protocol_version: u32,
    /// Must be the machine of the certificate.
    pub machine: MachineId,
    /// The log the agent continues; `None` before its first welcome and when it asks for a new
    /// one.
    pub generation: Option<Generation>,
    /// This run.
    pub run: RunId,
    /// The incarnation that this run was given earlier; `None` at its first welcome.
    pub held: Option<Incarnation>,
    /// The newest incarnation that any run of this agent was given, as far as its state says.
    pub last_incarnation: Option<Incarnation>,
    /// The side that the agent believes to be on.
    pub role_epoch: RoleEpoch,
    /// The newest position of `generation` that the agent ever saw durable; 0 if none.
    pub acknowledged: Sequence,
    /// Why the agent asks for a new generation, if it does.
    pub resync: Option<String>,
    /// Its disks, at most 64, each index once.
    pub disks: Vec<DiskDescription>,
    /// The agent's build.
    pub agent_version: String,
    /// The machine's host name, as a hint for people.
    pub host_name: String,
}

/// A disk as the agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDescription {
    /// Its number in the log.
    pub index: DiskIndex,
    /// Its name, unique on the machine.
    pub name: Name,
    /// Size in bytes: a multiple of the logical block size.
    pub size_bytes: u64,
    /// 512 or 4096: a partition table means nothing without it.
    pub logical_block_bytes: u32,
}

/// What the agent knows, once a second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Monotonic age of the newest acknowledged position: the agent's part of the RPO. 0 when
    /// idle.
    pub rpo_milliseconds: u64,
    /// The last sealed record.
    pub sequence: Sequence,
    /// The last record the agent saw durable.
    pub acknowledged: Sequence,
    /// Each disk.
    pub disks: Vec<DiskReport>,
}

/// One disk within a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Which.
    pub index: DiskIndex,
    /// What is being done.
    pub state: DiskState,
    /// Why it is in this state.
    pub reason: String,
    /// What the state still has to send or read.
    pub bytes_remaining: u64,
    /// When the state ends at the present rate, if it is known.
    pub eta_seconds: Option<u64>,
    /// Written by the machine.
    pub churn_bytes_per_second: u64,
    /// Sent to the target, as payload.
    pub sent_bytes_per_second: u64,
    /// How the disk is watched.
    pub tracker: TrackerReport,
}

/// What a disk is doing: the states of the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DiskState {
    /// First full pass.
    InitialSync,
    /// Write by write.
    Streaming,
    /// What the bitmap kept is being sent.
    CatchUp,
    /// Equality is being proven.
    Verifying,
    /// Nothing is sent.
    Paused,
}

/// How a disk is watched, and whether that can be trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackerReport {
    /// What the capture pays for.
    pub mode: TrackerMode,
    /// Events that the ring had no room for.
    pub losses: u64,
    /// Writes the kernel counted and the tracker did not.
    pub misses: u64,
    /// The audit's verdict in words.
    pub verdict: String,
}

/// What the capture of one disk pays for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TrackerMode {
    /// Only the bitmap.
    Bitmap,
    /// Order without data.
    Metadata,
    /// Order and data.
    Data,
}

/// Where a point stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkedPoint {
    /// Its name.
    pub point: PointId,
    /// Its marker's record.
    pub sequence: Sequence,
    /// The protected disks for which it is not good: they are absent, or not what they were.
    pub lacking: DiskSet,
    /// Whether the tracker can prove that it missed nothing.
    pub proven: bool,
}

/// The session's terms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The log to continue. Another than the hello's: a new log begins and everything is sent
    /// again.
    pub generation: Generation,
    /// This run's number; frames carry it. Older ones were fenced before this was written.
    pub incarnation: Incarnation,
    /// Everything up to here is durable; the next frame's `previous` is this.
    pub resume: Sequence,
    /// The side that may write.
    pub role_epoch: RoleEpoch,
    /// How often the agent takes a point by itself; 0 means never.
    pub point_interval_milliseconds: u64,
    /// Frames that may be on their way: sent and not yet durable.
    pub window_frames: u32,
    /// What the target has of each disk it knows.
    pub disks: Vec<KnownDisk>,
    /// Why a new log begins, where one does.
    pub resync: Option<String>,
    /// Whether the operator has paused the machine, as far as the target was told.
    pub pause: PauseWord,
    /// Whether the target has no space, and why.
    pub full: Option<String>,
}

/// What the target has of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownDisk {
    /// Which.
    pub index: DiskIndex,
    /// Size of the replica disk in bytes.
    pub size_bytes: u64,
    /// Whether anything was ever written to it.
    pub has_data: bool,
    /// Whether the log said that it is consistent, so that points are good for it.
    pub consistent: bool,
    /// Whether its protection has ended: its index is not used again, and an agent that still
    /// tracks it lets it go.
    pub ended: bool,
}

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("the target refuses this machine ({code}): {text}")]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what is wrong and what can be done.
    pub text: String,
}

/// Why there is no session, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RefusalCode {
    /// The target does not know the machine, or the hello names another than the certificate.
    ForeignMachine,
    /// A later run of the agent has connected: this one must end.
    NewerIncarnation,
    /// The other side writes now; this one has to be reprotected.
    FencedRoleEpoch,
    /// The two builds do not understand each other.
    ProtocolVersion,
    /// The machine's protection was ended at the target.
    Unprotected,
    /// The target has no space to take the machine in.
    TargetFull,
    /// What was said breaks the protocol.
    Malformed,
    /// The target is starting or stopping: come back.
    NotReady,
    /// Another machine of the site has its name: this one must be enrolled by another.
    NameTaken,
}

impl std::fmt::Display for RefusalCode {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::ForeignMachine => "foreign machine",
            Self::NewerIncarnation => "newer incarnation",
            Self::FencedRoleEpoch => "fenced role epoch",
            Self::ProtocolVersion => "protocol version",
            Self::Unprotected => "unprotected",
            Self::TargetFull => "target full",
            Self::Malformed => "malformed",
            Self::NotReady => "not ready",
            Self::NameTaken => "name taken",
        })
    }
}

/// A recovery point as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointSummary {
    /// Its name.
    pub point: PointId,
    /// When the agent took it, by the agent's wall clock.
    pub taken_at: WallTime,
    /// Whether applications were quiesced around it.
    pub application_consistent: bool,
    /// The operator's text; cut to [`POINT_LABEL_LIMIT`], so that a page of points stays a
    /// message.
    pub label: String,
    /// Its marker's record.
    pub sequence: Sequence,
    /// The disks it is good for.
    pub disks: DiskSet,
    /// Whether these are all of the machine's disks.
    pub complete: bool,
    /// Whether no loss, gap or unsettled write touches it.
    pub proven: bool,
    /// The disks for which it is lost, for what the target keeps is damaged or missing.
    pub harmed: DiskSet,
    /// Whether it is durable at the target, and the replica disks have not come to it yet.
    pub waits: bool,
    /// Why it may hold wrong bytes all the same, where something was found out later: a sentence
    /// of about 200 bytes, so that a page of points stays a message.
    pub suspect: Option<String>,
}

/// A point that is about to be streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenedPoint {
    /// Its name.
    pub point: PointId,
    /// The disk's size at it.
    pub size_bytes: u64,
}

/// A message that cannot be sent or was not understood.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The length says more than [`MESSAGE_LIMIT`].
    #[error(
        "a message of {length} bytes is over the limit of {MESSAGE_LIMIT}: \
         are both sides of one release?"
    )]
    TooLong {
        /// What was claimed.
        length: usize,
    },
    /// What the encoder or decoder said.
    #[error("a message of the control stream: {0}")]
    Codec(#[from] CodecError),
}

/// The bytes of a message as they go on the stream: its length, then its body.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, MessageError> {
    let body = encode_bounded(message, MESSAGE_LIMIT)?;
    let length = u32::try_from(body.len()).expect("MESSAGE_LIMIT fits in 32 bits");
    let mut bytes = Vec::with_capacity(LENGTH_BYTES + body.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// How many bytes of body follow this length.
pub fn body_length(prefix: [u8; LENGTH_BYTES]) -> Result<usize, MessageError> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MESSAGE_LIMIT { Err(MessageError::TooLong { length }) } else { Ok(length) }
}

/// The message that the body is.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, MessageError> {
    Ok(decode_bounded(body, MESSAGE_LIMIT)?)
}

/// Free text, cut to [`TEXT_LIMIT`] bytes at a character's end.
pub fn bounded_text(text: &str) -> &str {
    let mut end = text.len().min(TEXT_LIMIT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests;
