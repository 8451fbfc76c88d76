//! The token that invites a machine: where the target is, how it is recognised, and a secret that
//! is good once.

use crate::error::{Result, TransportError};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use redoubt_log::Name;
use redoubt_log::codec::{decode_bounded, encode_bounded};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What every token begins with; the number is the version of what follows.
const PREFIX: &str = "redoubt1.";

/// Bytes of the checksum at the end: mistyping goes unnoticed once in four billion times.
const CHECKSUM_BYTES: usize = 4;

/// Longest token that is looked at, in bytes before base64: an address and a name are far shorter.
const TOKEN_LIMIT: usize = 1024;

/// An invitation of one machine to a site. Its text is secret.
///
/// ```text
/// redoubt1.<base64url of: bincode of the fields | first 4 bytes of its BLAKE3>
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub(crate) address: String,
    pub(crate) fingerprint: [u8; 32],
    pub(crate) id: [u8; 16],
    pub(crate) secret: [u8; 16],
    pub(crate) machine: Option<Name>,
}

impl Token {
    /// Host and port of the target.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The name that the machine will have, if the inviter chose one.
    pub fn machine(&self) -> Option<&Name> {
        self.machine.as_ref()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = encode_bounded(self, TOKEN_LIMIT).map_err(|_| fmt::Error)?;
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(&checksum.as_bytes()[..CHECKSUM_BYTES]);
        write!(out, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Token({}, secret)", self.address)
    }
}

impl FromStr for Token {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self> {
        let mistyped = |what| TransportError::MistypedToken { what };
        let body = text
            .trim()
            .strip_prefix(PREFIX)
            .ok_or(mistyped("it does not begin with `redoubt1.`"))?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| mistyped("a character is wrong"))?;
        let (fields, checksum) = bytes
            .len()
            .checked_sub(CHECKSUM_BYTES)
            .map(|end| bytes.split_at(end))
            .ok_or(mistyped("it is too short"))?;
        if blake3::hash(fields).as_bytes()[..CHECKSUM_BYTES] != *checksum {
            return Err(mistyped("its checksum is wrong"));
        }
        decode_bounded(fields, TOKEN_LIMIT).map_err(|_| mistyped("it is of another release"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            address: "target.example.org:7700".into(),
            fingerprint: [1; 32],
            id: [2; 16],
            secret: [3; 16],
            machine: Some("db-1".parse().unwrap()),
        }
    }

    #[test]
    fn comes_back_from_its_text() {
        assert_eq!(token().to_string().parse::<Token>().unwrap(), token());
        assert_eq!(format!(" {}\n", token()).parse::<Token>().unwrap(), token());
    }

    #[test]
    fn every_mistyped_character_is_noticed() {
        let text = token().to_string();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            let error = changed.parse::<Token>().unwrap_err();
            assert!(error.to_string().contains("mistyped"), "{error}");
            assert!(text[..at].parse::<Token>().is_err(), "cut at {at}");
        }
    }

    #[test]
    fn does_not_show_its_secret() {
        assert!(!format!("{:?}", token()).contains('3'));
    }
}
