//! One lz4 block, for the files of crates above that keep content: lz4_flex stays in this crate.
//! Decompression trusts nothing: it never writes past the length that the caller allows.

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

/// Compression pays from this part of the content on: less is not worth a reader's decompression.
const SAVING_LEAST: usize = 8;

/// Content below this is better kept as it is.
const COMPRESSED_LEAST: usize = 64;

/// The block does not decompress to the length that it should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lz4 block does not decompress to {length} bytes")]
pub struct BlockError {
    /// Bytes that it should have had.
    pub length: usize,
}

/// The content as one lz4 block, or `None` where that does not pay.
pub fn compress(content: &[u8]) -> Option<Vec<u8>> {
    if content.len() < COMPRESSED_LEAST {
        return None;
    }
    let mut block = vec![0; get_maximum_output_size(content.len())];
    let length = compress_into(content, &mut block).ok()?;
    block.truncate(length);
    (length <= content.len() - content.len() / SAVING_LEAST).then_some(block)
}

/// The content of a block, which must have exactly `length` bytes: a bound that the caller has
/// checked.
pub fn decompress(block: &[u8], length: usize) -> Result<Vec<u8>, BlockError> {
    let mut content = vec![0; length];
    match decompress_into(block, &mut content) {
        Ok(written) if written == length => Ok(content),
        _ => Err(BlockError { length }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_comes_back_and_other_lengths_are_refused() {
        let content: Vec<u8> = (0..4096_u32).flat_map(|n| (n / 64).to_le_bytes()).collect();
        let block = compress(&content).unwrap();
        assert!(block.len() < content.len() / 2);
        assert_eq!(decompress(&block, content.len()).unwrap(), content);
        assert_eq!(decompress(&block, content.len() - 1), Err(BlockError { length: 16383 }));
        assert_eq!(decompress(&block, content.len() + 1), Err(BlockError { length: 16385 }));
        assert_eq!(decompress(&block[1..], content.len()), Err(BlockError { length: 16384 }));
    }

    #[test]
    fn noise_and_crumbs_do_not_pay() {
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()[3]
        })
        .take(4096)
        .collect();
        assert_eq!(compress(&noise), None);
        assert_eq!(compress(&[0; COMPRESSED_LEAST - 1]), None);
    }
}
