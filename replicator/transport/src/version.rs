//! The versions that the files of an identity carry. What a later release has written is refused by
//! name: it is neither damaged nor to be guessed at.

use crate::error::{Result, TransportError};
use std::path::Path;

/// Checks the text of a version file against the one version that is known.
pub(crate) fn check(path: &Path, text: &str, known: u32) -> Result<()> {
    match text.trim().parse::<u32>() {
        Ok(version) if version == known => Ok(()),
        Ok(version) if version > known => Err(newer(path, version, known)),
        _ => {
            let what = format!("{:?} is no version", text.trim());
            Err(TransportError::Damaged { path: path.to_owned(), what })
        }
    }
}

/// The error that names a later version.
pub(crate) fn newer(path: &Path, version: u32, known: u32) -> TransportError {
    TransportError::NewerVersion { path: path.to_owned(), version, known }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_versions_are_not_damage() {
        let path = Path::new("identity/version");
        assert!(check(path, "1\n", 1).is_ok());
        let error = check(path, "2\n", 1).unwrap_err();
        assert!(matches!(error, TransportError::NewerVersion { version: 2, .. }), "{error}");
        assert!(error.to_string().contains("use a newer redoubt"), "{error}");
        for text in ["", "0", "-1", "x", "1 1"] {
            let error = check(path, text, 1).unwrap_err();
            assert!(matches!(error, TransportError::Damaged { .. }), "{text}: {error}");
        }
    }
}
