//! Invitations that are open, and those of a machine that is shut out: such a machine must not come
//! back by the token that let it in. A record that is damaged is nobody's, and hinders nobody else:
//! with it no machine is let in.

use super::{Site, TokenRecord, UsedRecord, load_record, seconds_now};
use crate::error::{Result, TransportError};
use crate::files;
use redoubt_log::{MachineId, Name};
use serde::de::DeserializeOwned;
use std::fs;
use std::path::{Path, PathBuf};

const USED: &str = "used";

impl Site {
    /// Whether an invitation is open for a machine of this name.
    pub fn is_invited(&self, machine: &Name) -> Result<bool> {
        for path in self.token_files()? {
            let is_open = path.extension().is_none() && !path.with_extension(USED).exists();
            if is_open
                && let Some(token) = whole_record::<TokenRecord>(&path)?
                && token.machine.as_ref() == Some(machine)
                && token.expires_seconds > seconds_now()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Forgets the tokens that a machine has used. That they were used stays known.
    pub(super) fn forget_tokens_of(&self, machine: MachineId) -> Result<()> {
        for path in self.token_files()? {
            let is_use = path.extension().is_some_and(|extension| extension == USED);
            if !is_use
                || whole_record::<UsedRecord>(&path)?.is_none_or(|used| used.machine != machine)
            {
                continue;
            }
            let token = path.with_extension("");
            match fs::remove_file(&token) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(files::failed(&token, "remove")(error));
                }
                _ => files::sync_parent(&token)?,
            }
        }
        Ok(())
    }

    fn token_files(&self) -> Result<Vec<PathBuf>> {
        let directory = self.directory.join("tokens");
        let entries = fs::read_dir(&directory).map_err(files::failed(&directory, "list"))?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        // What is written beside begins with a dot, and is nobody's yet.
        let is_hidden = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
        };
        let paths: std::io::Result<Vec<PathBuf>> = paths.collect();
        let paths = paths.map_err(files::failed(&directory, "list"))?;
        Ok(paths.into_iter().filter(|path| !is_hidden(path)).collect())
    }
}

/// The record, unless it is damaged or of a later release.
fn whole_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match load_record(path) {
        Err(error @ (TransportError::Damaged { .. } | TransportError::NewerVersion { .. })) => {
            tracing::warn!(%error, "a token's record is passed over");
            Ok(None)
        }
        loaded => loaded,
    }
}
