//! Checks a retention file piece by piece and reads on behind damage. It holds two windows and one
//! index page, whatever the file claims.

use super::findings::{Findings, Harm, is_missing};
use super::machine::Place;
use super::window::Window;
use crate::store::error::{Result, StoreError};
use crate::store::manifest::{Manifest, RetentionSpan};
use crate::store::retention::{
    Entry, Form, HEADER_LENGTH, Header, PAGE_LENGTH, TOP_LENGTH, Top, decode_page, is_between,
};
use redoubt_control::inspection::RetentionInspection;
use redoubt_engine::storage::{BlockFile, Open};
use redoubt_log::{ByteRange, DiskIndex};
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes shown at once.
const WINDOW: usize = 1 << 20;

/// Checks the sealed file of an interval. `None` where it went while it was looked for, as it may.
pub(super) fn check(
    place: Place<'_>,
    findings: &mut Findings<'_>,
    span: RetentionSpan,
) -> Result<Option<RetentionInspection>> {
    let inside = place.layout.sealed(span.from, span.to);
    let path = place.path(&inside);
    let harm = Harm::Content { span, range: None };
    let mut inspection = RetentionInspection {
        path: path.clone(),
        from: span.from.0,
        to: span.to.0,
        disks: place.names(span.disks),
        pieces: 0,
        content_bytes: 0,
        stored_bytes: 0,
        unharmed: true,
    };
    let known = (findings.damage.len(), findings.newer.len());
    match place.storage.open(&inside, Open::ReadOnly).map_err(StoreError::from) {
        Ok(file) => {
            findings.begin_file(file.size());
            let mut check = Check { place, path: path.clone(), span, file, findings };
            let checked = check.all(&mut inspection);
            let ended = checked.or_else(|error| findings.take(&path, 0, error, harm.clone()));
            findings.end_file(&path, harm);
            ended?;
        }
        Err(error) if is_missing(&error) && !place.needs_retention(&span) => return Ok(None),
        Err(error) => findings.take(&path, 0, error, harm)?,
    }
    inspection.unharmed = known == (findings.damage.len(), findings.newer.len());
    Ok(Some(inspection))
}

struct Check<'a, 'f> {
    place: Place<'a>,
    path: PathBuf,
    span: RetentionSpan,
    file: Arc<dyn BlockFile>,
    findings: &'a mut Findings<'f>,
}

impl Check<'_, '_> {
    /// What ends in an error touches the whole file.
    fn all(&mut self, inspection: &mut RetentionInspection) -> Result<()> {
        // Pages stand between pieces: a window of their own leaves that of the pieces its way.
        let mut pieces = Window::new(self.file.clone(), WINDOW);
        let mut pages = Window::new(self.file.clone(), PAGE_LENGTH);
        let header = self.header(&mut pages)?;
        if self.place.manifest.is_none() {
            self.span.disks = header.span.disks;
            inspection.disks = self.place.names(self.span.disks);
        }
        self.top_checksum(&mut pieces, &header)?;
        let mut top = Window::new(self.file.clone(), PAGE_LENGTH);
        for index in 0..header.pages {
            let here = read_top(&mut top, &header, index)?;
            let next = if index + 1 < header.pages {
                Some(read_top(&mut top, &header, index + 1)?)
            } else {
                None
            };
            if next.is_some_and(|next| (next.disk, next.offset) <= (here.disk, here.offset)) {
                return Err(self.damaged(header.top_at, "the index is not in order"));
            }
            match self.page(&mut pages, &here, next.as_ref()) {
                Ok(entries) => {
                    for entry in &entries {
                        self.entry(&mut pieces, entry, inspection)?;
                    }
                }
                Err(error) => {
                    // Behind the last key of a disk the page may have gone on with the next disk.
                    let next = next.filter(|next| next.disk == here.disk);
                    let range = next.map(|next| ByteRange::between(here.offset, next.offset));
                    self.take(here.page_at, error, range.map(|range| (here.disk, range)))?;
                }
            }
        }
        Ok(())
    }

    fn header(&mut self, window: &mut Window) -> Result<Header> {
        let bytes = window.bytes(0, HEADER_LENGTH)?;
        let Some(bytes) = bytes.get(..HEADER_LENGTH) else {
            return Err(self.damaged(0, "shorter than its header"));
        };
        let header = Header::decode(&self.path, bytes)?;
        let span = header.span;
        // A disk whose replica was deleted is forgotten by the manifest, not by the file.
        let is_of_other_disks =
            |manifest: &Manifest| span.disks.0 & !manifest.deleted_disks().0 != self.span.disks.0;
        let is_other = header.machine != self.place.machine
            || (span.from, span.to) != (self.span.from, self.span.to)
            || self.place.manifest.is_some_and(is_of_other_disks);
        if is_other {
            return Err(self.damaged(0, "the header is another file's"));
        }
        if !header.fits(self.file.size()) {
            return Err(self.damaged(0, "the index lies beyond the end of the file"));
        }
        self.findings.progress.checked(HEADER_LENGTH as u64);
        Ok(header)
    }

    fn top_checksum(&mut self, window: &mut Window, header: &Header) -> Result<()> {
        let end = header.top_at + header.pages * TOP_LENGTH as u64;
        let mut at = header.top_at;
        let mut sum = 0;
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(WINDOW);
            let bytes = window.bytes(at, left.min(WINDOW))?;
            let bytes = &bytes[..bytes.len().min(left)];
            sum = crc32c::crc32c_append(sum, bytes);
            at += bytes.len() as u64;
        }
        self.findings.progress.checked(end - header.top_at);
        if sum == header.top_checksum {
            return Ok(());
        }
        Err(self.damaged(header.top_at, "the checksum of the index does not match"))
    }

    fn page(&mut self, window: &mut Window, top: &Top, next: Option<&Top>) -> Result<Vec<Entry>> {
        let bytes = window.bytes(top.page_at, PAGE_LENGTH)?;
        let Some(bytes) = bytes.get(..PAGE_LENGTH) else {
            return Err(self.damaged(top.page_at, "an index page lies beyond the end of the file"));
        };
        let entries = decode_page(bytes, top.page_at, self.span.to);
        self.findings.progress.checked(PAGE_LENGTH as u64);
        entries
            .filter(|entries| is_between(entries, top, next))
            .ok_or_else(|| self.damaged(top.page_at, "an index page does not match its checksum"))
    }

    fn entry(
        &mut self,
        window: &mut Window,
        entry: &Entry,
        inspection: &mut RetentionInspection,
    ) -> Result<()> {
        if let Err(error) = self.content(window, entry) {
            return self.take(entry.stored_at, error, Some((entry.disk, entry.range())));
        }
        inspection.pieces += 1;
        inspection.content_bytes += u64::from(entry.length);
        inspection.stored_bytes += u64::from(entry.stored_length);
        Ok(())
    }

    fn content(&mut self, window: &mut Window, entry: &Entry) -> Result<()> {
        if entry.form == Form::Zero {
            return Ok(());
        }
        let length = entry.stored_length as usize;
        let stored = window.bytes(entry.stored_at, length)?;
        let Some(stored) = stored.get(..length) else {
            return Err(self.damaged(entry.stored_at, "a piece lies beyond the end of the file"));
        };
        let what = if crc32c::crc32c(stored) != entry.checksum {
            Some("the checksum of a piece does not match")
        } else if entry.form == Form::Raw {
            (length != entry.length as usize).then_some("a raw piece has another length")
        } else {
            let content = redoubt_log::block::decompress(stored, entry.length as usize);
            content.is_err().then_some("a piece does not decompress")
        };
        self.findings.progress.checked(length as u64);
        what.map_or(Ok(()), |what| Err(self.damaged(entry.stored_at, what)))
    }

    fn take(
        &mut self,
        byte: u64,
        error: StoreError,
        range: Option<(DiskIndex, ByteRange)>,
    ) -> Result<()> {
        let harm = Harm::Content { span: self.span, range };
        self.findings.take(&self.path, byte, error, harm)
    }

    fn damaged(&self, byte: u64, what: &str) -> StoreError {
        StoreError::damaged_at(&self.path, byte, what)
    }
}

fn read_top(window: &mut Window, header: &Header, index: u64) -> Result<Top> {
    let at = header.top_at + index * TOP_LENGTH as u64;
    let bytes = window.bytes(at, TOP_LENGTH)?;
    let what = "the index names a disk that cannot be";
    // Its place lies within the file, as was checked.
    bytes
        .get(..TOP_LENGTH)
        .and_then(Top::decode)
        .ok_or_else(|| StoreError::damaged_at(std::path::Path::new(""), at, what))
}
