//! What `status --json` and `points --json` print: an interface that other programs build on.
//! Fields are only ever added; nothing here computes.

use crate::units::UtcTime;
use redoubt_log::Name;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use uuid::Uuid;

/// Which role answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The Unified Agent of a protected machine.
    Agent,
    /// The master target.
    Target,
}

/// One role's view of all that it protects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RoleStatus {
    /// Who says so.
    pub role: Role,
    /// The agent's own machine, or all machines of the target.
    pub machines: Vec<MachineStatus>,
    /// Devices of a target that wait for disks which no agent has announced yet.
    #[serde(default)]
    pub placements: Vec<PlacementStatus>,
}

/// The reason code of a disk whose replica is gone, at either side.
pub const REPLICA_MISSING: &str = "replica-missing";

impl RoleStatus {
    /// Whether something that the target keeps is damaged or missing.
    pub fn is_harmed(&self) -> bool {
        let is_gone = |disk: &DiskStatus| {
            disk.reason.as_deref().is_some_and(|reason| reason.starts_with(REPLICA_MISSING))
        };
        let is_harmed = |disk: &DiskStatus| disk.harm.is_some() || is_gone(disk);
        self.machines.iter().any(|it| it.reason.is_some() || it.disks.iter().any(is_harmed))
    }
}

/// A block device that will hold the replica of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlacementStatus {
    /// The machine's name; it may not have joined yet.
    #[cfg_attr(test, schemars(with = "crate::schemas::NameText"))]
    pub machine: Name,
    /// The disk's name within the machine.
    #[cfg_attr(test, schemars(with = "crate::schemas::NameText"))]
    pub disk: Name,
    /// The device.
    pub device: PathBuf,
}

/// A protected machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MachineStatus {
    /// Its identity, for ever.
    pub id: Uuid,
    /// Its name within the site.
    #[cfg_attr(test, schemars(with = "crate::schemas::NameText"))]
    pub name: Name,
    /// Whether agent and target have a session now.
    pub connected: bool,
    /// Why nothing of the machine goes on, whatever its disks: a reason code such as
    /// `store-damaged` with its details behind a colon; null where the disks tell.
    #[serde(default)]
    #[cfg_attr(test, schemars(regex(pattern = "^[a-z][a-z-]*(: .+)?$")))]
    pub reason: Option<String>,
    /// Seconds: the age of the newest acknowledged position (the agent's monotonic clock) and the
    /// time since the target last heard from the agent; null until the first acknowledgement, and
    /// where nothing of it is protected any more. That of an idle machine does not grow.
    #[cfg_attr(test, schemars(range(min = 0.0)))]
    pub rpo_seconds: Option<f64>,
    /// Its disks, in the order of their index.
    pub disks: Vec<DiskStatus>,
}

/// A protected disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DiskStatus {
    /// Its name within the machine.
    #[cfg_attr(test, schemars(with = "crate::schemas::NameText"))]
    pub name: Name,
    /// What goes on.
    pub state: DiskState,
    /// Why it is not simply streaming: a reason code such as `by-operator` or `ring-overflow`, with
    /// its details behind a colon where there are any.
    #[cfg_attr(test, schemars(regex(pattern = "^[a-z][a-z-]*(: .+)?$")))]
    pub reason: Option<String>,
    /// Bytes that still have to be read and sent before the disk streams.
    pub bytes_remaining: u64,
    /// Seconds that this will take at the present rate; null while no rate is known.
    pub eta_seconds: Option<u64>,
    /// What the machine writes to the disk, in bytes a second over the last seconds; 0 where nobody
    /// tells.
    pub churn_bytes_per_second: u64,
    /// What the agent sends for the disk, in bytes a second over the last seconds; 0 where nobody
    /// tells.
    pub sent_bytes_per_second: u64,
    /// How the disk is tracked; null on a target that does not hear from the agent, and of a disk
    /// that is protected no more.
    pub tracker: Option<TrackerStatus>,
    /// Where the log stands; null before the first session.
    pub position: Option<PositionStatus>,
    /// The replica disk on the target: a file or a device.
    pub replica_path: Option<PathBuf>,
    /// The recovery point that the replica disk holds now.
    pub applied_point: Option<Uuid>,
    /// The newest recovery point that is good for this disk.
    pub last_point: Option<Uuid>,
    /// What is lost of what the target keeps of it, whatever goes on: a reason code such as
    /// `points-lost` with its details behind a colon; null on an agent.
    #[serde(default)]
    #[cfg_attr(test, schemars(regex(pattern = "^[a-z][a-z-]*(: .+)?$")))]
    pub harm: Option<String>,
}

/// What goes on with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DiskState {
    /// The first pass over the disk.
    InitialSync,
    /// Every write is shipped in order as it happens.
    Streaming,
    /// What a gap left behind is read from the disk and shipped.
    CatchUp,
    /// The disk is unproven and is compared by hash.
    Verifying,
    /// Nothing moves; the reason says why.
    Paused,
}

/// How a disk's writes are tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TrackerStatus {
    /// What the capture pays for now.
    pub mode: TrackerMode,
    /// Events that the full ring lost; each was answered by a catch-up.
    pub losses: u64,
    /// Program runs that the kernel skipped; each was answered by a settle or a verify.
    pub misses: u64,
    /// Whether the tracker can prove that it missed nothing.
    pub verdict: TrackerVerdict,
}

/// What the capture of a disk pays for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum TrackerMode {
    /// Only the bitmap is marked.
    Bitmap,
    /// Writes are seen in order, their data is read from the disk.
    Metadata,
    /// Writes are seen in order with their data.
    Data,
}

/// Whether the tracker can prove that it missed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum TrackerVerdict {
    /// Nothing was missed, or all that was has been repaired.
    Proven,
    /// Something was missed and is being settled; points since then are suspect.
    Suspect,
    /// Only a verify can tell: the disk must be compared by hash.
    Unverified,
}

/// Where a machine's log stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PositionStatus {
    /// The log's generation.
    pub generation: Uuid,
    /// The agent's run within it.
    pub incarnation: u64,
    /// The newest record sealed by the agent, or received by the target.
    pub sequence: u64,
    /// The newest record durable at the target.
    pub acknowledged: u64,
}

/// A recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PointStatus {
    /// Its identity.
    pub id: Uuid,
    /// When it was marked, by the machine's wall clock.
    pub taken_at: UtcTime,
    /// What it promises.
    pub kind: PointKind,
    /// What the operator called it.
    pub label: Option<String>,
    /// The marked position.
    pub sequence: u64,
    /// The disks that it is good for.
    #[cfg_attr(test, schemars(with = "Vec<crate::schemas::NameText>"))]
    pub disks: Vec<Name>,
    /// Whether those are all disks of the machine.
    pub complete: bool,
    /// No loss, gap or unsettled write touches it, it is applied, and it is not suspect.
    pub proven: bool,
    /// The disks for which it is lost, for what the target keeps is damaged or missing.
    #[serde(default)]
    #[cfg_attr(test, schemars(with = "Vec<crate::schemas::NameText>"))]
    pub harmed_disks: Vec<Name>,
    /// Whether a disk can be had as it was at it.
    pub state: PointState,
    /// Why it may hold wrong bytes all the same: a verify has found a difference since. A reason
    /// code with its details behind a colon; null where nothing was found.
    #[cfg_attr(test, schemars(regex(pattern = "^[a-z][a-z-]*(: .+)?$")))]
    pub suspect: Option<String>,
}

/// Whether a disk can be had as it was at a recovery point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PointState {
    /// It is safe in the target's journal, and waits for the replica disks to come to it.
    Waiting,
    /// It can.
    Applied,
}

/// What a recovery point promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PointKind {
    /// As if the power had failed then.
    CrashConsistent,
    /// The applications had been asked to stand still.
    ApplicationConsistent,
}

/// A block device of this machine as `redoubt disks` and `redoubt agent --check` report it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceReport {
    /// The device node.
    pub device: PathBuf,
    /// The stable name that the disk would be protected under.
    #[cfg_attr(test, schemars(with = "crate::schemas::NameText"))]
    pub name: Name,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its logical block size in bytes.
    pub logical_block_bytes: u32,
    /// What uses it: mount points, `swap`, holders.
    pub used_by: Vec<String>,
    /// Whether the state of the agent that would protect it lies on it, so that the agent's own few
    /// writes are shipped, too. Known to `--check` only.
    #[serde(default)]
    pub holds_agent_state: bool,
    /// The best way to track it; null where it cannot be protected.
    pub mode: Option<TrackerMode>,
    /// Why it cannot be protected, or not in the best mode.
    pub reason: Option<String>,
    /// What the operator can do about the reason.
    pub remedy: Option<String>,
}

/// The answer of `redoubt agent --check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CheckReport {
    /// The best way to track any disk of this machine; null where it cannot be protected.
    pub mode: Option<TrackerMode>,
    /// Why the machine cannot be protected, or not in the best mode.
    pub reason: Option<String>,
    /// What the operator can do about the reason.
    pub remedy: Option<String>,
    /// The disks that were asked for.
    pub disks: Vec<DeviceReport>,
}

impl CheckReport {
    /// Whether the machine and every disk asked for can be protected.
    pub fn is_protectable(&self) -> bool {
        self.mode.is_some() && self.disks.iter().all(|disk| disk.mode.is_some())
    }
}

macro_rules! shown_as {
    ($name:ident { $($variant:ident => $text:literal),+ $(,)? }) => {
        impl $name {
            /// The word that JSON and tables show.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.pad(self.as_str())
            }
        }
    };
}

shown_as!(Role { Agent => "agent", Target => "target" });
shown_as!(DiskState {
    InitialSync => "initial-sync",
    Streaming => "streaming",
    CatchUp => "catch-up",
    Verifying => "verifying",
    Paused => "paused",
});
shown_as!(TrackerMode { Bitmap => "bitmap", Metadata => "metadata", Data => "data" });
shown_as!(TrackerVerdict {
    Proven => "proven",
    Suspect => "suspect",
    Unverified => "unverified",
});
shown_as!(PointState { Waiting => "waiting", Applied => "applied" });
shown_as!(PointKind {
    CrashConsistent => "crash-consistent",
    ApplicationConsistent => "application-consistent",
});

#[cfg(test)]
mod tests;
