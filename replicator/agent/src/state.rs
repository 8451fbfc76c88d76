//! What the agent remembers from run to run: one small file, replaced atomically. No secret is in
//! it.

use crate::error::AgentError;
use redoubt_log::{DiskIndex, Generation, Name};
use redoubt_protocol::{AgentPast, PauseWord};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

const FILE: &str = "state.json";

/// The version of the file that this build writes; a newer one is refused. Version 1: the first.
/// Version 2: what a disk was asked for as, and how many unmarked completions were answered.
/// Version 3: pauses, and disks whose protection has ended.
const VERSION: u32 = 3;

/// Everything that is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    version: u32,
    /// The log and how far the target is known to have it.
    pub generation: Option<Generation>,
    pub incarnation: Option<u64>,
    pub role_epoch: u64,
    pub acknowledged: u64,
    /// Runs of the programs that the kernel has skipped, and that were answered.
    pub skipped_runs: u64,
    /// Whether the operator has paused the machine.
    #[serde(default)]
    pub pause: PauseWord,
    /// The disks to protect.
    pub disks: Vec<ProtectedDisk>,
    /// Disks whose protection has ended, as far as the target does not have that yet.
    #[serde(default)]
    pub ended: Vec<EndedDisk>,
    /// Indexes below this one were given: none is given again.
    #[serde(default)]
    pub next_index: u8,
}

/// A disk that is protected no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EndedDisk {
    pub index: DiskIndex,
    pub name: Name,
}

/// What every version of the file has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// A disk to protect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProtectedDisk {
    pub index: DiskIndex,
    pub name: Name,
    pub device: PathBuf,
    /// The name it was last asked for by, where that is another: when the device is gone, nobody
    /// else knows that both were one.
    #[serde(default)]
    pub asked: Option<PathBuf>,
    pub size: u64,
    pub logical_block_bytes: u32,
    /// The log for which all of it that changed is marked, without a break since that log began to
    /// tell of it.
    pub tracked: Option<Generation>,
    /// Unmarked completions, by the kernel's counter, that were answered.
    #[serde(default)]
    pub unmarked: u64,
}

impl State {
    /// What an earlier run left in `directory`, or the state of a first run.
    pub fn load(directory: &Path) -> Result<Self, AgentError> {
        let path = directory.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::first()),
            Err(source) => return Err(AgentError::State { path, source }),
        };
        // The version first: what else a later build has written need not parse here.
        let parsed = serde_json::from_str(&text).and_then(|Version { version }| {
            if version > VERSION { Ok(Err(version)) } else { serde_json::from_str(&text).map(Ok) }
        });
        match parsed {
            Ok(Ok(state)) => Ok(Self { version: VERSION, ..state }),
            Ok(Err(version)) => Err(AgentError::StateVersion { path, version }),
            Err(source) => Err(AgentError::StateContent { path, source }),
        }
    }

    fn first() -> Self {
        Self {
            version: VERSION,
            generation: None,
            incarnation: None,
            role_epoch: 0,
            acknowledged: 0,
            skipped_runs: 0,
            pause: PauseWord::default(),
            disks: Vec::new(),
            ended: Vec::new(),
            next_index: 0,
        }
    }

    /// Replaces the file; it is durable when this returns.
    pub fn save(&self, directory: &Path) -> Result<(), AgentError> {
        let path = directory.join(FILE);
        let write = || -> std::io::Result<()> {
            let beside = directory.join(format!("{FILE}.new"));
            let mut file = File::create(&beside)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(directory)?.sync_all()
        };
        write().map_err(|source| AgentError::State { path: path.clone(), source })
    }

    /// An index that no disk of this machine ever had, below `limit`.
    pub fn new_index(&mut self, limit: u8) -> Option<DiskIndex> {
        let given = self.disks.iter().map(|disk| disk.index.0 + 1).max().unwrap_or(0);
        let index = self.next_index.max(given);
        (index < limit).then(|| {
            self.next_index = index + 1;
            DiskIndex(index)
        })
    }

    /// The session's part of it.
    pub fn past(&self) -> AgentPast {
        AgentPast {
            generation: self.generation,
            incarnation: self.incarnation.map(redoubt_log::Incarnation),
            role_epoch: redoubt_log::RoleEpoch(self.role_epoch),
            acknowledged: redoubt_log::Sequence(self.acknowledged),
        }
    }

    /// Takes the session's part over.
    pub fn set_past(&mut self, past: AgentPast) {
        let continued = self.generation == past.generation;
        let known = if continued { self.acknowledged } else { 0 };
        self.generation = past.generation;
        self.incarnation = past.incarnation.map(|incarnation| incarnation.0);
        self.role_epoch = past.role_epoch.0;
        self.acknowledged = past.acknowledged.0.max(known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_given_once() {
        let mut state = State::first();
        let index = |state: &mut State| state.new_index(3).map(|index| index.0);
        assert_eq!(index(&mut state), Some(0));
        assert_eq!(index(&mut state), Some(1));
        assert_eq!(index(&mut state), Some(2));
        assert_eq!(index(&mut state), None);
    }

    #[test]
    fn the_first_version_is_read_and_its_indexes_are_not_given_again() {
        let directory = tempfile::tempdir().unwrap();
        let text = r#"{"version": 1, "generation": null, "incarnation": null, "role_epoch": 0,
            "acknowledged": 7, "skipped_runs": 0, "disks": [{"index": 4, "name": "sda",
            "device": "/dev/sda", "size": 1024, "logical_block_bytes": 512, "tracked": null}]}"#;
        fs::write(directory.path().join(FILE), text).unwrap();
        let mut state = State::load(directory.path()).unwrap();
        assert_eq!((state.acknowledged, state.pause), (7, PauseWord::default()));
        assert_eq!(state.new_index(63), Some(DiskIndex(5)));
        state.save(directory.path()).unwrap();
        let saved = fs::read_to_string(directory.path().join(FILE)).unwrap();
        assert!(saved.contains(r#""version": 3"#), "{saved}");
    }

    #[test]
    fn what_was_saved_is_loaded_and_a_newer_version_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut state = State::load(directory.path()).unwrap();
        state.acknowledged = 7;
        state.save(directory.path()).unwrap();
        assert_eq!(State::load(directory.path()).unwrap(), state);
        state.version = VERSION + 1;
        state.save(directory.path()).unwrap();
        let error = State::load(directory.path()).unwrap_err();
        assert!(matches!(error, AgentError::StateVersion { .. }), "{error}");
        // A later version has fields that this one does not know, and lacks others.
        let path = directory.path().join(FILE);
        fs::write(&path, r#"{"version": 7, "sides": ["a"]}"#).unwrap();
        let error = State::load(directory.path()).unwrap_err();
        assert!(matches!(error, AgentError::StateVersion { version: 7, .. }), "{error}");
        assert!(error.to_string().contains("install the newer redoubt"), "{error}");
        for damaged in [r#"{"version": 1}"#, r#"{"acknowledged": 1}"#, "{"] {
            fs::write(&path, damaged).unwrap();
            let error = State::load(directory.path()).unwrap_err();
            assert!(matches!(error, AgentError::StateContent { .. }), "{damaged}: {error}");
        }
    }
}
