//! What a command asks of a role over its socket. One request a connection; nothing here acts.

use crate::units::Span;
use redoubt_log::Name;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use uuid::Uuid;

/// A request to a role. An agent knows its own machine only; `machine` may be left out where there
/// is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Answered by [`Response::Status`](crate::Response::Status).
    Status,
    /// Take a recovery point; answered by [`Response::Marked`](crate::Response::Marked) once it is
    /// durable at the target, or by a failure of status `timed-out`.
    Mark {
        /// Of which machine.
        machine: Option<Name>,
        /// What the operator calls it.
        label: Option<String>,
        /// How long to wait.
        timeout: Span,
        /// Wait until the replica disks hold it, too.
        applied: bool,
    },
    /// Answered by [`Response::Points`](crate::Response::Points).
    Points {
        /// Of which machine.
        machine: Option<Name>,
    },
    /// Write a disk as it was at a point into a file on the role's machine; answered by progress,
    /// then [`Response::CopiedOut`](crate::Response::CopiedOut).
    CopyOut {
        /// Of which machine.
        machine: Option<Name>,
        /// Which disk.
        disk: Name,
        /// As of when.
        point: PointSelector,
        /// An absolute path.
        to: PathBuf,
        /// Overwrite what is there.
        force: bool,
    },
    /// Prove by hash that disks and replicas agree, and read again what differs; answered by
    /// progress every few seconds, then [`Response::Verified`](crate::Response::Verified). It is
    /// given up when the client goes away.
    Verify {
        /// Of which machine.
        machine: Option<Name>,
        /// Which disk; all of the machine where none is named.
        disk: Option<Name>,
    },
    /// Track, but send nothing until that is resumed; answered by
    /// [`Response::Told`](crate::Response::Told).
    Pause {
        /// Which machine.
        machine: Option<Name>,
    },
    /// End a pause, whichever side was told of it; answered by
    /// [`Response::Told`](crate::Response::Told).
    Resume {
        /// Which machine.
        machine: Option<Name>,
    },
    /// End the protection of a disk, or of all; answered by
    /// [`Response::Told`](crate::Response::Told).
    Unprotect {
        /// Of which machine.
        machine: Option<Name>,
        /// Which disk; null means all.
        disk: Option<Name>,
        /// Delete replica and points, too, and with all disks the machine itself. A target only.
        delete_replica: bool,
    },
    /// Keep a disk's replica on a block device of the target; answered by
    /// [`Response::Told`](crate::Response::Told).
    Place {
        /// Of which machine; it may be still to come.
        machine: Name,
        /// Which disk; it may be still to come.
        disk: Name,
        /// The device, by an absolute path.
        on: PathBuf,
    },
}

impl Request {
    /// Its name in the audit log.
    pub fn action(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Mark { .. } => "mark",
            Self::Points { .. } => "points",
            Self::CopyOut { .. } => "copy-out",
            Self::Verify { .. } => "verify",
            Self::Pause { .. } => "pause",
            Self::Resume { .. } => "resume",
            Self::Unprotect { delete_replica: false, .. } => "unprotect",
            Self::Unprotect { delete_replica: true, .. } => "delete-replica",
            Self::Place { .. } => "place",
        }
    }

    /// What it is done to, of this machine, for the audit log.
    pub fn object(&self, machine: &str) -> String {
        match self {
            Self::CopyOut { disk, to, .. } => format!("{machine}/{disk} to {}", to.display()),
            Self::Place { disk, on, .. } => format!("{machine}/{disk} on {}", on.display()),
            Self::Verify { disk: Some(disk), .. } | Self::Unprotect { disk: Some(disk), .. } => {
                format!("{machine}/{disk}")
            }
            _ => machine.to_owned(),
        }
    }

    /// Whether the audit log has a line of it before it is carried out: a cut in the middle must
    /// not hide what was begun, or who began it.
    pub fn is_noted_before(&self) -> bool {
        matches!(
            self,
            Self::Verify { .. } | Self::Pause { .. } | Self::Unprotect { .. } | Self::Place { .. }
        )
    }

    /// The machine that it names, where it names one.
    pub fn machine(&self) -> Option<&Name> {
        match self {
            Self::Status => None,
            Self::Mark { machine, .. }
            | Self::Points { machine }
            | Self::CopyOut { machine, .. }
            | Self::Verify { machine, .. }
            | Self::Pause { machine }
            | Self::Resume { machine }
            | Self::Unprotect { machine, .. } => machine.as_ref(),
            Self::Place { machine, .. } => Some(machine),
        }
    }
}

/// A recovery point as an operator names it: `latest` or an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PointSelector {
    /// The newest that is good for the disk.
    Latest,
    /// This one.
    Id(Uuid),
}

/// What is wrong with the name of a point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a recovery point: give `latest` or an id that `redoubt points` shows")]
pub struct PointSelectorError {
    text: String,
}

impl FromStr for PointSelector {
    type Err = PointSelectorError;

    fn from_str(text: &str) -> Result<Self, PointSelectorError> {
        match text {
            "latest" => Ok(Self::Latest),
            _ => {
                text.parse().map(Self::Id).map_err(|_| PointSelectorError { text: text.to_owned() })
            }
        }
    }
}

impl TryFrom<String> for PointSelector {
    type Error = PointSelectorError;

    fn try_from(text: String) -> Result<Self, PointSelectorError> {
        text.parse()
    }
}

impl From<PointSelector> for String {
    fn from(selector: PointSelector) -> Self {
        selector.to_string()
    }
}

impl fmt::Display for PointSelector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => out.write_str("latest"),
            Self::Id(id) => id.fmt(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_one_flat_object() {
        let request = Request::Mark {
            machine: None,
            label: Some("before upgrade".into()),
            timeout: "90s".parse().unwrap(),
            applied: false,
        };
        let json = concat!(
            r#"{"request":"mark","machine":null,"label":"before upgrade","#,
            r#""timeout":"90s","applied":false}"#
        );
        assert_eq!(serde_json::to_string(&request).unwrap(), json);
        assert_eq!(serde_json::from_str::<Request>(json).unwrap(), request);
        assert_eq!(serde_json::to_string(&Request::Status).unwrap(), r#"{"request":"status"}"#);
        let request = Request::Unprotect {
            machine: Some("web-01".parse().unwrap()),
            disk: None,
            delete_replica: true,
        };
        let json =
            r#"{"request":"unprotect","machine":"web-01","disk":null,"delete_replica":true}"#;
        assert_eq!(serde_json::to_string(&request).unwrap(), json);
        assert_eq!(serde_json::from_str::<Request>(json).unwrap(), request);
    }

    #[test]
    fn what_a_role_does_not_know_is_an_error() {
        for bad in [
            r#"{"request":"format-all"}"#,
            r#"{"request":"points","machine":null,"now":true}"#,
            r#"{"request":"points","machine":"../x"}"#,
        ] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_audit_log_names_an_order_and_what_it_is_done_to() {
        let request = |json: &str| serde_json::from_str::<Request>(json).unwrap();
        let named = |json: &str| {
            let request = request(json);
            (request.action(), request.object("web-01"), request.is_noted_before())
        };
        let unprotect = r#"{"request":"unprotect","machine":null,"disk":"sda","delete_replica":X}"#;
        let object = "web-01/sda".to_owned();
        let kept = named(&unprotect.replace('X', "false"));
        assert_eq!(kept, ("unprotect", object.clone(), true));
        let deleted = named(&unprotect.replace('X', "true"));
        assert_eq!(deleted, ("delete-replica", object, true));
        let place = r#"{"request":"place","machine":"db","disk":"sda","on":"/dev/x"}"#;
        assert_eq!(named(place), ("place", "web-01/sda on /dev/x".to_owned(), true));
        let pause = r#"{"request":"pause","machine":null}"#;
        assert_eq!(named(pause), ("pause", "web-01".to_owned(), true));
        let resume = r#"{"request":"resume","machine":null}"#;
        assert_eq!(named(resume), ("resume", "web-01".to_owned(), false));
    }

    #[test]
    fn points_are_named_by_id_or_latest() {
        let id = "6f2b8f0e-6d3f-4a9e-9c55-0d2c1f8a7b11";
        assert_eq!("latest".parse::<PointSelector>().unwrap(), PointSelector::Latest);
        assert_eq!(id.parse::<PointSelector>().unwrap().to_string(), id);
        assert!(
            "newest".parse::<PointSelector>().unwrap_err().to_string().contains("redoubt points")
        );
    }
}
