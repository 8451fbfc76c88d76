//! The manifest: what a machine's parts are, and how far the replica disks have come. Replaced
//! atomically, as a whole. It never states what is not durable yet, and a version that this program
//! does not know is refused, not guessed.
//!
//! ```text
//! redoubt-manifest 4 <crc32c of version and body, 8 hex digits>\n
//! <body: JSON>
//! ```

use super::checked_text::Kind;
use super::error::{Result, StoreError};
use super::layout::MachineLayout;
use super::placement::Placed;
use super::suspicion::Suspicion;
use redoubt_engine::storage::Storage;
use redoubt_log::{
    DiskIndex, DiskSet, Generation, Incarnation, MachineId, PointId, PointKind, RoleEpoch,
    Sequence, WallTime,
};
use redoubt_protocol::PauseWord;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The version that this program writes, and the newest that it reads. Version 1: the first.
/// Version 2: a point says whether it is proven; one of version 1 is not. Version 3: pauses,
/// removals, devices that are proven, disks whose protection has ended; the checksum covers the
/// version. Version 4: points that a comparison has made suspect.
pub const VERSION: u32 = 4;

const KIND: Kind = Kind { word: "redoubt-manifest", version: VERSION, sums_version_from: 3 };

/// A machine's manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The machine.
    pub machine: MachineId,
    /// Its name at this site.
    pub name: String,
    /// The generation that the journal's newest frames must have.
    pub generation: Generation,
    /// The last incarnation handed out; frames of older ones are refused.
    pub incarnation: Incarnation,
    /// The run of the agent that it was handed out to; `None` before the first.
    pub run: Option<[u8; 16]>,
    /// Which side may write.
    pub role_epoch: RoleEpoch,
    /// Whether the operator has paused it.
    #[serde(default)]
    pub pause: PauseWord,
    /// Whether all of it is being deleted.
    #[serde(default)]
    pub removing: bool,
    /// The disks, by index; an index is never used for another disk.
    pub disks: Vec<Disk>,
    /// Every record up to this one is on the replica disks, durably.
    pub applied: Sequence,
    /// The generation of that record: a frame of another one begins with no disk consistent.
    pub applied_generation: Generation,
    /// An apply that may have touched the replica disks already and must be finished.
    pub applying: Option<Sequence>,
    /// What the journal needs no more.
    pub journal: JournalFloor,
    /// Sealed retention files, oldest first; each begins where the one before it ended or later.
    pub retention: Vec<RetentionSpan>,
    /// Applied recovery points, oldest first.
    pub points: Vec<Point>,
    /// What was found out of points later: one a disk at most.
    #[serde(default)]
    pub suspicions: Vec<Suspicion>,
}

/// A replica disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its index in the machine's log.
    pub index: DiskIndex,
    /// Its stable name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical block: a partition table means nothing without it.
    pub logical_block_size: u32,
    /// The block device that holds it, where that is not the sparse file `disks/<index>`.
    pub device: Option<Placed>,
    /// Whether it is still protected.
    #[serde(default)]
    pub protection: Protection,
    /// Whether a record of it was ever applied: until then a sparse file reads as zero.
    pub has_data: bool,
    /// Whether a recovery point of it was ever applied: from then on what is overwritten is
    /// retained.
    pub has_points: bool,
    /// The record that made it consistent, as of `applied`; `None` while it is not.
    pub consistent_from: Option<Sequence>,
    /// Whether the replica disk holds writes from after its last point, so that the point needs a
    /// view.
    pub ahead_of_point: bool,
}

/// Whether a disk is still protected, and what is left of it if not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// It is.
    #[default]
    Active,
    /// The agent has ended it; replica and points stay.
    EndedByAgent,
    /// It was ended here; replica and points stay.
    EndedByTarget,
    /// It was ended, and the replica was deleted.
    Deleted,
}

impl Protection {
    /// Whether the disk is still protected.
    pub fn is_active(self) -> bool {
        self == Self::Active
    }
}

impl Disk {
    /// Where its replica is: the device, or the sparse file.
    pub(super) fn replica_path(&self, layout: &MachineLayout) -> PathBuf {
        let device = self.device.as_ref().map(|placed| placed.path.clone());
        device.unwrap_or_else(|| layout.disk(self.index))
    }

    /// Whether there is a replica of it.
    pub fn is_kept(&self) -> bool {
        self.protection != Protection::Deleted
    }
}

/// From where the journal is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalFloor {
    /// The first segment that is kept.
    pub segment: u64,
    /// The last sequence before it: applied, and freed.
    pub after: Sequence,
}

/// A sealed retention file: what the interval `(from, to]` overwrote on these disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionSpan {
    /// The position before the interval.
    pub from: Sequence,
    /// The interval's last record.
    pub to: Sequence,
    /// Disks of which it holds content.
    pub disks: DiskSet,
}

/// A recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Its id, made by the agent.
    pub id: PointId,
    /// When, by the protected machine's clock.
    pub taken_at: WallTime,
    /// What it promises of the data.
    pub kind: PointKind,
    /// The operator's words, if any.
    pub label: String,
    /// The marker's place in the log.
    pub sequence: Sequence,
    /// Disks that it is good for.
    pub disks: DiskSet,
    /// Whether those were all disks of the machine.
    pub complete: bool,
    /// Whether the tracker could prove that nothing of them was missed.
    #[serde(default)]
    pub proven: bool,
}

impl Manifest {
    /// Of a machine that has no disk yet.
    pub fn new(machine: MachineId, name: &str, generation: Generation) -> Self {
        Self {
            machine,
            name: name.to_owned(),
            generation,
            incarnation: Incarnation(0),
            run: None,
            role_epoch: RoleEpoch(0),
            pause: PauseWord::default(),
            removing: false,
            disks: Vec::new(),
            applied: Sequence(0),
            applied_generation: generation,
            applying: None,
            journal: JournalFloor::default(),
            retention: Vec::new(),
            points: Vec::new(),
            suspicions: Vec::new(),
        }
    }

    /// Reads it, or `None` where there is none.
    pub fn load(storage: &dyn Storage, path: &Path) -> Result<Option<Self>> {
        storage.load(path)?.map(|bytes| Self::decode(path, &bytes)).transpose()
    }

    /// Replaces it; durable when this returns.
    pub fn save(&self, storage: &dyn Storage, path: &Path) -> Result<()> {
        Ok(storage.replace(path, &self.encode())?)
    }

    /// The disk with this index.
    pub fn disk(&self, index: DiskIndex) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.index == index)
    }

    /// The disk with this index, where there is a replica of it and it stays.
    pub fn kept_disk(&self, index: DiskIndex) -> Option<&Disk> {
        self.disk(index).filter(|disk| disk.is_kept() && !self.removing)
    }

    /// Disks whose replica was deleted: what the journal still tells of them is skipped.
    pub fn deleted_disks(&self) -> DiskSet {
        let mut set = DiskSet::default();
        self.disks.iter().filter(|disk| !disk.is_kept()).for_each(|disk| set.insert(disk.index));
        set
    }

    /// A point of the log, as far as it is one of disks that are kept, and whether it has all that
    /// are protected.
    pub(super) fn judged(&self, point: Point) -> Option<Point> {
        let disks = DiskSet(point.disks.0 & !self.deleted_disks().0);
        let mut active = self.disks.iter().filter(|disk| disk.protection.is_active());
        let complete = active.all(|disk| disks.contains(disk.index));
        (!disks.is_empty()).then_some(Point { disks, complete, ..point })
    }

    /// Disks whose overwritten content is retained.
    pub fn retained_disks(&self) -> DiskSet {
        let mut set = DiskSet::default();
        self.disks.iter().filter(|disk| disk.has_points).for_each(|disk| set.insert(disk.index));
        set
    }

    fn encode(&self) -> Vec<u8> {
        let body = serde_json::to_string_pretty(self)
            .expect("a manifest has only string keys and finite numbers");
        KIND.encode(&body)
    }

    pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<Self> {
        let (body, at) = KIND.decode(path, bytes)?;
        let damaged = |what: String| StoreError::damaged(path, at, what);
        let manifest: Self =
            serde_json::from_str(body).map_err(|error| damaged(error.to_string()))?;
        manifest.check().map_err(damaged)?;
        Ok(manifest)
    }

    /// What must be true of every manifest.
    fn check(&self) -> std::result::Result<(), String> {
        let mut seen = DiskSet::default();
        for disk in &self.disks {
            if disk.index.0 >= DiskIndex::LIMIT || seen.contains(disk.index) {
                return Err(format!("disk {} is listed twice or out of range", disk.index));
            }
            seen.insert(disk.index);
        }
        let ordered = self.retention.iter().all(|span| span.from < span.to)
            && self.retention.windows(2).all(|pair| pair[0].to <= pair[1].from);
        if !ordered {
            return Err("retention files are not in order".to_owned());
        }
        if self.points.windows(2).any(|pair| pair[0].sequence >= pair[1].sequence)
            || self.points.last().is_some_and(|point| point.sequence > self.applied)
        {
            return Err("points are not in order, or not applied".to_owned());
        }
        if self.applying.is_some_and(|to| to <= self.applied) || self.journal.after > self.applied {
            return Err("the applied position contradicts the rest".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Manifest {
        let mut manifest = Manifest::new(MachineId([1; 16]), "web-1", Generation([2; 16]));
        let mut disks = DiskSet::default();
        disks.insert(DiskIndex(0));
        manifest.applied = Sequence(9);
        manifest.disks.push(Disk {
            index: DiskIndex(0),
            name: "sda".to_owned(),
            size: 1 << 30,
            logical_block_size: 512,
            device: None,
            protection: Protection::Active,
            has_data: true,
            has_points: true,
            consistent_from: Some(Sequence(4)),
            ahead_of_point: false,
        });
        manifest.retention.push(RetentionSpan { from: Sequence(5), to: Sequence(9), disks });
        manifest.points.push(Point {
            id: PointId([3; 16]),
            taken_at: WallTime(1),
            kind: PointKind::CrashConsistent,
            label: String::new(),
            sequence: Sequence(9),
            disks,
            complete: true,
            proven: true,
        });
        manifest
    }

    fn decode(bytes: &[u8]) -> Result<Manifest> {
        Manifest::decode(Path::new("m/manifest"), bytes)
    }

    #[test]
    fn reads_what_it_wrote() {
        assert_eq!(decode(&example().encode()).unwrap(), example());
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let bytes = example().encode();
        for position in 0..bytes.len() - 1 {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[position] ^= 1 << bit;
                let read = decode(&flipped);
                assert!(read.is_err(), "bit {bit} of byte {position} went unnoticed");
            }
        }
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let text = String::from_utf8(example().encode()).unwrap();
        let newer = text.replacen("redoubt-manifest 4 ", "redoubt-manifest 5 ", 1);
        let error = decode(newer.as_bytes()).unwrap_err();
        assert!(matches!(error, StoreError::NewerVersion { version: 5, known: 4, .. }), "{error}");
    }

    #[test]
    fn a_point_that_does_not_say_is_not_proven() {
        let mut first: serde_json::Value = serde_json::to_value(example()).unwrap();
        first["points"][0].as_object_mut().unwrap().remove("proven");
        let read: Manifest = serde_json::from_value(first).unwrap();
        assert!(!read.points[0].proven && example().points[0].proven);
    }

    #[test]
    fn what_earlier_versions_did_not_know_is_as_it_was_then() {
        let mut body: serde_json::Value = serde_json::to_value(example()).unwrap();
        body.as_object_mut().unwrap().remove("pause");
        body.as_object_mut().unwrap().remove("removing");
        body.as_object_mut().unwrap().remove("suspicions");
        body["disks"][0].as_object_mut().unwrap().remove("protection");
        for version in 1..VERSION {
            let earlier = Kind { version, ..KIND };
            assert_eq!(decode(&earlier.encode(&body.to_string())).unwrap(), example());
        }
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_damaged() {
        let mut manifest = example();
        manifest.points[0].sequence = Sequence(10);
        assert!(matches!(decode(&manifest.encode()), Err(StoreError::Damaged { .. })));
        let mut manifest = example();
        manifest.disks.push(manifest.disks[0].clone());
        assert!(matches!(decode(&manifest.encode()), Err(StoreError::Damaged { .. })));
        let mut manifest = example();
        manifest.applying = Some(Sequence(9));
        assert!(matches!(decode(&manifest.encode()), Err(StoreError::Damaged { .. })));
    }
}
