//! What a verify has come to, as commands and programs see it. It never calls equal what was not
//! compared.

use crate::exit::ExitStatus;
use redoubt_log::Name;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The result of a verify.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VerifyReport {
    /// Whose disks.
    #[cfg_attr(test, schemars(with = "crate::schemas::NameText"))]
    pub machine: Name,
    /// Whether every byte was compared (but for what the machine has given up) and none differed.
    pub equal: bool,
    /// Bytes compared, each at some recovery point; what differs is among them.
    pub compared_bytes: u64,
    /// Bytes not compared in any try: written all the time, or hindered. Nothing is known of them.
    pub not_compared_bytes: u64,
    /// Bytes left out: given up by the machine (discard) and not written since.
    pub discarded_bytes: u64,
    /// Bytes compared and different; they are read again.
    pub differing_bytes: u64,
    /// The differing ranges, at most a thousand.
    pub differences: Vec<DifferentRange>,
    /// How many differing ranges there are beyond those listed.
    pub unlisted_differences: u64,
    /// The last recovery point at which anything was compared.
    pub point: Option<Uuid>,
    /// What kept bytes from being compared, other than that they were written.
    pub hindrance: Option<String>,
}

/// A range of which the replica held something else than the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DifferentRange {
    /// Which disk.
    #[cfg_attr(test, schemars(with = "crate::schemas::NameText"))]
    pub disk: Name,
    /// Its first byte, counted from the disk's beginning.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

impl VerifyReport {
    /// How a command ends with it: proven equal, or different, or, where nothing differed and not
    /// all could be compared, not known in the tries it had.
    pub fn exit_status(&self) -> ExitStatus {
        match (self.differing_bytes, self.equal) {
            (1.., _) => ExitStatus::No,
            (0, true) => ExitStatus::Done,
            (0, false) => ExitStatus::TimedOut,
        }
    }

    /// The verdict in a word or two, for the audit log and for people.
    pub fn verdict(&self) -> &'static str {
        match self.exit_status() {
            ExitStatus::Done => "equal",
            ExitStatus::No => "differs",
            _ => "not all compared",
        }
    }

    /// What the audit log says of it.
    pub fn summary(&self) -> String {
        let Self { compared_bytes, not_compared_bytes, differing_bytes, .. } = self;
        format!(
            "{compared_bytes} bytes compared, {differing_bytes} differ, {not_compared_bytes} not \
             compared"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(differing_bytes: u64, not_compared_bytes: u64) -> VerifyReport {
        let disk = "sda".parse().unwrap();
        let range = DifferentRange { disk, offset: 4096, length: differing_bytes };
        VerifyReport {
            machine: "web-01".parse().unwrap(),
            equal: differing_bytes + not_compared_bytes == 0,
            compared_bytes: 1 << 20,
            not_compared_bytes,
            discarded_bytes: 0,
            differing_bytes,
            differences: if differing_bytes > 0 { vec![range] } else { Vec::new() },
            unlisted_differences: 0,
            point: None,
            hindrance: None,
        }
    }

    #[test]
    fn only_what_was_compared_whole_is_equal() {
        assert_eq!(report(0, 0).exit_status(), ExitStatus::Done);
        assert_eq!(report(4096, 0).exit_status(), ExitStatus::No);
        assert_eq!(report(4096, 4096).exit_status(), ExitStatus::No);
        assert_eq!(report(0, 4096).exit_status(), ExitStatus::TimedOut);
    }

    #[test]
    fn a_report_is_one_flat_object() {
        let json = concat!(
            r#"{"machine":"web-01","equal":false,"compared_bytes":1048576,"#,
            r#""not_compared_bytes":0,"discarded_bytes":0,"differing_bytes":4096,"#,
            r#""differences":[{"disk":"sda","offset":4096,"length":4096}],"#,
            r#""unlisted_differences":0,"point":null,"hindrance":null}"#
        );
        assert_eq!(serde_json::to_string(&report(4096, 0)).unwrap(), json);
        assert_eq!(serde_json::from_str::<VerifyReport>(json).unwrap(), report(4096, 0));
    }
}
