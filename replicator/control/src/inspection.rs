//! What `redoubt inspect --json` prints: an interface that other programs build on. Fields are only
//! ever added; nothing here computes.

use crate::status::PointKind;
use crate::units::UtcTime;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use uuid::Uuid;

/// What a target's directory holds, and whether it is what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Inspection {
    /// The directory.
    pub directory: PathBuf,
    /// When the inspection ended, by this machine's clock.
    pub inspected_at: UtcTime,
    /// Whether a target ran on the directory meanwhile: then the picture may have moved, and only
    /// what had settled was judged.
    pub running: bool,
    /// The answer.
    pub verdict: Verdict,
    /// Bytes whose checksums were computed.
    pub checked_bytes: u64,
    /// The site's identity; null where there is none.
    pub site: Option<SiteInspection>,
    /// The machines that have a store, by their ids.
    pub machines: Vec<MachineInspection>,
    /// Everything that is not what was written, in the order in which it was found.
    pub damage: Vec<Damage>,
    /// Files of a later release, which this one cannot judge.
    pub newer: Vec<NewerFile>,
    /// What `--finish` did; empty without it, and where there was nothing to finish.
    pub finished: Vec<FinishedApply>,
    /// Files that no manifest speaks of: a cut left them, and they are not needed.
    pub leftovers: Vec<PathBuf>,
}

/// The answer of an inspection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every checksum is right, and nothing is missing.
    Unharmed,
    /// Something is damaged or missing; the rest was checked all the same.
    Damaged,
    /// Nothing is known to be damaged, but some files are of a later release.
    NewerVersion,
}

/// The identity that agents know the target by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SiteInspection {
    /// Hash of the authority's certificate, which tokens pin, in hexadecimal; null where it is
    /// damaged.
    pub fingerprint: Option<String>,
    /// Where tokens tell agents to connect to, as of the target's last start.
    pub address: Option<String>,
    /// Invitations that nobody has used yet, expired ones as well.
    pub unused_invitations: u64,
    /// The machines that joined, by their ids.
    pub machines: Vec<JoinedMachine>,
}

/// A machine that joined the site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct JoinedMachine {
    /// Its identity, for ever.
    pub id: Uuid,
    /// Its name; null where its record is damaged.
    pub name: Option<String>,
}

/// A machine's store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MachineInspection {
    /// Its identity, for ever.
    pub id: Uuid,
    /// Its name; null where its manifest cannot be read.
    pub name: Option<String>,
    /// Whether nothing of it is damaged, missing or of a later release.
    pub unharmed: bool,
    /// Where its log stands; null where its manifest cannot be read.
    pub log: Option<LogInspection>,
    /// Its replica disks, by their index.
    pub disks: Vec<DiskInspection>,
    /// Its applied recovery points, oldest first.
    pub points: Vec<PointInspection>,
    /// The journal.
    pub journal: JournalInspection,
    /// The retention files that its manifest lists (all that there are, where it cannot be read),
    /// oldest first.
    pub retention: Vec<RetentionInspection>,
}

/// Where a machine's log stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LogInspection {
    /// The generation that its newest frames must have.
    pub generation: Uuid,
    /// The last run of the agent that was admitted.
    pub incarnation: u64,
    /// Which side may write.
    pub role_epoch: u64,
    /// The last record that the replica disks hold.
    pub applied: u64,
    /// Where the apply ends that runs or was cut; null where none is under way.
    pub applying: Option<u64>,
    /// The last record of the journal that follows without a break.
    pub durable: u64,
}

/// A replica disk. Its content has no checksums: only its source can prove it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DiskInspection {
    /// Its index in the machine's log.
    pub index: u8,
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its logical block size in bytes.
    pub logical_block_bytes: u32,
    /// The file or device that holds it.
    pub replica_path: PathBuf,
    /// Whether that is there and has the disk's size.
    pub present: bool,
    /// Whether any record of it was ever applied; else every byte reads as zero.
    pub has_data: bool,
    /// Whether the log tells all of it, as of the applied position.
    pub consistent: bool,
    /// Whether an apply that runs or was cut writes to it: then it lies between two positions, and
    /// is no disk to be used until that apply is finished.
    pub mid_apply: bool,
    /// Whether it holds writes from after its last point, so that the point needs a view.
    pub ahead_of_point: bool,
    /// Its newest recovery point, if it has one. The replica is at that point exactly where it is
    /// neither ahead of it nor in the middle of an apply.
    pub last_point: Option<Uuid>,
}

/// An applied recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PointInspection {
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
    pub disks: Vec<String>,
    /// Whether those are all disks of the machine.
    pub complete: bool,
    /// Those of its disks that cannot be read wholly at this point, for damage.
    pub harmed_disks: Vec<String>,
}

/// A machine's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct JournalInspection {
    /// Its segments, in order.
    pub segments: Vec<SegmentInspection>,
    /// Bytes of entries that wait to be applied.
    pub waiting_bytes: u64,
    /// Recovery points that wait to be applied.
    pub waiting_points: u64,
}

/// A journal segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SegmentInspection {
    /// Its number.
    pub number: u64,
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whole entries.
    pub entries: u64,
    /// The first record of its first whole entry.
    pub first: Option<u64>,
    /// The last record of its last whole entry.
    pub last: Option<u64>,
    /// The byte of the file behind its last whole entry.
    pub end_byte: u64,
    /// Whether a target would still read it; else it is applied and waits for its removal.
    pub needed: bool,
    /// How it ends.
    pub tail: SegmentTail,
    /// Whether all entries that were written whole are what was written.
    pub unharmed: bool,
}

/// How a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SegmentTail {
    /// With its last whole entry.
    Whole,
    /// Behind its last whole entry stands what a cut left of entries that were never
    /// acknowledged: no damage; the target erases it when it starts.
    Torn,
    /// A target writes behind its last whole entry now.
    Growing,
    /// Entries that were written whole are damaged or missing.
    Damaged,
    /// Its creation was cut, or goes on: it holds nothing yet.
    Unused,
    /// What stands behind its last whole entry is of a later release.
    NewerVersion,
}

/// A retention file: what one interval of the log overwrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RetentionInspection {
    /// The file.
    pub path: PathBuf,
    /// The position before the interval.
    pub from: u64,
    /// The interval's last record.
    pub to: u64,
    /// The disks of which it holds content; by index where the manifest cannot be read.
    pub disks: Vec<String>,
    /// Whole pieces of old content.
    pub pieces: u64,
    /// Bytes of old content in them.
    pub content_bytes: u64,
    /// Bytes that they take in the file.
    pub stored_bytes: u64,
    /// Whether all of it is what was written.
    pub unharmed: bool,
}

/// Something that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Damage {
    /// Whose; null where it is the site's.
    pub machine: Option<Uuid>,
    /// The file.
    pub path: PathBuf,
    /// The byte of the file at which it begins.
    pub byte: u64,
    /// What is wrong there.
    pub what: String,
    /// What that means, and what it does not touch.
    pub means: String,
    /// The disks that it touches.
    pub disks: Vec<String>,
    /// The applied points that it touches, at those disks.
    pub points: Option<HarmedPoints>,
    /// The records that it touches.
    pub positions: Option<LostPositions>,
}

/// Applied points that damage touches: all from the oldest to the newest that are good for one of
/// the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HarmedPoints {
    /// The first.
    pub oldest: Uuid,
    /// The last.
    pub newest: Uuid,
    /// How many.
    pub count: u64,
}

/// Records that damage touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LostPositions {
    /// The first; null where it is not known.
    pub first: Option<u64>,
    /// The last; null where it is not known.
    pub last: Option<u64>,
}

/// A file of a later release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NewerFile {
    /// Whose; null where it is the site's.
    pub machine: Option<Uuid>,
    /// The file.
    pub path: PathBuf,
    /// Its version.
    pub version: u32,
    /// The newest version known here.
    pub known: u32,
}

/// An apply that was half done, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FinishedApply {
    /// Whose.
    pub machine: Uuid,
    /// Its name.
    pub name: String,
    /// The record that the replica disks were to come to.
    pub to: u64,
    /// Why it could not be finished; null where it was.
    pub failed: Option<String>,
    /// The recovery point there, if there is one.
    pub point: Option<Uuid>,
    /// All replica disks of the machine, as they are now.
    pub disks: Vec<FinishedDisk>,
}

/// A replica disk behind `--finish`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FinishedDisk {
    /// Its name.
    pub name: String,
    /// The file or device that holds it.
    pub replica_path: PathBuf,
    /// Its newest recovery point, if it has one.
    pub last_point: Option<Uuid>,
    /// Whether it is ahead of that point, which then needs a view or a rollback; else it is at it.
    pub ahead_of_point: bool,
}

impl Inspection {
    /// The machine's damage, in the order in which it was found.
    pub fn damage_of(&self, machine: Uuid) -> impl Iterator<Item = &Damage> {
        self.damage.iter().filter(move |damage| damage.machine == Some(machine))
    }
}

impl SegmentTail {
    /// The word that JSON and tables show.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Torn => "torn",
            Self::Growing => "growing",
            Self::Damaged => "damaged",
            Self::Unused => "unused",
            Self::NewerVersion => "newer-version",
        }
    }
}

impl fmt::Display for SegmentTail {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_snake_case_words_are_kebab_case_and_times_rfc_3339() {
        let inspection = Inspection {
            directory: "/srv".into(),
            inspected_at: UtcTime::from_nanoseconds(1_700_000_000_000_000_000),
            running: false,
            verdict: Verdict::NewerVersion,
            checked_bytes: 1,
            site: None,
            machines: Vec::new(),
            damage: vec![Damage {
                machine: None,
                path: "/srv/x".into(),
                byte: 7,
                what: "w".into(),
                means: "m".into(),
                disks: Vec::new(),
                points: None,
                positions: Some(LostPositions { first: Some(1), last: None }),
            }],
            newer: Vec::new(),
            finished: Vec::new(),
            leftovers: Vec::new(),
        };
        let json = serde_json::to_string(&inspection).unwrap();
        let expected = concat!(
            r#"{"directory":"/srv","inspected_at":"2023-11-14T22:13:20Z","running":false,"#,
            r#""verdict":"newer-version","checked_bytes":1,"site":null,"machines":[],"#,
            r#""damage":[{"machine":null,"path":"/srv/x","byte":7,"what":"w","means":"m","#,
            r#""disks":[],"points":null,"positions":{"first":1,"last":null}}],"#,
            r#""newer":[],"finished":[],"leftovers":[]}"#,
        );
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str::<Inspection>(&json).unwrap(), inspection);
        for tail in ["whole", "torn", "growing", "damaged", "unused", "newer-version"] {
            let parsed: SegmentTail = serde_json::from_str(&format!("{tail:?}")).unwrap();
            assert_eq!(parsed.to_string(), tail);
        }
    }
}
