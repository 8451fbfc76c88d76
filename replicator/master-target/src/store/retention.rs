//! Retention files: what one interval overwrote, sorted by disk and offset, with an index that is
//! searched on disk. A reader trusts nothing that a checksum does not cover; a file without its
//! header was never finished.
//!
//! ```text
//! 0      header (4096): where the top of the index is; written last, before the sync
//! 4096   pieces of old content, each of at most 64 KiB, stored raw or as lz4; zeros take no bytes
//!        index pages (4096), each behind the pieces that it lists
//!        the top of the index: for each page its first key and its place
//! ```
//!
//! Memory is bounded whatever the interval's size: one page of entries, one buffer, and 24 bytes
//! for each page.

use super::error::{Result, StoreError};
use super::layout::MachineLayout;
use super::manifest::RetentionSpan;
use super::shared::create_anew;
use super::window::{Appender, Window};
use redoubt_engine::buffer::AlignedBuffer;
use redoubt_engine::storage::{BlockFile, Open, Storage, WriteRequest};
use redoubt_log::block::{BlockCompressor, decompress, room_for};
use redoubt_log::{ByteRange, DiskIndex, DiskSet, MachineId, Sequence};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The most bytes of one piece: what a reader of one block must decompress at most.
pub(super) const PIECE_LIMIT: u64 = 64 << 10;

pub(super) const HEADER_LENGTH: usize = 4096;
pub(super) const PAGE_LENGTH: usize = 4096;
const PAGE_HEAD_LENGTH: usize = 32;
const ENTRY_LENGTH: usize = 32;
pub(super) const TOP_LENGTH: usize = 24;
/// The most pages of an index: 128 TiB of old content in one interval, so that a reader's memory
/// is bounded whatever a header claims.
const PAGES_LIMIT: u64 = 1 << 24;
const MAGIC: &[u8; 8] = b"RDBTRETN";
const PAGE_MAGIC: &[u8; 4] = b"RPAG";
const VERSION: u32 = 1;
/// The header's bytes that mean something; its checksum stands behind them.
const HEADER_USED: usize = 80;
const ENTRIES_PER_PAGE: usize = (PAGE_LENGTH - PAGE_HEAD_LENGTH) / ENTRY_LENGTH;
/// Bytes collected before they are written: large enough for the disk, small in the budget.
const BUFFER_LIMIT: usize = 1 << 20;
/// What the longest piece needs before it is known whether it compresses, and a block that waits.
const BUFFER_LEAST: usize = 80 << 10;
/// Bytes of pieces read at once, where several stand one behind the other: as above.
const READ_AHEAD: usize = 1 << 20;
/// The longest run of zeros in one entry, so that its length fits.
const ZERO_LIMIT: u64 = 1 << 30;

const _: () = assert!(ENTRIES_PER_PAGE == 127);

/// How a piece is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Zero = 0,
    Raw = 1,
    Lz4 = 2,
}

/// What a piece holds.
pub(super) enum Content<'a> {
    Zeros,
    Bytes(&'a [u8]),
}

/// One piece of old content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) disk: DiskIndex,
    pub(super) form: Form,
    pub(super) checksum: u32,
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) stored_length: u32,
    pub(super) stored_at: u64,
}

impl Entry {
    /// What of the disk it holds.
    pub(super) fn range(&self) -> ByteRange {
        ByteRange::new(self.offset, u64::from(self.length))
    }

    /// Where in the file its stored bytes end.
    fn stored_end(&self) -> u64 {
        self.stored_at.saturating_add(u64::from(self.stored_length))
    }

    /// Whether it ends before a key begins: what readers rely on to find all and meet none twice.
    fn is_before(&self, (disk, offset): (DiskIndex, u64)) -> bool {
        (self.disk, self.range().end()) <= (disk, offset)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend([self.disk.0, self.form as u8, 0, 0]);
        out.extend(self.checksum.to_le_bytes());
        out.extend(self.offset.to_le_bytes());
        out.extend(self.length.to_le_bytes());
        out.extend(self.stored_length.to_le_bytes());
        out.extend(self.stored_at.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let form = match bytes[1] {
            0 => Form::Zero,
            1 => Form::Raw,
            2 => Form::Lz4,
            _ => return None,
        };
        let length = u32_at(bytes, 16);
        let entry = Self {
            disk: DiskIndex(bytes[0]),
            form,
            checksum: u32_at(bytes, 4),
            offset: u64_at(bytes, 8),
            length,
            stored_length: u32_at(bytes, 20),
            stored_at: u64_at(bytes, 24),
        };
        let limit = if form == Form::Zero { ZERO_LIMIT } else { PIECE_LIMIT };
        let sound = entry.disk.0 < DiskIndex::LIMIT
            && u64::from(length) <= limit
            && u64::from(entry.stored_length) <= PIECE_LIMIT
            && ByteRange::checked(entry.offset, u64::from(length)).is_some();
        sound.then_some(entry)
    }
}

/// A page's first key and place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Top {
    pub(super) disk: DiskIndex,
    pub(super) offset: u64,
    pub(super) page_at: u64,
}

impl Top {
    fn key(&self) -> (DiskIndex, u64) {
        (self.disk, self.offset)
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let disk = u8::try_from(u64_at(bytes, 0)).ok().filter(|disk| *disk < DiskIndex::LIMIT)?;
        let disk = DiskIndex(disk);
        Some(Self { disk, offset: u64_at(bytes, 8), page_at: u64_at(bytes, 16) })
    }
}

/// Writes a retention file, piece by piece in order.
pub(super) struct RetentionWriter {
    file: Arc<dyn BlockFile>,
    machine: MachineId,
    from: Sequence,
    to: Sequence,
    disks: DiskSet,
    out: Appender,
    compressor: BlockCompressor,
    page: Vec<Entry>,
    top: Vec<Top>,
    last: Option<(DiskIndex, u64)>,
}

impl RetentionWriter {
    /// Creates the unsealed file for at most `bytes` of content in `ranges` ranges.
    pub(super) fn create(
        storage: &dyn Storage,
        layout: &MachineLayout,
        machine: MachineId,
        interval: (Sequence, Sequence),
        (bytes, ranges): (u64, u64),
    ) -> Result<Self> {
        let (from, to) = interval;
        // Files have a fixed size: this one is sparse and as large as the content could become at
        // worst.
        let entries = ranges.saturating_mul(2).saturating_add(bytes / PIECE_LIMIT + 2);
        let pages = entries / ENTRIES_PER_PAGE as u64 + 1;
        let index = pages.saturating_mul((PAGE_LENGTH + TOP_LENGTH) as u64);
        let size = bytes.saturating_add(HEADER_LENGTH as u64).saturating_add(index);
        let size = size.div_ceil(PAGE_LENGTH as u64).saturating_mul(PAGE_LENGTH as u64);
        let file = create_anew(storage, &layout.unsealed(from, to), Open::CreateSparse(size))?;
        let buffer = usize_of(size).clamp(BUFFER_LEAST, BUFFER_LIMIT);
        Ok(Self {
            out: Appender::new(file.clone(), HEADER_LENGTH as u64, buffer),
            file,
            machine,
            from,
            to,
            disks: DiskSet::default(),
            compressor: BlockCompressor::default(),
            page: Vec::with_capacity(ENTRIES_PER_PAGE),
            top: Vec::new(),
            last: None,
        })
    }

    /// Adds a run of zeros.
    pub(super) fn push_zeros(&mut self, disk: DiskIndex, range: ByteRange) -> Result<()> {
        let mut offset = range.offset;
        while offset < range.end() {
            let length = (range.end() - offset).min(ZERO_LIMIT);
            self.push_entry(Entry {
                disk,
                form: Form::Zero,
                checksum: 0,
                offset,
                length: u32_of(length),
                stored_length: 0,
                stored_at: 0,
            })?;
            offset += length;
        }
        Ok(())
    }

    /// Adds content of at most [`PIECE_LIMIT`] bytes.
    pub(super) fn push(&mut self, disk: DiskIndex, offset: u64, content: &[u8]) -> Result<()> {
        assert!(content.len() as u64 <= PIECE_LIMIT, "a piece is at most {PIECE_LIMIT} bytes");
        if content.iter().all(|byte| *byte == 0) {
            return self.push_zeros(disk, ByteRange::new(offset, content.len() as u64));
        }
        let stored_at = self.out.position();
        let room = self.out.room(room_for(content.len()))?;
        let (form, stored_length) = match self.compressor.compress(content, room) {
            Some(length) => (Form::Lz4, length),
            None => {
                room[..content.len()].copy_from_slice(content);
                (Form::Raw, content.len())
            }
        };
        let checksum = crc32c::crc32c(&room[..stored_length]);
        self.out.took(stored_length);
        self.push_entry(Entry {
            disk,
            form,
            checksum,
            offset,
            length: u32_of(content.len() as u64),
            stored_length: u32_of(stored_length as u64),
            stored_at,
        })
    }

    /// Writes the index and the header and syncs; the file still has its unsealed name.
    pub(super) fn finish(mut self) -> Result<RetentionSpan> {
        self.flush_page()?;
        let top_at = self.out.position();
        let mut top = Vec::with_capacity(self.top.len() * TOP_LENGTH);
        for page in &self.top {
            top.extend(u64::from(page.disk.0).to_le_bytes());
            top.extend(page.offset.to_le_bytes());
            top.extend(page.page_at.to_le_bytes());
        }
        let header = Header {
            machine: self.machine,
            span: RetentionSpan { from: self.from, to: self.to, disks: self.disks },
            pages: self.top.len() as u64,
            top_at,
            top_checksum: crc32c::crc32c(&top),
        };
        self.out.put(&top)?;
        self.out.finish()?;
        self.file.write(&[WriteRequest { offset: 0, data: &header.encode() }])?;
        self.file.sync()?;
        Ok(header.span)
    }

    fn push_entry(&mut self, entry: Entry) -> Result<()> {
        let key = (entry.disk, entry.offset);
        assert!(self.last.is_none_or(|last| last < key), "pieces come in order");
        self.last = Some(key);
        self.disks.insert(entry.disk);
        self.page.push(entry);
        if self.page.len() == ENTRIES_PER_PAGE {
            self.flush_page()?;
        }
        Ok(())
    }

    fn flush_page(&mut self) -> Result<()> {
        let Some(first) = self.page.first() else { return Ok(()) };
        let page_at = self.out.position();
        self.top.push(Top { disk: first.disk, offset: first.offset, page_at });
        self.out.put(&encode_page(&self.page, page_at, self.to))?;
        self.page.clear();
        Ok(())
    }
}

/// ```text
///  0  magic "RPAG"          8  place of the page in the file
///  4  CRC32C of the rest   16  last sequence of the interval
///  24 entries              32  entries, of 32 bytes each
/// ```
fn encode_page(entries: &[Entry], page_at: u64, to: Sequence) -> Vec<u8> {
    let mut page = Vec::with_capacity(PAGE_LENGTH);
    page.extend(PAGE_MAGIC);
    page.extend([0; 4]);
    page.extend(page_at.to_le_bytes());
    page.extend(to.0.to_le_bytes());
    page.extend((entries.len() as u64).to_le_bytes());
    entries.iter().for_each(|entry| entry.encode(&mut page));
    page.resize(PAGE_LENGTH, 0);
    let checksum = crc32c::crc32c(&page[8..]);
    page[4..8].copy_from_slice(&checksum.to_le_bytes());
    page
}

pub(super) fn decode_page(page: &[u8], page_at: u64, to: Sequence) -> Option<Vec<Entry>> {
    let count = usize::try_from(u64_at(page, 24)).ok()?;
    let sound = page[..4] == PAGE_MAGIC[..]
        && u32_at(page, 4) == crc32c::crc32c(&page[8..])
        && u64_at(page, 8) == page_at
        && u64_at(page, 16) == to.0
        && count <= ENTRIES_PER_PAGE;
    if !sound {
        return None;
    }
    let entries = page[PAGE_HEAD_LENGTH..].chunks_exact(ENTRY_LENGTH).take(count);
    let entries: Vec<Entry> = entries.map(Entry::decode).collect::<Option<_>>()?;
    let in_order = |pair: &[Entry]| pair[0].is_before((pair[1].disk, pair[1].offset));
    entries.windows(2).all(in_order).then_some(entries)
}

/// ```text
///  0  magic "RDBTRETN"      40  disks
///  8  version                48  index pages
/// 12  CRC32C of the index's top
/// 16  machine id             56  place of the index's top
/// 32  from                   64  to      72 zero      80 CRC32C of bytes 0..80
/// ```
pub(super) struct Header {
    pub(super) machine: MachineId,
    pub(super) span: RetentionSpan,
    pub(super) pages: u64,
    pub(super) top_at: u64,
    pub(super) top_checksum: u32,
}

impl Header {
    fn encode(&self) -> AlignedBuffer {
        let mut bytes = Vec::with_capacity(HEADER_USED + 4);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.top_checksum.to_le_bytes());
        bytes.extend(self.machine.0);
        for number in
            [self.span.from.0, self.span.disks.0, self.pages, self.top_at, self.span.to.0, 0]
        {
            bytes.extend(number.to_le_bytes());
        }
        debug_assert_eq!(bytes.len(), HEADER_USED);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        let mut block = AlignedBuffer::zeroed(HEADER_LENGTH);
        block[..bytes.len()].copy_from_slice(&bytes);
        block
    }

    pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<Self> {
        let damaged = |what| StoreError::damaged(path, 0, what);
        if bytes[..8] != MAGIC[..] {
            return Err(damaged("not a retention file"));
        }
        if u32_at(bytes, HEADER_USED) != crc32c::crc32c(&bytes[..HEADER_USED]) {
            return Err(damaged("the header's checksum does not match"));
        }
        let version = u32_at(bytes, 8);
        if version > VERSION {
            return Err(StoreError::NewerVersion {
                path: path.to_owned(),
                version,
                known: VERSION,
            });
        }
        let mut machine = [0; 16];
        machine.copy_from_slice(&bytes[16..32]);
        Ok(Self {
            machine: MachineId(machine),
            span: RetentionSpan {
                from: Sequence(u64_at(bytes, 32)),
                to: Sequence(u64_at(bytes, 64)),
                disks: DiskSet(u64_at(bytes, 40)),
            },
            pages: u64_at(bytes, 48),
            top_at: u64_at(bytes, 56),
            top_checksum: u32_at(bytes, 12),
        })
    }
}

impl Header {
    /// Whether the top of the index lies within a file of so many bytes, and is not larger than any
    /// can be.
    pub(super) fn fits(&self, file_bytes: u64) -> bool {
        let length = self.pages.checked_mul(TOP_LENGTH as u64);
        let end = length.and_then(|length| self.top_at.checked_add(length));
        self.pages <= PAGES_LIMIT && end.is_some_and(|end| end <= file_bytes)
    }
}

/// Reads a sealed retention file: the top of its index is in memory, one page is remembered.
pub(super) struct RetentionReader {
    file: Arc<dyn BlockFile>,
    path: PathBuf,
    span: RetentionSpan,
    top: Vec<Top>,
    page: Mutex<Option<(usize, Arc<Vec<Entry>>)>>,
}

impl RetentionReader {
    /// Opens the sealed file of an interval and reads the top of its index.
    pub(super) fn open(
        storage: &dyn Storage,
        layout: &MachineLayout,
        machine: MachineId,
        (from, to): (Sequence, Sequence),
    ) -> Result<Self> {
        let path = layout.sealed(from, to);
        let file = storage.open(&path, Open::ReadOnly)?;
        if file.size() < HEADER_LENGTH as u64 {
            return Err(StoreError::damaged(&path, 0, "shorter than its header"));
        }
        let mut window = Window::new(HEADER_LENGTH);
        let bytes = window.bytes(&*file, 0, HEADER_LENGTH, HEADER_LENGTH as u64)?;
        let header = Header::decode(&path, bytes)?;
        if header.machine != machine || (header.span.from, header.span.to) != (from, to) {
            return Err(StoreError::damaged(&path, 0, "the header is another file's"));
        }
        let top = read_top(&*file, &path, &header)?;
        Ok(Self { file, path, span: header.span, top, page: Mutex::new(None) })
    }

    /// The interval and the disks.
    pub(super) fn span(&self) -> RetentionSpan {
        self.span
    }

    /// Calls `each` for every piece that shares a byte with the range, in order.
    pub(super) fn find(
        &self,
        disk: DiskIndex,
        range: ByteRange,
        mut each: impl FnMut(Entry),
    ) -> Result<()> {
        let first = self.top.partition_point(|top| (top.disk, top.offset) <= (disk, range.offset));
        for index in first.saturating_sub(1)..self.top.len() {
            let top = self.top[index];
            if (top.disk, top.offset) >= (disk, range.end()) {
                break;
            }
            let page = self.page(index)?;
            let start = page
                .partition_point(|entry| (entry.disk, entry.range().end()) <= (disk, range.offset));
            page[start..]
                .iter()
                .take_while(|entry| (entry.disk, entry.offset) < (disk, range.end()))
                .filter(|entry| entry.disk == disk)
                .for_each(|entry| each(*entry));
        }
        Ok(())
    }

    /// The first piece at or after `offset` that is not zeros.
    pub(super) fn next_content(&self, disk: DiskIndex, offset: u64) -> Result<Option<ByteRange>> {
        let rest = ByteRange::between(offset, u64::MAX);
        let first = self.top.partition_point(|top| (top.disk, top.offset) <= (disk, offset));
        for index in first.saturating_sub(1)..self.top.len() {
            if self.top[index].disk > disk {
                break;
            }
            let page = self.page(index)?;
            let shared = page
                .iter()
                .filter(|entry| entry.disk == disk && entry.form != Form::Zero)
                .find_map(|entry| entry.range().intersection(&rest));
            if shared.is_some() {
                return Ok(shared);
            }
        }
        Ok(None)
    }

    /// Calls `each` with what the pieces hold, in their order: those that stand one behind the
    /// other in the file are read together.
    pub(super) fn load(
        &self,
        entries: &[Entry],
        mut each: impl FnMut(&Entry, Content<'_>),
    ) -> Result<()> {
        let mut window = Window::new(READ_AHEAD);
        let end = entries.iter().map(Entry::stored_end).max().unwrap_or(0);
        for entry in entries {
            match entry.form {
                Form::Zero => each(entry, Content::Zeros),
                Form::Raw => each(entry, Content::Bytes(self.stored(&mut window, entry, end)?)),
                Form::Lz4 => {
                    let stored = self.stored(&mut window, entry, end)?;
                    let content = decompress(stored, entry.length as usize)
                        .map_err(|_| self.damaged(entry, "a piece does not decompress"))?;
                    each(entry, Content::Bytes(&content));
                }
            }
        }
        Ok(())
    }

    /// Reads and checks every byte; returns how many bytes of content there are.
    pub(super) fn check(&self) -> Result<u64> {
        let mut bytes = 0;
        for index in 0..self.top.len() {
            let page = self.page(index)?;
            self.load(&page, |entry, _| bytes += u64::from(entry.length))?;
        }
        Ok(bytes)
    }

    /// A piece as it is stored, its checksum checked; `end` is up to where reading ahead pays.
    fn stored<'a>(&self, window: &'a mut Window, entry: &Entry, end: u64) -> Result<&'a [u8]> {
        if entry.stored_end() > self.file.size() {
            return Err(self.damaged(entry, "a piece lies beyond the end of the file"));
        }
        if entry.form == Form::Raw && entry.stored_length != entry.length {
            return Err(self.damaged(entry, "a raw piece has another length than it states"));
        }
        let length = entry.stored_length as usize;
        let stored = &window.bytes(&*self.file, entry.stored_at, length, end)?[..length];
        if crc32c::crc32c(stored) != entry.checksum {
            return Err(self.damaged(entry, "the checksum of a piece does not match"));
        }
        Ok(stored)
    }

    fn damaged(&self, entry: &Entry, what: &str) -> StoreError {
        StoreError::damaged_at(&self.path, entry.stored_at, what)
    }

    fn page(&self, index: usize) -> Result<Arc<Vec<Entry>>> {
        let mut remembered = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, page)) = &*remembered
            && *at == index
        {
            return Ok(page.clone());
        }
        let page_at = self.top[index].page_at;
        let damaged = |what| StoreError::damaged_at(&self.path, page_at, what);
        let end = page_at.checked_add(PAGE_LENGTH as u64).filter(|end| *end <= self.file.size());
        let end = end.ok_or_else(|| damaged("an index page lies beyond the end of the file"))?;
        let mut window = Window::new(PAGE_LENGTH);
        let bytes = &window.bytes(&*self.file, page_at, PAGE_LENGTH, end)?[..PAGE_LENGTH];
        let page = decode_page(bytes, page_at, self.span.to)
            .filter(|page| is_between(page, &self.top[index], self.top.get(index + 1)))
            .ok_or_else(|| damaged("an index page does not match its checksum or its place"))?;
        let page = Arc::new(page);
        *remembered = Some((index, page.clone()));
        Ok(page)
    }
}

fn read_top(file: &dyn BlockFile, path: &Path, header: &Header) -> Result<Vec<Top>> {
    let damaged = |what| StoreError::damaged_at(path, header.top_at, what);
    if !header.fits(file.size()) {
        return Err(damaged("the index lies beyond the end of the file"));
    }
    let length = usize_of(header.pages) * TOP_LENGTH;
    let mut window = Window::new(length);
    let bytes = &window.bytes(file, header.top_at, length, file.size())?[..length];
    if crc32c::crc32c(bytes) != header.top_checksum {
        return Err(damaged("the checksum of the index does not match"));
    }
    let top: Option<Vec<Top>> = bytes.chunks_exact(TOP_LENGTH).map(Top::decode).collect();
    top.ok_or_else(|| damaged("the index names a disk that cannot be"))
}

/// Whether a page begins where the index says, and ends before the next one.
pub(super) fn is_between(page: &[Entry], top: &Top, next: Option<&Top>) -> bool {
    let begins = page.first().is_some_and(|first| (first.disk, first.offset) == top.key());
    begins && page.last().is_some_and(|last| next.is_none_or(|next| last.is_before(next.key())))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn u32_of(length: u64) -> u32 {
    u32::try_from(length).expect("a piece is far shorter than 4 GiB")
}

fn usize_of(length: u64) -> usize {
    usize::try_from(length).expect("usize has 64 bits on every platform that is supported")
}
