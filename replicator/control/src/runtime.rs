//! Where the sockets stand, and directories that nobody else may look into.

use crate::status::Role;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The directory of the roles' sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeDirectory(PathBuf);

impl RuntimeDirectory {
    /// Where it stands unless the operator says otherwise.
    pub const DEFAULT: &str = "/run/redoubt";
    /// The environment variable that says otherwise.
    pub const VARIABLE: &str = "REDOUBT_RUNTIME_DIR";

    /// A directory; it need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the role's socket stands: `agent.sock` or `target.sock`.
    pub fn socket(&self, role: Role) -> PathBuf {
        self.0.join(format!("{role}.sock"))
    }
}

/// A directory that cannot be made private.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It cannot be made or looked at.
    #[error("directory {path} cannot be made or used: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may write to it.
    #[error(
        "directory {path} may be written by other users (mode {mode:o}): run chmod go-w {path}"
    )]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Something else lies there.
    #[error(
        "directory {path} holds {entry}, and nothing of a redoubt {role}: give an empty directory, \
         or the one that this {role} has used before"
    )]
    Occupied {
        /// The directory.
        path: PathBuf,
        /// The first of what it holds.
        entry: PathBuf,
        /// Whose it should be.
        role: Role,
    },
    /// It belongs to another user.
    #[error("directory {path} belongs to user {owner}: give another one, or change its owner")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
}

/// Directories that were made; they can be taken back.
#[derive(Debug, Default)]
pub struct MadeDirectories(Vec<PathBuf>);

impl MadeDirectories {
    /// Removes those in which nothing lies.
    pub fn take_back(self) {
        for path in self.0 {
            // What holds something by now stays, and so does what lies above it.
            if fs::remove_dir(path).is_err() {
                return;
            }
        }
    }
}

/// Makes a directory of mode 0700, with what lies above it; one that exists must be ours and closed
/// to other users' writes. Returns what was made.
///
/// # Errors
/// It cannot be made, or is not private.
pub fn create_private_directory(path: &Path) -> Result<MadeDirectories, DirectoryError> {
    let failed = |source| DirectoryError::Io { path: path.to_owned(), source };
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let made = path.ancestors().take_while(is_missing).map(Path::to_owned).collect();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let found = fs::metadata(path).map_err(failed)?;
    let mode = found.mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(DirectoryError::Open { path: path.to_owned(), mode });
    }
    let owner = found.uid();
    if owner != nix::unistd::geteuid().as_raw() && owner != 0 {
        return Err(DirectoryError::Foreign { path: path.to_owned(), owner });
    }
    Ok(MadeDirectories(made))
}

/// Whether a role may keep its own in a directory: it is missing, or empty, or the role's already.
/// Nothing is changed.
///
/// # Errors
/// It holds something, and nothing that `is_own` knows; or it cannot be looked at.
pub fn expect_own_directory(
    path: &Path,
    role: Role,
    is_own: impl FnOnce(&Path) -> bool,
) -> Result<(), DirectoryError> {
    let failed = |source| DirectoryError::Io { path: path.to_owned(), source };
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    let names: io::Result<Vec<_>> = names.collect();
    // A new file system has a directory for what its repair finds.
    let foreign = names.map_err(failed)?.into_iter().filter(|name| name != "lost+found").min();
    match foreign {
        Some(entry) if !is_own(path) => {
            Err(DirectoryError::Occupied { path: path.to_owned(), entry: entry.into(), role })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_new_directory_is_private() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a/b");
        create_private_directory(&path).unwrap();
        create_private_directory(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_directory_open_to_others_is_refused() {
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = create_private_directory(base.path()).unwrap_err();
        assert!(error.to_string().contains("mode 777") && error.to_string().contains("chmod"));
    }

    #[test]
    fn what_was_made_is_taken_back_unless_it_holds_something() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a/b/c");
        create_private_directory(&path).unwrap().take_back();
        assert!(base.path().exists() && !base.path().join("a").exists());
        let made = create_private_directory(&path).unwrap();
        fs::write(base.path().join("a/file"), "").unwrap();
        made.take_back();
        assert!(base.path().join("a").exists() && !base.path().join("a/b").exists());
        create_private_directory(base.path()).unwrap().take_back();
        assert!(base.path().exists());
    }

    #[test]
    fn a_directory_with_something_else_in_it_is_refused_by_name() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path();
        let check = |is_own| expect_own_directory(path, Role::Agent, |_| is_own);
        check(false).unwrap();
        fs::create_dir(path.join("lost+found")).unwrap();
        check(false).unwrap();
        fs::write(path.join("thesis.tex"), "").unwrap();
        check(true).unwrap();
        let error = check(false).unwrap_err().to_string();
        assert!(error.contains("holds thesis.tex, and nothing of a redoubt agent"), "{error}");
        assert!(error.contains("give an empty directory"), "{error}");
        expect_own_directory(&path.join("none"), Role::Target, |_| false).unwrap();
    }

    #[test]
    fn sockets_are_named_by_role() {
        let directory = RuntimeDirectory::new("/run/redoubt");
        assert_eq!(directory.socket(Role::Target), Path::new("/run/redoubt/target.sock"));
    }
}
