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
    /// It belongs to another user.
    #[error("directory {path} belongs to user {owner}: give another one, or change its owner")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
}

/// Makes a directory of mode 0700, with what lies above it; one that exists must be ours and closed
/// to other users' writes.
///
/// # Errors
/// It cannot be made, or is not private.
pub fn create_private_directory(path: &Path) -> Result<(), DirectoryError> {
    let failed = |source| DirectoryError::Io { path: path.to_owned(), source };
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
    Ok(())
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
    fn sockets_are_named_by_role() {
        let directory = RuntimeDirectory::new("/run/redoubt");
        assert_eq!(directory.socket(Role::Target), Path::new("/run/redoubt/target.sock"));
    }
}
