//! Reads durable frames in order from a position on, across segments, for the apply. It holds one
//! window, not frames. Whatever it meets before the durable end that is not a whole entry is
//! damage, and is named.

use super::error::{Result, StoreError};
use super::segment_reader::SegmentReader;
use super::shared::{Shared, lock};
use redoubt_engine::storage::Open;
use redoubt_log::Sequence;
use redoubt_log::frame::Frame;
use redoubt_log::segment::{Chain, Entry, Scan};

/// The way along the journal.
pub(super) struct JournalReader<'a> {
    shared: &'a Shared,
    after: Sequence,
    place: Option<Place>,
}

struct Place {
    number: u64,
    after: Sequence,
    offset: u64,
    chain: Chain,
    reader: SegmentReader,
}

impl<'a> JournalReader<'a> {
    /// Reads what follows `after`.
    pub(super) fn new(shared: &'a Shared, after: Sequence) -> Self {
        Self { shared, after, place: None }
    }

    /// The next durable frame.
    pub(super) fn next(&mut self) -> Result<Option<Frame<'_>>> {
        if !self.find_place()? {
            return Ok(None);
        }
        let Some(place) = &mut self.place else { return Ok(None) };
        let entry = place.entry(self.shared)?;
        self.after = entry.header.last;
        Ok(Some(entry.frame))
    }

    /// Stands before the entry that follows, if there is one that is durable.
    fn find_place(&mut self) -> Result<bool> {
        let shared = self.shared;
        let here = self.place.take().filter(|place| {
            lock(&shared.index).end_of(place.number).is_some_and(|end| place.offset < end)
        });
        if here.is_some() {
            self.place = here;
            return Ok(true);
        }
        let Some((number, mark)) = lock(&shared.index).find(self.after) else {
            return Ok(false);
        };
        let file = shared.storage.open(&shared.layout.segment(number), Open::ReadOnly)?;
        let reader = SegmentReader::new(file);
        let mut place =
            Place { number, after: mark.after, offset: mark.offset, chain: mark.chain, reader };
        while place.after < self.after {
            place.entry(shared)?;
        }
        self.place = Some(place);
        Ok(true)
    }
}

impl Place {
    /// Takes the entry that stands here.
    fn entry(&mut self, shared: &Shared) -> Result<Entry<'_>> {
        let path = || shared.layout.segment(self.number);
        let end = lock(&shared.index).end_of(self.number).unwrap_or(self.offset);
        match self.reader.scan(self.offset, end, &self.chain)? {
            Scan::Entry(entry) => {
                self.offset += entry.length as u64;
                self.chain = entry.chain;
                self.after = entry.header.last;
                Ok(entry)
            }
            Scan::More { .. } => {
                let what = "a journal entry is longer than its segment";
                Err(StoreError::damaged_at(&path(), self.offset, what))
            }
            Scan::End(reason) => {
                Err(StoreError::damaged_at(&path(), self.offset, reason.to_string()))
            }
        }
    }
}
