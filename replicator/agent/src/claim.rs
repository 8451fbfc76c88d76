//! What a start of the agent takes for itself before the machine has joined: its directories and
//! their lock. Where the start fails nothing of it stays; what was there before is never removed.

use crate::error::AgentError;
use crate::locks::{self, StateLock};
use redoubt_control::AgentOptions;
use redoubt_control::runtime::{MadeDirectories, create_private_directory, expect_own_directory};
use redoubt_control::status::Role;
use redoubt_transport::{AgentIdentity, EnrolRefusalCode, TransportError};
use std::path::{Path, PathBuf};

/// Directories and lock of one run.
pub(crate) struct Claim {
    state: PathBuf,
    made: Vec<MadeDirectories>,
    lock: Option<StateLock>,
    had_lock: bool,
    had_key: bool,
    /// No site has taken this machine in with the key that it has made.
    key_is_void: bool,
    is_kept: bool,
}

impl Claim {
    /// Takes them for an agent.
    pub fn take(options: &AgentOptions) -> Result<Self, AgentError> {
        let state = &options.state;
        expect_own(state)?;
        let mut claim = Self {
            state: state.clone(),
            made: Vec::new(),
            lock: None,
            had_lock: locks::state_lock(state).exists(),
            had_key: AgentIdentity::has_pending_key(state),
            key_is_void: false,
            is_kept: false,
        };
        claim.made.push(create_private_directory(state)?);
        claim.lock = Some(StateLock::take(state)?);
        claim.made.push(create_private_directory(options.runtime.path())?);
        Ok(claim)
    }

    /// What was taken stays from now on.
    pub fn keep(&mut self) {
        self.is_kept = true;
    }

    /// The start has failed for this reason.
    pub fn failed(&mut self, error: &AgentError) {
        self.key_is_void = match error {
            AgentError::Transport(TransportError::EnrolRefused { code, .. }) => {
                // The target may have stored this machine before it failed: then the key counts.
                *code != EnrolRefusalCode::Failed
            }
            AgentError::Transport(TransportError::ForeignSite { .. }) => true,
            _ => false,
        };
    }

    fn take_back(&mut self) {
        if self.key_is_void && !self.had_key {
            AgentIdentity::forget_pending_key(&self.state);
        }
        if let Some(lock) = self.lock.take().filter(|_| !self.had_lock) {
            lock.remove();
        }
        self.made.drain(..).rev().for_each(MadeDirectories::take_back);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.is_kept {
            self.take_back();
        }
    }
}

/// Whether the directory may be an agent's state.
pub(crate) fn expect_own(state: &Path) -> Result<(), AgentError> {
    let is_agents = |state: &Path| {
        let has = |name: &str| state.join(name).exists();
        has("state.json")
            || has("identity")
            || locks::state_lock(state).exists()
            || AgentIdentity::has_pending_key(state)
    };
    Ok(expect_own_directory(state, Role::Agent, is_agents)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use redoubt_control::RuntimeDirectory;
    use std::fs;

    fn options(base: &Path) -> AgentOptions {
        AgentOptions {
            state: base.join("lib/state"),
            token: None,
            disks: Vec::new(),
            runtime: RuntimeDirectory::new(base.join("run")),
            ring_bytes: 1 << 20,
            window_bytes: 4 << 20,
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<String> =
            entries.map(|entry| name(entry).into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_start_that_fails_leaves_everything_as_it_was() {
        let base = tempfile::tempdir().unwrap();
        let options = options(base.path());
        drop(Claim::take(&options).unwrap());
        assert!(names(base.path()).is_empty());
        // What was there stays, and what was made is gone.
        fs::create_dir_all(&options.state).unwrap();
        fs::write(options.state.join("state.json"), "{}").unwrap();
        drop(Claim::take(&options).unwrap());
        assert_eq!(
            (names(base.path()), names(&options.state)),
            (vec!["lib".to_owned()], vec!["state.json".to_owned()])
        );
        Claim::take(&options).unwrap().keep();
        assert_eq!(names(&options.state), ["agent.lock", "state.json"]);
        drop(Claim::take(&options).unwrap());
        assert_eq!(names(&options.state), ["agent.lock", "state.json"]);
    }

    #[test]
    fn a_key_stays_unless_it_is_void_and_of_this_start() {
        let base = tempfile::tempdir().unwrap();
        let options = options(base.path());
        let key = options.state.join("pending.key.pem");
        let refused = |code| {
            let (address, text) = ("t:1".to_owned(), "no".to_owned());
            AgentError::Transport(TransportError::EnrolRefused { address, code, text })
        };
        let fail = |error: &AgentError| {
            let mut claim = Claim::take(&options).unwrap();
            fs::write(&key, "a key").unwrap();
            claim.failed(error);
        };
        fail(&refused(EnrolRefusalCode::Expired));
        assert!(names(base.path()).is_empty(), "it was refused");
        fail(&refused(EnrolRefusalCode::Failed));
        assert_eq!(names(&options.state), ["pending.key.pem"], "the target may know it");
        fail(&refused(EnrolRefusalCode::Expired));
        assert_eq!(names(&options.state), ["pending.key.pem"], "an earlier start made it");
    }

    #[test]
    fn a_directory_of_something_else_is_refused_and_left_as_it_is() {
        let base = tempfile::tempdir().unwrap();
        let options = options(base.path());
        fs::create_dir_all(&options.state).unwrap();
        fs::write(options.state.join("address"), "of a target").unwrap();
        let error = Claim::take(&options).err().unwrap().to_string();
        assert!(error.contains("holds address, and nothing of a redoubt agent"), "{error}");
        assert_eq!(
            (names(&options.state), names(base.path())),
            (vec!["address".to_owned()], vec!["lib".to_owned()])
        );
    }

    #[test]
    fn a_claim_of_another_agent_is_refused_and_kept() {
        let base = tempfile::tempdir().unwrap();
        let options = options(base.path());
        let _first = Claim::take(&options).unwrap();
        let second = Claim::take(&options).err().unwrap();
        assert!(matches!(second, AgentError::StateLocked { .. }), "{second}");
        assert_eq!(names(&options.state), ["agent.lock"]);
        let third = Claim::take(&options).err().unwrap();
        assert!(matches!(third, AgentError::StateLocked { .. }), "{third}");
    }
}
