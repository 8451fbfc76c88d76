//! The names of machines and disks. A value of this type is well formed: it is checked where it
//! enters.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A machine's or a disk's name: `[a-z0-9][a-z0-9._-]{0,62}`, so that it is safe as a file name and
/// in a shell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Longest name in bytes: a DNS label's length, which host names keep to already.
pub const NAME_LIMIT: usize = 63;

/// What was given is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{given}` is not a name: use 1 to 63 of a-z, 0-9, dot, underscore and dash, \
     beginning with a letter or a digit"
)]
pub struct NameError {
    given: String,
}

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let good = bytes.first().is_some_and(|first| plain(*first))
            && bytes.len() <= NAME_LIMIT
            && bytes.iter().all(|byte| plain(*byte) || b"._-".contains(byte));
        match good {
            true => Ok(Self(text.to_owned())),
            // The given text may be hostile and long: an error shows only its beginning.
            false => Err(NameError { given: text.chars().take(NAME_LIMIT + 1).collect() }),
        }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_host_names_and_device_names() {
        for good in ["a", "0", "db-1.example.org", "nvme0n1p2", "a_b", &"x".repeat(NAME_LIMIT)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn refuses_what_is_unsafe_as_a_file_name() {
        let long = "x".repeat(NAME_LIMIT + 1);
        for bad in ["", ".", "..", "-a", "_a", "A", "a/b", "a b", "a\n", "ä", "a\0", &long] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }
}
