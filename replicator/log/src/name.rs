//! Names of machines and disks: what an operator types and a path may hold. A value of this type
//! is well formed: it is checked where it enters, and never longer or wilder than that.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A name of a machine or disk: `[a-z0-9][a-z0-9._-]{0,62}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// What is wrong with a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It does not have the form.
    #[error(
        "name {name:?} is not allowed: use 1 to {limit} of a-z, 0-9, '.', '_' and '-', \
         beginning with a letter or digit",
        limit = Name::LENGTH_LIMIT
    )]
    Form {
        /// The beginning of what was given.
        name: String,
    },
    /// No name can be made of what the system calls it.
    #[error("no name can be made of {text:?}: give one yourself")]
    Underivable {
        /// What the system calls it.
        text: String,
    },
}

impl Name {
    /// Characters of a name: it must fit a DNS label and a file name.
    pub const LENGTH_LIMIT: usize = 63;

    /// The name nearest to what a system calls a host or device (`/dev/sdB`, `Web 01`): lower case,
    /// the last path component, anything not allowed as `-`.
    ///
    /// # Errors
    /// Nothing allowed is left.
    pub fn derive(text: &str) -> Result<Self, NameError> {
        let last = text.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let mapped: String = last
            .chars()
            .map(|c| c.to_ascii_lowercase())
            .map(|c| if tail(c) { c } else { '-' })
            .collect();
        let kept: String =
            mapped.trim_start_matches(|c| !head(c)).chars().take(Self::LENGTH_LIMIT).collect();
        kept.trim_end_matches('-')
            .parse()
            .map_err(|_| NameError::Underivable { text: text.to_owned() })
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn head(character: char) -> bool {
    character.is_ascii_lowercase() || character.is_ascii_digit()
}

fn tail(character: char) -> bool {
    head(character) || matches!(character, '.' | '_' | '-')
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let good =
            text.len() <= Self::LENGTH_LIMIT && text.starts_with(head) && text.chars().all(tail);
        match good {
            true => Ok(Self(text.to_owned())),
            // The given text may be hostile and long: an error shows only its beginning.
            false => {
                Err(NameError::Form { name: text.chars().take(Self::LENGTH_LIMIT + 1).collect() })
            }
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
        out.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode_bounded, encode_bounded};
    use proptest::prelude::*;

    #[test]
    fn the_form_is_exact() {
        for good in ["a", "0", "web-01.example_x", "nvme0n1p2", &"a".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        let long = "a".repeat(64);
        for bad in ["", "-a", ".", "..", "_a", "A", "a b", "a/b", "a\n", "a\0", "ä", &long] {
            assert!(bad.parse::<Name>().unwrap_err().to_string().contains("use 1 to 63"), "{bad}");
        }
    }

    #[test]
    fn an_error_shows_the_beginning_of_a_hostile_name_only() {
        let error = "x".repeat(1 << 20).parse::<Name>().unwrap_err().to_string();
        assert!(error.len() < 300, "{} bytes", error.len());
    }

    #[test]
    fn what_is_decoded_is_checked_too() {
        let coded = |text: &str| encode_bounded(&text, 100).unwrap();
        assert!(decode_bounded::<Name>(&coded("../etc"), 100).is_err());
        assert_eq!(decode_bounded::<Name>(&coded("sda"), 100).unwrap().as_str(), "sda");
    }

    #[test]
    fn devices_and_hosts_give_names() {
        for (text, name) in [
            ("/dev/sdB", "sdb"),
            ("/dev/mapper/vg-root", "vg-root"),
            ("/dev/disk/by-id/wwn-0x5000c500a", "wwn-0x5000c500a"),
            ("Web 01", "web-01"),
            ("__x__", "x__"),
            ("db.example.org", "db.example.org"),
        ] {
            assert_eq!(Name::derive(text).unwrap().as_str(), name);
        }
        assert!(Name::derive("/dev/äö").unwrap_err().to_string().contains("give one"));
    }

    proptest! {
        #[test]
        fn what_is_derived_is_a_name(text in "\\PC{0,90}") {
            if let Ok(name) = Name::derive(&text) {
                prop_assert_eq!(name.as_str().parse::<Name>().unwrap(), name);
            }
        }
    }
}
