//! Walks a machine's journal as recovery would, and on behind damage where recovery stops: each
//! segment's own header says what its entries must follow. It changes nothing.

use super::behind;
use super::findings::{Findings, Found, Harm, LostRecords, is_missing};
use super::machine::Place;
use super::window::Window;
use crate::store::error::{Result, StoreError};
use crate::store::layout::parse_segment_name;
use redoubt_control::inspection::{JournalInspection, SegmentInspection, SegmentTail};
use redoubt_engine::storage::{BlockFile, Open};
use redoubt_log::frame::{DecodedFrame, FrameFlags};
use redoubt_log::segment::{
    self, Chain, ChainValue, ENTRY_ALIGNMENT, ENTRY_HEADER_SIZE, ENTRY_LIMIT, EndReason, Entry,
    EntryHeader, SEGMENT_HEADER_SIZE, Scan, SegmentError, SegmentHeader, entry_length, scan_entry,
};
use redoubt_log::{DiskSet, Sequence, is_zero};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes shown at once: two of the largest entries, so that reads stay large.
const WINDOW: usize = 2 * ENTRY_LIMIT;

/// What the journal holds.
pub(super) struct Journal {
    pub(super) inspection: JournalInspection,
    /// The last record that follows without a break.
    pub(super) durable: Sequence,
    /// Disks that the apply writes to that runs or was cut.
    pub(super) mid_apply: DiskSet,
}

/// Checks every segment.
pub(super) fn check(
    place: Place<'_>,
    findings: &mut Findings<'_>,
    names: &[String],
) -> Result<Journal> {
    let numbers: Vec<u64> = names.iter().filter_map(|name| parse_segment_name(name)).collect();
    let mut walk = Walk::new(place, findings);
    let mut segments = Vec::new();
    for (at, number) in numbers.iter().enumerate() {
        let is_last = at + 1 == numbers.len();
        walk.come_to(*number);
        segments.extend(walk.segment(*number, is_last)?);
    }
    walk.end();
    let inspection = JournalInspection {
        segments,
        waiting_bytes: walk.waiting_bytes,
        waiting_points: walk.waiting_points,
    };
    Ok(Journal { inspection, durable: walk.durable, mid_apply: walk.mid_apply })
}

/// The way along the journal.
struct Walk<'a, 'f> {
    place: Place<'a>,
    findings: &'a mut Findings<'f>,
    /// The segment before.
    before: Option<u64>,
    /// The last record read, and whether the next one must follow it.
    last: Option<Sequence>,
    must_follow: bool,
    /// The floor is behind: from here on a target reads as well.
    is_needed: bool,
    /// Losses whose end the next whole entry will tell.
    open_losses: Vec<usize>,
    /// The last record before the first loss that a target would meet.
    durable: Sequence,
    is_broken: bool,
    /// Positions that the manifest names and that must be the ends of entries.
    ends: Vec<Sequence>,
    waiting_bytes: u64,
    waiting_points: u64,
    mid_apply: DiskSet,
    payload: Vec<u8>,
}

impl<'a, 'f> Walk<'a, 'f> {
    fn new(place: Place<'a>, findings: &'a mut Findings<'f>) -> Self {
        let after = place.manifest.map_or(Sequence(0), |manifest| manifest.journal.after);
        let ends = place.manifest.map_or_else(Vec::new, |manifest| {
            let ends = [Some(manifest.applied), manifest.applying];
            ends.into_iter().flatten().filter(|end| *end > after).collect()
        });
        Self {
            place,
            findings,
            before: None,
            last: None,
            must_follow: false,
            // Without a manifest every segment may be needed.
            is_needed: place.manifest.is_none(),
            open_losses: Vec::new(),
            durable: after,
            is_broken: false,
            ends,
            waiting_bytes: 0,
            waiting_points: 0,
            mid_apply: DiskSet::default(),
            payload: Vec::new(),
        }
    }

    /// The next segment that is there has this number.
    fn come_to(&mut self, number: u64) {
        let expected = self.before.map(|before| before + 1);
        self.before = Some(number);
        if expected != Some(number) {
            self.must_follow = false;
        }
        let Some(manifest) = self.place.manifest else { return };
        let floor = manifest.journal.segment;
        let missing = if self.is_needed {
            expected.filter(|expected| *expected != number)
        } else if number >= floor {
            self.is_needed = true;
            (self.last, self.must_follow) = (Some(manifest.journal.after), true);
            (number > floor).then_some(floor)
        } else {
            None
        };
        if let Some(first) = missing {
            self.missing(first);
        }
    }

    fn missing(&mut self, number: u64) {
        if self.place.needs_segment(number) {
            self.lost(self.segment_path(number), 0, "the segment is missing".to_owned());
        } else {
            self.went();
        }
    }

    /// A target that runs has come further, and needs what is not there no more.
    fn went(&mut self) {
        self.must_follow = false;
        self.ends.clear();
    }

    /// Checks a segment. `None` where it went while it was looked for, as it may.
    fn segment(&mut self, number: u64, is_last: bool) -> Result<Option<SegmentInspection>> {
        let path = self.segment_path(number);
        let opened = self.place.storage.open(&self.place.layout.segment(number), Open::ReadOnly);
        let file = match opened.map_err(StoreError::from) {
            Ok(file) => file,
            Err(error) if is_missing(&error) && !self.place.needs_segment(number) => {
                self.went();
                return Ok(None);
            }
            Err(error) => {
                self.broken(&path, 0, error)?;
                return Ok(Some(self.unread(number, 0, SegmentTail::Damaged)));
            }
        };
        let known = (self.findings.damage.len(), self.findings.newer.len());
        self.findings.begin_file(file.size());
        let mut segment = self.unread(number, file.size(), SegmentTail::Whole);
        let checked = self.opened(&mut segment, &path, &file, is_last);
        let harm = Harm::Positions(self.lost_from_here());
        self.findings.end_file(&path, harm);
        checked?;
        segment.unharmed = known == (self.findings.damage.len(), self.findings.newer.len());
        Ok(Some(segment))
    }

    fn opened(
        &mut self,
        segment: &mut SegmentInspection,
        path: &Path,
        file: &Arc<dyn BlockFile>,
        is_last: bool,
    ) -> Result<()> {
        let mut window = Window::new(file.clone(), WINDOW);
        let header = match self.header(&mut window, segment.number, is_last) {
            Ok(Some(header)) => header,
            Ok(None) => {
                segment.tail = SegmentTail::Unused;
                return Ok(());
            }
            Err(error) => {
                segment.tail = SegmentTail::Damaged;
                return self.broken(path, 0, error);
            }
        };
        let mut chain = Chain::start(&header);
        let mut offset = SEGMENT_HEADER_SIZE as u64;
        segment.tail = loop {
            let stop = match scan(&mut window, offset, &chain) {
                Ok(Scan::Entry(entry)) => {
                    self.findings.progress.checked(entry.length as u64);
                    self.take(path, offset, &entry, segment);
                    offset += entry.length as u64;
                    chain = entry.chain;
                    segment.end_byte = offset;
                    continue;
                }
                Ok(Scan::More { .. }) if offset >= file.size() => EndReason::Empty,
                Ok(Scan::More { .. }) => EndReason::NotAnEntry,
                Ok(Scan::End(reason)) => reason,
                Err(error) => {
                    self.broken(path, offset, error)?;
                    break SegmentTail::Damaged;
                }
            };
            match self.judge(path, file, (offset, &chain, &stop), is_last) {
                Ok(Judged::Ends(tail)) => break tail,
                Ok(Judged::GoesOn(at, before)) => (offset, chain) = (at, before),
                Err(error) => {
                    self.broken(path, offset, error)?;
                    break SegmentTail::Damaged;
                }
            }
            // What was read from here on may have been written since.
            window = Window::new(file.clone(), WINDOW);
        };
        Ok(())
    }

    /// The segment's header; `None` where its creation was cut, or goes on.
    fn header(
        &self,
        window: &mut Window,
        number: u64,
        is_last: bool,
    ) -> Result<Option<SegmentHeader>> {
        let path = self.place.layout.segment(number);
        let mut block = [0; SEGMENT_HEADER_SIZE];
        let there = window.bytes(0, SEGMENT_HEADER_SIZE)?;
        if let Some(there) = there.get(..SEGMENT_HEADER_SIZE) {
            block.copy_from_slice(there);
        }
        match SegmentHeader::parse(&block) {
            Ok(header) if header.machine != self.place.machine || header.number != number => {
                Err(StoreError::damaged(&path, 0, "the segment is another's"))
            }
            Ok(header) => Ok(Some(header)),
            Err(SegmentError::Version { version }) => Err(newer(path, version)),
            Err(error) => {
                let first = window.bytes(SEGMENT_HEADER_SIZE as u64, ENTRY_ALIGNMENT)?;
                let is_unused = is_zero(&first[..first.len().min(ENTRY_ALIGNMENT)]);
                if is_last && is_unused {
                    return Ok(None);
                }
                Err(StoreError::damaged(&path, 0, error.to_string()))
            }
        }
    }

    /// What it means that no whole entry follows at `offset`.
    fn judge(
        &mut self,
        path: &Path,
        file: &Arc<dyn BlockFile>,
        (offset, chain, stop): (u64, &Chain, &EndReason),
        is_last: bool,
    ) -> Result<Judged> {
        let next = if is_last { None } else { self.start_of_next() };
        if next == Some(chain.value()) {
            return Ok(Judged::Ends(SegmentTail::Whole));
        }
        // Asked before the look: what is read after it was written by nobody who runs.
        let is_running = is_last && self.place.is_running();
        let mut window = Window::new(file.clone(), WINDOW);
        if let EndReason::Version { version } = stop
            && chain.before(window.bytes(offset, ENTRY_ALIGNMENT)?).is_some()
        {
            self.broken(path, offset, newer(path.to_path_buf(), *version))?;
            return Ok(Judged::Ends(SegmentTail::NewerVersion));
        }
        let behind = behind::look(&**file, &mut window, offset, chain, is_last)?;
        let is_damage = if is_last {
            self.ends_early()
                || behind.is_far
                || (!is_running && behind::was_written_whole(&mut window, offset, chain)?)
        } else {
            next.is_some() || behind.is_used
        };
        if !is_damage {
            return Ok(Judged::Ends(match (behind.is_used, is_running) {
                (false, _) => SegmentTail::Whole,
                (true, false) => SegmentTail::Torn,
                (true, true) => SegmentTail::Growing,
            }));
        }
        if is_running {
            // What is far behind may have been written while it was looked for, and so was this.
            let mut again = Window::new(file.clone(), WINDOW);
            if matches!(scan(&mut again, offset, chain)?, Scan::Entry(_)) {
                return Ok(Judged::GoesOn(offset, *chain));
            }
        }
        let what = match stop {
            EndReason::Empty => "entries that were written here are gone".to_owned(),
            EndReason::Version { version } => {
                format!("the entry's header is damaged (it says version {version})")
            }
            stop => stop.to_string(),
        };
        self.lost(path.to_path_buf(), offset, what);
        Ok(match behind.goes_on {
            Some((at, before)) => Judged::GoesOn(at, before),
            None => Judged::Ends(SegmentTail::Damaged),
        })
    }

    /// Takes in a whole entry.
    fn take(
        &mut self,
        path: &Path,
        offset: u64,
        entry: &Entry<'_>,
        segment: &mut SegmentInspection,
    ) {
        let header = *entry.frame.header();
        for index in self.open_losses.drain(..) {
            if let Some(Found { harm: Harm::Positions(lost), .. }) =
                self.findings.damage.get_mut(index)
            {
                lost.until = Some(header.previous);
            }
        }
        if let Some(last) = self.last.filter(|last| self.must_follow && header.previous != *last) {
            let what = format!("the entry follows {}, not {last}", header.previous);
            self.lost(path.to_path_buf(), offset, what);
        }
        segment.entries += 1;
        segment.first.get_or_insert(header.first.0);
        segment.last = Some(header.last.0);
        let mut payload = std::mem::take(&mut self.payload);
        let objection = match entry.frame.decode_body(&mut payload) {
            Ok(frame) => self.objection(&frame),
            Err(error) => Some(error.to_string()),
        };
        self.payload = payload;
        if let Some(what) = objection {
            self.is_broken |= self.is_needed;
            let after = Some(header.previous);
            let lost = LostRecords { after, until: Some(header.last), is_needed: self.is_needed };
            let harm = Harm::Positions(lost);
            self.findings.damaged(Found { path: path.to_path_buf(), byte: offset, what, harm });
        }
        (self.last, self.must_follow) = (Some(header.last), true);
        if self.is_needed && !self.is_broken {
            self.durable = header.last;
        }
        if let Some(manifest) = self.place.manifest
            && self.is_needed
            && header.last > manifest.applied
        {
            self.waiting_bytes += entry.length as u64;
            let is_marker = header.flags.contains(FrameFlags::ENDS_WITH_MARKER);
            self.waiting_points += u64::from(is_marker);
        }
        self.ends.retain(|end| *end != header.last);
    }

    /// What makes a whole entry impossible to apply; takes down what it writes to.
    fn objection(&mut self, frame: &DecodedFrame<'_>) -> Option<String> {
        let manifest = self.place.manifest.filter(|_| self.is_needed)?;
        let last = frame.header().last;
        let is_applying = manifest.applying.is_some_and(|to| last <= to);
        if last <= manifest.applied {
            return None;
        }
        for (disk, range) in frame.records().iter().filter_map(|placed| placed.record.extent()) {
            match manifest.disk(disk) {
                Some(known) if range.end() <= known.size => {}
                // A disk is in the manifest before its first record is in the journal: what the
                // manifest does not know may have been taken in since it was read.
                _ if self.place.is_running() => {}
                _ => return Some(format!("it writes {range} of disk {disk}, which is not there")),
            }
            if is_applying {
                self.mid_apply.insert(disk);
            }
        }
        None
    }

    /// Behind the last segment.
    fn end(&mut self) {
        let Some(manifest) = self.place.manifest else { return };
        if !self.is_needed && self.place.required() > manifest.journal.after {
            (self.last, self.is_needed) = (Some(manifest.journal.after), true);
            self.missing(manifest.journal.segment);
        }
        if manifest.applying.is_some() && self.is_broken {
            // What was lost may have been of any disk.
            manifest.disks.iter().for_each(|disk| self.mid_apply.insert(disk.index));
        }
        // Behind a loss it is not known whether an entry ended there.
        let missing = self.ends.first().filter(|_| !self.is_broken).copied();
        if let Some(end) = missing {
            let what = format!("no entry of the journal ends at {end}, as the manifest says");
            self.lost(self.place.path(&self.place.layout.manifest()), 0, what);
        }
    }

    /// What the next segment's first entry follows, where that can be told.
    fn start_of_next(&self) -> Option<ChainValue> {
        let number = self.before? + 1;
        let opened = self.place.storage.open(&self.place.layout.segment(number), Open::ReadOnly);
        let mut window = Window::new(opened.ok()?, SEGMENT_HEADER_SIZE);
        let header = self.header(&mut window, number, false).ok()??;
        Some(header.chain_start)
    }

    /// Takes down what an error says, and that what follows need not follow.
    fn broken(&mut self, path: &Path, byte: u64, error: StoreError) -> Result<()> {
        let harm = Harm::Positions(self.lost_from_here());
        let known = self.findings.damage.len();
        self.findings.take(path, byte, error, harm)?;
        self.lose(known);
        Ok(())
    }

    fn lost(&mut self, path: PathBuf, byte: u64, what: String) {
        let harm = Harm::Positions(self.lost_from_here());
        let known = self.findings.damage.len();
        self.findings.damaged(Found { path, byte, what, harm });
        self.lose(known);
    }

    fn lose(&mut self, known: usize) {
        self.open_losses.extend(known..self.findings.damage.len());
        self.is_broken |= self.is_needed;
        self.must_follow = false;
    }

    /// Whether the log ends before a position that the manifest says was applied.
    fn ends_early(&self) -> bool {
        let is_known = self.is_needed && self.must_follow;
        is_known && self.last.is_some_and(|last| last < self.place.required())
    }

    fn lost_from_here(&self) -> LostRecords {
        LostRecords { after: self.last, until: None, is_needed: self.is_needed }
    }

    fn segment_path(&self, number: u64) -> PathBuf {
        self.place.path(&self.place.layout.segment(number))
    }

    fn unread(&self, number: u64, size_bytes: u64, tail: SegmentTail) -> SegmentInspection {
        SegmentInspection {
            number,
            path: self.segment_path(number),
            size_bytes,
            entries: 0,
            first: None,
            last: None,
            end_byte: 0,
            needed: self.is_needed,
            tail,
            unharmed: false,
        }
    }
}

/// Whether a segment ends where no whole entry follows.
enum Judged {
    Ends(SegmentTail),
    /// Behind damage the chain goes on from here.
    GoesOn(u64, Chain),
}

fn newer(path: PathBuf, version: u16) -> StoreError {
    let (version, known) = (u32::from(version), u32::from(segment::VERSION));
    StoreError::NewerVersion { path, version, known }
}

/// What stands at `offset` after `chain`.
fn scan<'w>(window: &'w mut Window, offset: u64, chain: &Chain) -> Result<Scan<'w>> {
    let head = window.bytes(offset, ENTRY_ALIGNMENT)?;
    let length = head
        .first_chunk::<ENTRY_HEADER_SIZE>()
        .and_then(|head| EntryHeader::parse(head).ok())
        .map_or(ENTRY_ALIGNMENT, |header| entry_length(header.frame_length as usize));
    Ok(scan_entry(window.bytes(offset, length.min(ENTRY_LIMIT))?, chain))
}
