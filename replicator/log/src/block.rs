//! One lz4 block, for the files of crates above that keep content: lz4_flex stays in this crate.
//! Decompression trusts nothing: it never writes past the length that the caller allows.

use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};
use std::fmt;

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

/// Makes blocks one after the other; its table is kept between them.
#[derive(Default)]
pub struct BlockCompressor {
    table: CompressTable,
}

impl fmt::Debug for BlockCompressor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("BlockCompressor")
    }
}

impl BlockCompressor {
    /// Fills `room`, of [`room_for`] bytes at least, with the content as one lz4 block, and returns
    /// the block's length; `None` where that does not pay, and what is in the room then means
    /// nothing.
    pub fn compress(&mut self, content: &[u8], room: &mut [u8]) -> Option<usize> {
        if content.len() < COMPRESSED_LEAST {
            return None;
        }
        let length = compress_into_with_table(content, room, &mut self.table).ok()?;
        (length <= content.len() - content.len() / SAVING_LEAST).then_some(length)
    }
}

/// Bytes that the block of so many bytes of content may take before it is known whether it pays.
pub fn room_for(content_length: usize) -> usize {
    get_maximum_output_size(content_length)
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

    fn compress(content: &[u8]) -> Option<Vec<u8>> {
        let mut room = vec![0; room_for(content.len())];
        let length = BlockCompressor::default().compress(content, &mut room)?;
        room.truncate(length);
        Some(room)
    }

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
