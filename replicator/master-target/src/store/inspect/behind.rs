//! What stands behind the last whole entry of a segment: nothing, what a cut left of entries that
//! nobody was promised, or entries that were written whole and are so no more.

use super::window::Window;
use crate::store::error::Result;
use crate::store::journal::GROUP_LIMIT;
use redoubt_engine::storage::BlockFile;
use redoubt_log::frame::FrameHeader;
use redoubt_log::is_zero;
use redoubt_log::segment::{Chain, ENTRY_ALIGNMENT, ENTRY_HEADER_SIZE, entry_length};

/// What every disk writes whole or not at all.
const SECTOR: usize = 512;

/// What a look behind the end has shown.
#[derive(Default)]
pub(super) struct Behind {
    /// Whether there is any byte but zeros.
    pub(super) is_used: bool,
    /// The first place from which the chain goes on, and what the entry there follows.
    pub(super) goes_on: Option<(u64, Chain)>,
    /// Whether a frame stands farther behind than entries may wait for their sync: then the end is
    /// damage, for what was there was durable.
    pub(super) is_far: bool,
}

/// Looks at the places of entries from `end` to the end of the file. Where the chain goes on is
/// enough, unless `wholly`.
pub(super) fn look(
    file: &dyn BlockFile,
    window: &mut Window,
    end: u64,
    chain: &Chain,
    wholly: bool,
) -> Result<Behind> {
    const STEP: u64 = ENTRY_ALIGNMENT as u64;
    let mut behind = Behind::default();
    let mut data_end = end;
    let mut at = end;
    while at < file.size() {
        if at >= data_end {
            let Some((start, length)) = file.next_data(at)? else { break };
            data_end = start.saturating_add(length);
            at = at.max(start - start % STEP);
        }
        let place = window.bytes(at, ENTRY_ALIGNMENT)?;
        let place = &place[..place.len().min(ENTRY_ALIGNMENT)];
        behind.is_used |= !is_zero(place);
        let frame = place.get(ENTRY_HEADER_SIZE..).unwrap_or_default();
        behind.is_far |= at >= end + GROUP_LIMIT && FrameHeader::parse(frame).is_ok();
        // At the end itself the chain does not go on from where it is: that was tried.
        let before = chain.before(place).filter(|before| at > end || before != chain);
        if let (None, Some(before)) = (&behind.goes_on, before) {
            behind.goes_on = Some((at, before));
            if !wholly {
                break;
            }
        }
        at += STEP;
    }
    Ok(behind)
}

/// Whether what stands at `end`, which is no whole entry that follows `chain`, cannot be what a cut
/// left. What has not been synced is zeros, as the segment was made and erased, or what was
/// written, sector by sector; so an entry all of whose sectors were written, and that is wrong all
/// the same, is damage. Asked only where no target runs.
pub(super) fn was_written_whole(window: &mut Window, end: u64, chain: &Chain) -> Result<bool> {
    let place = window.bytes(end, ENTRY_ALIGNMENT)?;
    let Some(first) = place.get(..SECTOR).filter(|first| !is_zero(first)) else {
        return Ok(false);
    };
    match chain.before(first) {
        // Both headers lie in the first sector.
        None => return Ok(true),
        // An entry of before the journal was full, say: it was overwritten in part.
        Some(before) if before != *chain => return Ok(false),
        Some(_) => {}
    }
    let Ok(frame) = FrameHeader::parse(&first[ENTRY_HEADER_SIZE..]) else { return Ok(true) };
    let needed = entry_length(frame.frame_length());
    let entry = window.bytes(end, needed)?;
    let used = ENTRY_HEADER_SIZE + frame.frame_length();
    Ok(entry.len() < needed || entry[..used].chunks(SECTOR).all(|sector| !is_zero(sector)))
}
