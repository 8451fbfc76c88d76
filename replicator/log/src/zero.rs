//! Whether bytes are all zero, at the speed of memory: such payload becomes a `Zero` record and
//! costs nothing.

/// Compared with at once: small enough to stay in the first cache.
static ZEROS: [u8; 4096] = [0; 4096];

/// Whether all bytes are zero; so it is for none.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn one_bit_anywhere_is_seen() {
        for length in [0, 1, 7, 8, 4095, 4096, 4097, 9000] {
            let mut bytes = vec![0_u8; length];
            assert!(is_zero(&bytes), "{length} zeros");
            for at in (0..length).step_by(61).chain(length.checked_sub(1)) {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "bit at {at} of {length}");
                bytes[at] = 0;
            }
        }
    }
}
