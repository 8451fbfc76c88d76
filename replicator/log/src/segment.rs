//! The journal's segments: a header, then entries of one frame each, chained so that only what was
//! written in this order is ever read back. It does no I/O: buffers come and go.

use crate::bytes::{array, put, read_u16, read_u32, read_u64};
use crate::frame::{FRAME_HEADER_SIZE, FRAME_STORED_LIMIT, Frame, FrameError, FrameHeader};
use crate::{Generation, MachineId, Sequence};

/// Bytes of a segment's header, and the unit that entries are padded to: what every disk writes
/// directly.
pub const SEGMENT_HEADER_SIZE: usize = 4096;

/// Every entry starts and ends at a multiple of this.
pub const ENTRY_ALIGNMENT: usize = SEGMENT_HEADER_SIZE;

/// Bytes of an entry's header; its frame follows at once.
pub const ENTRY_HEADER_SIZE: usize = 64;

/// The most bytes of an entry: an aligned buffer of this size takes any frame.
pub const ENTRY_LIMIT: usize = entry_length(FRAME_STORED_LIMIT);

const _: () = assert!(ENTRY_LIMIT == (1 << 20) + (64 << 10));

/// Bytes of an entry whose frame has `frame_length`: header, frame and padding.
pub const fn entry_length(frame_length: usize) -> usize {
    (ENTRY_HEADER_SIZE + frame_length).next_multiple_of(ENTRY_ALIGNMENT)
}

const SEGMENT_MAGIC: [u8; 4] = *b"RDSG";
const ENTRY_MAGIC: [u8; 4] = *b"RDJE";

/// The version of segments and entries that is written, and the only one that is read: the first.
pub const VERSION: u16 = 1;

/// What an entry's chain value covers lies within its header and that of its frame.
const CHAINED_SIZE: usize = ENTRY_HEADER_SIZE + FRAME_HEADER_SIZE;

/// Where an entry stands in the chain of all entries of a generation; zeros before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainValue(pub [u8; 16]);

/// What a segment says of itself. Little-endian, 4096 bytes:
///
/// ```text
///       0       1       2       3       4       5       6       7
///   0  'R'     'D'     'S'     'G'    | version       | zero          |
///   8  machine id (16 bytes)                                          |
///  24  generation (16 bytes)                                          |
///  40  number                                                         |
///  48  salt (16 bytes)                                                |
///  64  chain start (16 bytes)                                         |
///  80  CRC32C of the 4096 bytes, zero in its place | zero             |
///  88  zero ...                                                       |
/// 4096 entries
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose log.
    pub machine: MachineId,
    /// Which log of the machine.
    pub generation: Generation,
    /// Segments of a journal count up by one.
    pub number: u64,
    /// New at random for each segment, so that what stood in its blocks before never chains.
    pub salt: [u8; 16],
    /// What the first entry follows: the value of the last entry of the segment before.
    pub chain_start: ChainValue,
}

const SEGMENT_CHECKSUM_AT: usize = 80;
const SEGMENT_FIELDS_END: usize = 88;

const _: () = assert!(SEGMENT_FIELDS_END <= SEGMENT_HEADER_SIZE);

/// Why bytes are no segment, or a frame no entry of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The first bytes are not those of a segment.
    #[error("these bytes are no journal segment")]
    Magic,
    /// Another layout than this release reads.
    #[error("journal segment version {version} is not known: upgrade redoubt")]
    Version {
        /// The version it claims.
        version: u16,
    },
    /// The header changed on disk.
    #[error("journal segment header: checksum is wrong: check the journal's disk")]
    Checksum,
    /// The buffer is shorter than the entry.
    #[error("journal entry of {needed} bytes in a buffer of {given}")]
    Buffer {
        /// Bytes there are.
        given: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// The frame is of another log than the segment.
    #[error("frame of machine {machine}, generation {generation}, is not of this journal segment")]
    Foreign {
        /// The frame's machine.
        machine: MachineId,
        /// The frame's generation.
        generation: Generation,
    },
    /// The bytes behind the entry's header are no frame.
    #[error("journal entry: {0}")]
    Frame(#[from] FrameError),
}

impl SegmentHeader {
    /// Fills the segment's first block.
    pub fn encode(&self, block: &mut [u8; SEGMENT_HEADER_SIZE]) {
        *block = [0; SEGMENT_HEADER_SIZE];
        put(block, 0, &SEGMENT_MAGIC);
        put(block, 4, &VERSION.to_le_bytes());
        put(block, 8, &self.machine.0);
        put(block, 24, &self.generation.0);
        put(block, 40, &self.number.to_le_bytes());
        put(block, 48, &self.salt);
        put(block, 64, &self.chain_start.0);
        let checksum = crc32c::crc32c(block);
        put(block, SEGMENT_CHECKSUM_AT, &checksum.to_le_bytes());
    }

    /// Reads a segment's first block.
    pub fn parse(block: &[u8; SEGMENT_HEADER_SIZE]) -> Result<Self, SegmentError> {
        if block[..4] != SEGMENT_MAGIC {
            return Err(SegmentError::Magic);
        }
        let sum = crc32c::crc32c(&block[..SEGMENT_CHECKSUM_AT]);
        let sum = crc32c::crc32c_append(sum, &[0; 4]);
        let sum = crc32c::crc32c_append(sum, &block[SEGMENT_CHECKSUM_AT + 4..]);
        if sum != read_u32(block, SEGMENT_CHECKSUM_AT) {
            return Err(SegmentError::Checksum);
        }
        let version = read_u16(block, 4);
        if version != VERSION {
            return Err(SegmentError::Version { version });
        }
        Ok(Self {
            machine: MachineId(array(block, 8)),
            generation: Generation(array(block, 24)),
            number: read_u64(block, 40),
            salt: array(block, 48),
            chain_start: ChainValue(array(block, 64)),
        })
    }
}

/// What stands before an entry's frame. Little-endian, 64 bytes:
///
/// ```text
///       0       1       2       3       4       5       6       7
///   0  'R'     'D'     'J'     'E'    | version       | zero          |
///   8  frame length                   | zero                          |
///  16  first sequence                                                 |
///  24  last sequence                                                  |
///  32  previous: the chain value of the entry before (16 bytes)       |
///  48  value: this entry's (16 bytes)                                 |
///  64  frame, then zeros to the next multiple of 4096
/// ```
///
/// The chain value is the first 16 bytes of BLAKE3 over the segment's salt, bytes 0 to 48 of this
/// header and the frame's header. The frame's own CRC32C stands in that, so the chain covers the
/// body without another pass over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// Bytes of the frame.
    pub frame_length: u32,
    /// Of the frame's first record.
    pub first: Sequence,
    /// Of the frame's last record.
    pub last: Sequence,
    /// The entry that it follows.
    pub previous: ChainValue,
    /// Its own place in the chain.
    pub value: ChainValue,
}

const ENTRY_VALUE_AT: usize = 48;

const _: () = assert!(ENTRY_VALUE_AT + 16 == ENTRY_HEADER_SIZE);

impl EntryHeader {
    /// Fills the place of the header.
    pub fn encode_into(&self, bytes: &mut [u8; ENTRY_HEADER_SIZE]) {
        *bytes = [0; ENTRY_HEADER_SIZE];
        put(bytes, 0, &ENTRY_MAGIC);
        put(bytes, 4, &VERSION.to_le_bytes());
        put(bytes, 8, &self.frame_length.to_le_bytes());
        put(bytes, 16, &self.first.0.to_le_bytes());
        put(bytes, 24, &self.last.0.to_le_bytes());
        put(bytes, 32, &self.previous.0);
        put(bytes, ENTRY_VALUE_AT, &self.value.0);
    }

    /// Reads the header, whose fields say nothing yet of whether the entry follows.
    pub fn parse(bytes: &[u8; ENTRY_HEADER_SIZE]) -> Result<Self, EndReason> {
        match array(bytes, 0) {
            ENTRY_MAGIC => {}
            [0, 0, 0, 0] => return Err(EndReason::Empty),
            _ => return Err(EndReason::NotAnEntry),
        }
        let version = read_u16(bytes, 4);
        if version != VERSION {
            return Err(EndReason::Version { version });
        }
        Ok(Self {
            frame_length: read_u32(bytes, 8),
            first: Sequence(read_u64(bytes, 16)),
            last: Sequence(read_u64(bytes, 24)),
            previous: ChainValue(array(bytes, 32)),
            value: ChainValue(array(bytes, ENTRY_VALUE_AT)),
        })
    }
}

/// A position in a segment's chain: what the next entry must follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    machine: MachineId,
    generation: Generation,
    salt: [u8; 16],
    last: ChainValue,
}

impl Chain {
    /// Before a segment's first entry.
    pub fn start(segment: &SegmentHeader) -> Self {
        Self {
            machine: segment.machine,
            generation: segment.generation,
            salt: segment.salt,
            last: segment.chain_start,
        }
    }

    /// The value of the last entry: where the next segment's chain starts.
    pub fn value(&self) -> ChainValue {
        self.last
    }

    /// Makes an entry of the buffer, whose frame stands already at [`ENTRY_HEADER_SIZE`] and was
    /// checked when it came: fills in the header, and zeros up to [`entry_length`]. On an error
    /// chain and buffer are unchanged.
    pub fn append(&mut self, buffer: &mut [u8]) -> Result<EntryHeader, SegmentError> {
        let frame = FrameHeader::parse(buffer.get(ENTRY_HEADER_SIZE..).unwrap_or_default())?;
        self.same_log(&frame)?;
        let (given, needed) = (buffer.len(), entry_length(frame.frame_length()));
        if given < needed {
            return Err(SegmentError::Buffer { given, needed });
        }
        let mut entry = EntryHeader {
            frame_length: u32::try_from(frame.frame_length())
                .expect("a parsed frame header keeps to the limit of a frame"),
            first: frame.first,
            last: frame.last,
            previous: self.last,
            value: ChainValue::default(),
        };
        let place = buffer.first_chunk_mut().expect("an entry is longer than its header");
        entry.encode_into(place);
        entry.value = self.value_of(buffer);
        put(buffer, ENTRY_VALUE_AT, &entry.value.0);
        buffer[ENTRY_HEADER_SIZE + frame.frame_length()..needed].fill(0);
        self.last = entry.value;
        Ok(entry)
    }

    /// The chain as it was before the entry whose first bytes these are, where its own value
    /// vouches for its two headers: for whoever looks on behind damage, where the entry before is
    /// not known.
    pub fn before(&self, front: &[u8]) -> Option<Self> {
        let front = front.first_chunk::<CHAINED_SIZE>()?;
        let is_vouched = array::<4>(front, 0) == ENTRY_MAGIC
            && array(front, ENTRY_VALUE_AT) == self.value_of(front).0;
        is_vouched.then(|| Self { last: ChainValue(array(front, 32)), ..*self })
    }

    fn value_of(&self, entry: &[u8]) -> ChainValue {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.salt).update(&entry[..ENTRY_VALUE_AT]);
        hasher.update(&entry[ENTRY_HEADER_SIZE..CHAINED_SIZE]);
        ChainValue(array(hasher.finalize().as_bytes(), 0))
    }

    fn same_log(&self, frame: &FrameHeader) -> Result<(), SegmentError> {
        if (frame.machine, frame.generation) == (self.machine, self.generation) {
            return Ok(());
        }
        Err(SegmentError::Foreign { machine: frame.machine, generation: frame.generation })
    }
}

/// An entry that follows.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Its header.
    pub header: EntryHeader,
    /// Its frame, whose checksum was right.
    pub frame: Frame<'a>,
    /// Bytes to the next entry.
    pub length: usize,
    /// What the next entry must follow.
    pub chain: Chain,
}

/// What stands at a place of a segment.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "it lives on the stack for one step of a loop")]
pub enum Scan<'a> {
    /// An entry that follows.
    Entry(Entry<'a>),
    /// Not told yet: look again with this many bytes from the same place on. Where the segment has
    /// not as many, its entries end here.
    More {
        /// Bytes, at most [`ENTRY_LIMIT`].
        needed: usize,
    },
    /// No entry that follows: the entries end here.
    End(EndReason),
}

/// Why a segment's entries end. All but `Empty` and [`EndReason::Version`] may be what a power cut
/// left of entries that no one was promised; a later release's entries must not be taken for that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndReason {
    /// Nothing was written here.
    #[error("nothing was written here")]
    Empty,
    /// Some other bytes.
    #[error("these bytes are no journal entry")]
    NotAnEntry,
    /// Another layout than this release reads.
    #[error("journal entry version {version} is not known: upgrade redoubt")]
    Version {
        /// The version it claims.
        version: u16,
    },
    /// It was written after another entry than the one before.
    #[error("journal entry {first}..={last} does not follow the one before: it is an old one")]
    DoesNotFollow {
        /// Its first sequence, if that is right.
        first: Sequence,
        /// Its last sequence, if that is right.
        last: Sequence,
    },
    /// Its bytes, or those of its frame's header, are not those written.
    #[error("journal entry header was damaged or never written whole")]
    Damaged,
    /// Its frame is not whole, or not of this log.
    #[error("{0}")]
    Frame(#[from] SegmentError),
}

/// Looks at the start of `buffer` for the entry that follows `chain`. The buffer may end anywhere.
pub fn scan_entry<'a>(buffer: &'a [u8], chain: &Chain) -> Scan<'a> {
    let Some(front) = buffer.first_chunk::<CHAINED_SIZE>() else {
        return Scan::More { needed: ENTRY_ALIGNMENT };
    };
    let (header, frame) = match scan_front(front, chain) {
        Ok(headers) => headers,
        Err(reason) => return Scan::End(reason),
    };
    let length = entry_length(frame.frame_length());
    if buffer.len() < length {
        return Scan::More { needed: length };
    }
    let bytes = &buffer[ENTRY_HEADER_SIZE..ENTRY_HEADER_SIZE + frame.frame_length()];
    match Frame::check(bytes) {
        Ok(frame) => {
            let chain = Chain { last: header.value, ..*chain };
            Scan::Entry(Entry { header, frame, length, chain })
        }
        Err(error) => Scan::End(EndReason::Frame(error.into())),
    }
}

/// The two headers, once the chain vouches for both.
fn scan_front(
    front: &[u8; CHAINED_SIZE],
    chain: &Chain,
) -> Result<(EntryHeader, FrameHeader), EndReason> {
    let bytes = front.first_chunk().expect("the front is longer than an entry's header");
    let header = EntryHeader::parse(bytes)?;
    if header.previous != chain.last {
        return Err(EndReason::DoesNotFollow { first: header.first, last: header.last });
    }
    if header.value != chain.value_of(front) {
        return Err(EndReason::Damaged);
    }
    let frame = FrameHeader::parse(&front[ENTRY_HEADER_SIZE..]).map_err(SegmentError::from)?;
    chain.same_log(&frame)?;
    let told = (header.frame_length as usize, header.first, header.last);
    if told != (frame.frame_length(), frame.first, frame.last) {
        return Err(EndReason::Damaged);
    }
    Ok((header, frame))
}

#[cfg(test)]
mod tests;
