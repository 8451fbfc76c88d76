//! What `--json` prints of orders that were carried out: an interface that other programs build on.
//! Fields are only ever added; nothing here acts.

use crate::exit::ExitStatus;
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
    /// The protected disks that it lacks, for they are absent or have another size.
    #[cfg_attr(test, schemars(with = "Vec<crate::schemas::NameText>"))]
    pub lacking: Vec<Name>,
    /// Whether no loss, gap or unsettled write touches it, and the order of writes was proven.
    pub proven: bool,
}

impl Marked {
    /// How a command ends with it: what was asked for is a point of every disk that holds every
    /// write.
    pub fn exit_status(&self) -> ExitStatus {
        match self.shortcoming() {
            None => ExitStatus::Done,
            Some(_) => ExitStatus::No,
        }
    }

    /// Why it is not what was asked for, and what to do about that.
    pub fn shortcoming(&self) -> Option<String> {
        let names: Vec<&str> = self.lacking.iter().map(Name::as_str).collect();
        let lacks = (!names.is_empty()).then(|| {
            let names = names.join(", ");
            format!("lacks {names}, which cannot be protected now (`redoubt status` says why)")
        });
        let unproven = (!self.proven).then(|| {
            let why = "is not proven: the tracker cannot prove the order of writes on this kernel";
            format!("{why} (`redoubt agent --check` says more)")
        });
        let parts: Vec<String> = lacks.into_iter().chain(unproven).collect();
        (!parts.is_empty()).then(|| format!("the point {}", parts.join(", and ")))
    }
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
