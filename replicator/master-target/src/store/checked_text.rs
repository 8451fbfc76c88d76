//! Small files of text that say what they are: a word, a version, a checksum, and a body. It knows
//! no body; what it hands out is what was written.
//!
//! ```text
//! <word> <version> <crc32c, 8 hex digits>\n
//! <body>\n
//! ```
//!
//! The checksum is of the body; in later versions of the version's digits and the body, for a
//! damaged digit may make a version that there was.

use super::error::{Result, StoreError};
use std::path::Path;

/// What a file is, and the newest version of it that this program knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) word: &'static str,
    pub(super) version: u32,
    /// The first version whose checksum covers its number as well.
    pub(super) sums_version_from: u32,
}

impl Kind {
    /// The file with this body.
    pub(super) fn encode(self, body: &str) -> Vec<u8> {
        let checksum = self.checksum(self.version, body);
        format!("{} {} {checksum:08x}\n{body}\n", self.word, self.version).into_bytes()
    }

    /// The body of a file of this kind, and where in the file it begins.
    pub(super) fn decode<'a>(self, path: &Path, bytes: &'a [u8]) -> Result<(&'a str, usize)> {
        let damaged = |position: usize, what: String| StoreError::damaged(path, position, what);
        let text = std::str::from_utf8(bytes)
            .map_err(|error| damaged(error.valid_up_to(), "not text".to_owned()))?;
        let (head, rest) =
            text.split_once('\n').ok_or_else(|| damaged(0, "no header line".to_owned()))?;
        let words: Vec<&str> = head.split(' ').collect();
        let [word, version, checksum] = words[..] else {
            return Err(damaged(0, format!("no header line of a {}", self.word)));
        };
        if word != self.word {
            return Err(damaged(0, format!("no {}", self.word)));
        }
        let version: u32 =
            version.parse().map_err(|_| damaged(0, "the version is not a number".to_owned()))?;
        if version == 0 {
            return Err(damaged(0, "there is no version 0".to_owned()));
        }
        if version > self.version {
            let known = self.version;
            return Err(StoreError::NewerVersion { path: path.to_owned(), version, known });
        }
        let body = rest.strip_suffix('\n').unwrap_or(rest);
        if checksum != format!("{:08x}", self.checksum(version, body)) {
            return Err(damaged(head.len() + 1, "the checksum does not match".to_owned()));
        }
        Ok((body, head.len() + 1))
    }

    fn checksum(self, version: u32, body: &str) -> u32 {
        let head =
            if version >= self.sums_version_from { version.to_string() } else { String::new() };
        crc32c::crc32c_append(crc32c::crc32c(head.as_bytes()), body.as_bytes())
    }
}
