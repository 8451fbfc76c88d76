//! What a role answers: any number of `progress`, then one response that ends the conversation.

use crate::exit::ExitStatus;
use crate::results::Marked;
use crate::status::{PointStatus, RoleStatus};
use crate::verify::VerifyReport;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One line of a role's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case")]
pub enum Response {
    /// The answer to a status request.
    Status {
        /// What the role protects.
        status: RoleStatus,
    },
    /// The recovery point that was taken.
    Marked {
        /// What it is good for.
        marked: Marked,
    },
    /// All recovery points of a machine, oldest first.
    Points {
        /// The points.
        points: Vec<PointStatus>,
    },
    /// A disk was copied out.
    CopiedOut {
        /// The point that it holds.
        point: Uuid,
        /// Its size.
        bytes: u64,
    },
    /// Disks and replicas were compared.
    Verified {
        /// What came of it.
        report: Box<VerifyReport>,
    },
    /// How far a long request has come; also says that the role is alive.
    Progress {
        /// Done so far.
        done_bytes: u64,
        /// Of so many.
        total_bytes: u64,
    },
    /// The request was carried out and there is nothing to tell.
    Done,
    /// The request was carried out.
    Told {
        /// What that means now, for people.
        message: String,
    },
    /// It was not carried out.
    Failed {
        /// How the command must end.
        status: ExitStatus,
        /// Why, and what the operator can do.
        message: String,
    },
}

impl Response {
    /// A failure of class 1.
    pub fn failed(why: impl ToString) -> Self {
        Self::Failed { status: ExitStatus::Failed, message: why.to_string() }
    }

    /// Whether nothing follows.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Progress { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_one_flat_object() {
        let failed =
            Response::Failed { status: ExitStatus::TimedOut, message: "not durable yet".into() };
        let json = r#"{"response":"failed","status":"timed-out","message":"not durable yet"}"#;
        assert_eq!(serde_json::to_string(&failed).unwrap(), json);
        assert_eq!(serde_json::from_str::<Response>(json).unwrap(), failed);
        assert_eq!(serde_json::to_string(&Response::Done).unwrap(), r#"{"response":"done"}"#);
    }

    #[test]
    fn only_progress_is_followed() {
        assert!(!Response::Progress { done_bytes: 1, total_bytes: 2 }.is_last());
        assert!(Response::Done.is_last() && Response::failed("no").is_last());
    }
}
