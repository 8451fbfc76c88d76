//! A machine's identity at its agent, on disk: its key, its certificate, and the site it joined.
//!
//! ```text
//! <directory>/           0700
//!   pending.key.pem      made before the first request, which may be repeated with it
//!   identity/            made once, whole, under another name, then renamed
//!     version  address  name  machine.{cert,key}.pem  authority.cert.pem  frame.key
//! ```

use crate::certificate;
use crate::enrol::EnrolAnswer;
use crate::error::{Result, TransportError};
use crate::{files, version};
use redoubt_log::frame::FrameKey;
use redoubt_log::{MachineId, Name};
use std::fs;
use std::path::Path;

/// Version of the directory. Version 1: the first.
const VERSION: u32 = 1;

const PENDING_KEY: &str = "pending.key.pem";

/// A machine that has joined a site.
#[derive(Clone)]
pub struct AgentIdentity {
    /// For ever.
    pub machine: MachineId,
    /// Its name at the site.
    pub name: Name,
    /// The target, host and port.
    pub address: String,
    /// Seals its frames.
    pub frame_key: FrameKey,
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) authority: String,
}

impl AgentIdentity {
    /// The identity in this directory, or `None` where the machine has not joined a site yet.
    pub fn load(directory: &Path) -> Result<Option<Self>> {
        let identity = directory.join("identity");
        if !identity.exists() {
            return Ok(None);
        }
        let damaged = |what: String| TransportError::Damaged { path: identity.clone(), what };
        let text = |name: &str| files::load_text(&identity.join(name));
        version::check(&identity.join("version"), &text("version")?, VERSION)?;
        let certificate = text("machine.cert.pem")?;
        let key = files::load(&identity.join("frame.key"))?
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .ok_or_else(|| damaged("the frame key is missing or cut".to_owned()))?;
        Ok(Some(Self {
            machine: certificate::machine_of(&certificate::der(&certificate)?)?,
            name: text("name")?
                .trim()
                .parse()
                .map_err(|error| damaged(format!("the machine's name: {error}")))?,
            address: text("address")?.trim().to_owned(),
            frame_key: FrameKey::new(key),
            certificate,
            key: text("machine.key.pem")?,
            authority: text("authority.cert.pem")?,
        }))
    }

    /// Whether an attempt to join has left its key.
    pub fn has_pending_key(directory: &Path) -> bool {
        directory.join(PENDING_KEY).exists()
    }

    /// Removes the key of an attempt to join: no site may have taken the machine in with it.
    pub fn forget_pending_key(directory: &Path) {
        // Where it stays it is used again: it is good for another attempt.
        let _ = fs::remove_file(directory.join(PENDING_KEY));
    }

    /// The key to join with: the one of an earlier attempt, or a new one.
    pub(crate) fn pending_key(directory: &Path) -> Result<String> {
        files::create_directory(directory)?;
        let path = directory.join(PENDING_KEY);
        if files::load(&path)?.is_none() {
            files::create(&path, certificate::new_machine_key()?.as_bytes())?;
        }
        files::load_text(&path)
    }

    /// Stores what the site answered.
    pub(crate) fn store(
        directory: &Path,
        key: &str,
        address: &str,
        answer: &EnrolAnswer,
    ) -> Result<()> {
        let beside = directory.join(".identity-new");
        if beside.exists() {
            fs::remove_dir_all(&beside).map_err(files::failed(&beside, "remove"))?;
        }
        files::create_directory(&beside)?;
        for (name, bytes) in [
            ("machine.key.pem", key.as_bytes()),
            ("machine.cert.pem", answer.certificate.as_bytes()),
            ("authority.cert.pem", answer.authority.as_bytes()),
            ("frame.key", &answer.frame_key),
            ("address", address.as_bytes()),
            ("name", answer.name.as_str().as_bytes()),
            ("version", VERSION.to_string().as_bytes()),
        ] {
            files::replace(&beside.join(name), bytes)?;
        }
        let identity = directory.join("identity");
        fs::rename(&beside, &identity).map_err(files::failed(&identity, "create"))?;
        files::sync_parent(&identity)?;
        let pending = directory.join(PENDING_KEY);
        fs::remove_file(&pending).map_err(files::failed(&pending, "remove"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_version_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        assert!(AgentIdentity::load(directory.path()).unwrap().is_none());
        fs::create_dir(directory.path().join("identity")).unwrap();
        fs::write(directory.path().join("identity/version"), "2").unwrap();
        let error = AgentIdentity::load(directory.path()).err().unwrap();
        assert!(matches!(error, TransportError::NewerVersion { version: 2, .. }), "{error}");
    }
}
