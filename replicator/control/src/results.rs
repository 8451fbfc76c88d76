//! What `--json` prints of orders that were carried out: an interface that other programs build on.
//! Fields are only ever added; nothing here acts.

use redoubt_log::Name;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use uuid::Uuid;

/// A recovery point was taken: `redoubt mark`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Marked {
    /// Its id.
    pub point: Uuid,
}

/// A disk was written to a file as it was at a point: `redoubt copy-out`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CopiedOut {
    /// The disk's name within the machine.
    #[cfg_attr(test, schemars(with = "crate::schemas::NameText"))]
    pub disk: Name,
    /// The recovery point that the file holds, by its id also where `latest` was asked for.
    pub point: Uuid,
    /// The file's size in bytes.
    pub bytes: u64,
    /// The file, by an absolute path on the role's machine.
    pub to: PathBuf,
}

/// An order was carried out: `redoubt pause`, `resume`, `unprotect` and `place`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Told {
    /// What that means now, for people: its words are no interface.
    pub message: String,
}

/// A machine was invited: `redoubt invite`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Invited {
    /// The token with which one machine joins once: a secret.
    pub token: String,
}
