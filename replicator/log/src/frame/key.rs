//! The key that a machine and its master target share, and the comparison of what it proves.
//! It never shows the key, and never tells by its time how much of a forgery was right.

use std::fmt;
use subtle::ConstantTimeEq;

/// Seals a machine's frames; known to the machine and its master target only.
#[derive(Clone)]
pub struct FrameKey([u8; 32]);

impl FrameKey {
    /// The key of these bytes, which must come from a cryptographic source.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(super) fn hasher(&self) -> blake3::Hasher {
        blake3::Hasher::new_keyed(&self.0)
    }

    pub(super) fn matches(&self, computed: &[u8; 16], claimed: &[u8; 16]) -> bool {
        computed.ct_eq(claimed).into()
    }
}

impl fmt::Debug for FrameKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("FrameKey(secret)")
    }
}
