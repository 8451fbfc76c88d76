//! Where things lie below the store's root: the only place that makes a path. It touches no file.
//!
//! ```text
//! machines/<machine id>/
//!   manifest                          what the parts are
//!   journal/<segment number>          segments of frames
//!   disks/<disk index>                replica disks that are sparse files
//!   retention/<from>-<to>             what the interval (from, to] overwrote, sealed
//!   retention/<from>-<to>.unsealed    being written: worthless after a cut
//! ```

use redoubt_log::{DiskIndex, MachineId, Sequence};
use std::path::{Path, PathBuf};

/// The directory that holds all machines.
pub const MACHINES: &str = "machines";

const UNSEALED: &str = ".unsealed";

/// The paths of one machine.
#[derive(Clone, Debug)]
pub struct MachineLayout {
    root: PathBuf,
}

impl MachineLayout {
    /// Of this machine.
    pub fn new(machine: MachineId) -> Self {
        Self { root: Path::new(MACHINES).join(machine.to_string()) }
    }

    /// The machine's own directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the parts are.
    pub fn manifest(&self) -> PathBuf {
        self.root.join("manifest")
    }

    /// The journal's directory.
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// A segment; names sort as the numbers do.
    pub fn segment(&self, number: u64) -> PathBuf {
        self.journal().join(format!("{number:016}"))
    }

    /// The replica disks' directory.
    pub fn disks(&self) -> PathBuf {
        self.root.join("disks")
    }

    /// A replica disk that is a sparse file.
    pub fn disk(&self, disk: DiskIndex) -> PathBuf {
        self.disks().join(disk.to_string())
    }

    /// The retention files' directory.
    pub fn retention(&self) -> PathBuf {
        self.root.join("retention")
    }

    /// A sealed retention file.
    pub fn sealed(&self, from: Sequence, to: Sequence) -> PathBuf {
        self.retention().join(interval_name(from, to))
    }

    /// A retention file that is being written.
    pub fn unsealed(&self, from: Sequence, to: Sequence) -> PathBuf {
        self.retention().join(format!("{}{UNSEALED}", interval_name(from, to)))
    }
}

/// The segment number that a name in the journal's directory states.
pub fn parse_segment_name(name: &str) -> Option<u64> {
    (name.len() == 16).then(|| name.parse().ok()).flatten()
}

/// The interval that the name of a sealed retention file states.
pub fn parse_sealed_name(name: &str) -> Option<(Sequence, Sequence)> {
    let (from, to) = name.split_once('-')?;
    Some((Sequence(from.parse().ok()?), Sequence(to.parse().ok()?)))
}

fn interval_name(from: Sequence, to: Sequence) -> String {
    format!("{:020}-{:020}", from.0, to.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_foreign_ones_are_not() {
        let layout = MachineLayout::new(MachineId([7; 16]));
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(parse_segment_name(&name(layout.segment(12))), Some(12));
        assert_eq!(parse_segment_name("lost+found"), None);
        let (from, to) = (Sequence(3), Sequence(99));
        assert_eq!(parse_sealed_name(&name(layout.sealed(from, to))), Some((from, to)));
        assert_eq!(parse_sealed_name(&name(layout.unsealed(from, to))), None);
        assert!(name(layout.sealed(Sequence(9), to)) < name(layout.sealed(Sequence(10), to)));
    }
}
