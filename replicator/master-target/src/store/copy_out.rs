//! Copies a disk at a point out of the store, as it was, with holes where it reads as zero.
//! It reads through a view only, so that it stays exact while apply goes on.

use super::error::{Result, StoreError};
use super::view::View;
use redoubt_engine::buffer::AlignedBuffer;
use redoubt_engine::storage::{BlockFile, WriteRequest};
use redoubt_log::{ByteRange, is_zero};

/// Bytes copied at once: large enough for the disk, small in the budget.
const WINDOW: usize = 1 << 20;
/// The smallest hole left where a window holds zeros: a file system's block.
const HOLE: usize = 4096;

/// Copies all of the view into `to`, which has its size, whatever it held before, and syncs it.
/// `progress` hears how many bytes of the disk are behind; it stops the copy by returning false.
/// Returns whether it was finished.
pub fn copy_out(
    view: &View,
    to: &dyn BlockFile,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<bool> {
    if to.size() < view.size() {
        return Err(StoreError::CopyTooSmall { size: to.size(), needed: view.size() });
    }
    let mut window = AlignedBuffer::zeroed(WINDOW);
    let mut at = 0;
    while at < view.size() {
        let data = view.next_data(at)?.unwrap_or(ByteRange::new(view.size(), 0));
        if data.offset > at {
            to.zero(at, data.offset - at)?;
        }
        at = data.offset;
        while at < data.end() {
            let length = usize::try_from(data.end() - at).map_or(WINDOW, |left| left.min(WINDOW));
            view.read(at, &mut window[..length])?;
            write_sparse(to, at, &window[..length])?;
            at += length as u64;
            if !progress(at) {
                return Ok(false);
            }
        }
    }
    to.sync()?;
    progress(view.size());
    Ok(true)
}

/// Writes the runs that are not zeros and makes holes of the others.
fn write_sparse(to: &dyn BlockFile, offset: u64, bytes: &[u8]) -> Result<()> {
    let blocks: Vec<&[u8]> = bytes.chunks(HOLE).collect();
    let mut start = 0;
    for run in blocks.chunk_by(|left, right| is_zero(left) == is_zero(right)) {
        let length = run.iter().map(|block| block.len()).sum::<usize>();
        let at = offset + start as u64;
        if is_zero(run[0]) {
            to.zero(at, length as u64)?;
        } else {
            to.write(&[WriteRequest { offset: at, data: &bytes[start..start + length] }])?;
        }
        start += length;
    }
    Ok(())
}
