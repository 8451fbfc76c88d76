//! Reads the ring that the programs fill, in place: pieces of a write stay where the kernel put
//! them until the last has come. It must never free room that an open write still lies in, nor read
//! a record before its busy bit is gone.

use crate::probe::memory::{Mapping, index, page_bytes};
use crate::source::{BioKey, Event, Operation, RingPosition};
use libbpf_rs::MapHandle;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use redoubt_ebpf::{Record, numbers};
use redoubt_log::{ByteRange, DiskIndex};
use std::collections::HashMap;
use std::mem::size_of;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Before each record the kernel writes its length, with two flags, and a page offset of its own.
const HEADER_BYTES: u64 = 8;
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
const RECORD_BYTES: u64 = size_of::<Record>() as u64;
/// Room goes back to the kernel at least after this share of the ring, for a drain may be long.
const RELEASE_SHARE: u64 = 32;

/// The reader's side of the ring. There may be only one: it alone moves the consumer position.
pub struct Ring {
    consumer: Mapping,
    /// The producer's position in the first page, then the data, twice in a row: no record is ever
    /// split.
    producer: Mapping,
    bytes: u64,
    data_offset: usize,
    /// Everything before it was handed out, or waits in `open`.
    read: u64,
    /// Where the room that went back to the kernel ends.
    released: u64,
    open: HashMap<(DiskIndex, BioKey), OpenWrite>,
    epoll: Epoll,
}

/// A write of which some pieces have come.
struct OpenWrite {
    start: u64,
    next: u64,
    pieces: Vec<Piece>,
}

/// Where in the ring's memory a piece lies.
#[derive(Clone, Copy)]
struct Piece {
    position: u64,
    bytes: u64,
}

impl Ring {
    /// Takes over the reading of a ring, where its last reader stopped.
    pub(crate) fn open(map: &MapHandle, bytes: u64) -> nix::Result<Self> {
        let page = page_bytes();
        let consumer = Mapping::new(map, 0, page, true)?;
        let producer = Mapping::new(map, page, page + 2 * index(bytes), false)?;
        let read = consumer.word(0).load(Ordering::Acquire);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        // Edge-triggered: the ring is readable from the first byte on, and we want the programs'
        // own wake-ups only.
        epoll.add(map, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))?;
        let open = HashMap::new();
        Ok(Self { consumer, producer, bytes, data_offset: page, read, released: read, open, epoll })
    }

    /// How far the ring has been filled.
    pub fn produced(&self) -> RingPosition {
        RingPosition(self.producer.word(0).load(Ordering::Acquire))
    }

    /// Bytes between what went back to the kernel and what it has filled.
    pub fn fill(&self) -> u64 {
        self.produced().0.saturating_sub(self.released)
    }

    /// Waits until an eighth of the ring more is filled, or for at most `timeout`; whether it was
    /// woken.
    pub fn wait(&self, timeout: Duration) -> nix::Result<bool> {
        let timeout = EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::MAX);
        match self.epoll.wait(&mut [EpollEvent::empty()], timeout) {
            Ok(count) => Ok(count > 0),
            Err(nix::Error::EINTR) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// See [`crate::ChangeSource::drain`].
    pub fn drain(&mut self, until: RingPosition, sink: &mut dyn FnMut(Event<'_>)) -> RingPosition {
        while self.read < until.0 {
            let length = self.length_at(self.read).load(Ordering::Acquire);
            if length & BUSY != 0 {
                break;
            }
            let payload = u64::from(length & !(BUSY | DISCARDED));
            let next = self.read + (payload + HEADER_BYTES).next_multiple_of(8);
            if length & DISCARDED == 0 {
                self.hand_out(self.read + HEADER_BYTES, payload, sink);
            }
            self.read = next;
            if self.read - self.released >= self.bytes / RELEASE_SHARE {
                self.release();
            }
        }
        self.release();
        RingPosition(self.read)
    }

    /// Drops the pieces of writes of this disk that are not whole, and the room they hold.
    pub fn forget_partial(&mut self, disk: DiskIndex) {
        self.open.retain(|(owner, _), _| *owner != disk);
        self.release();
    }

    /// Gives the room before the oldest open write back to the kernel.
    fn release(&mut self) {
        let oldest = self.open.values().map(|write| write.start).min().unwrap_or(self.read);
        if oldest > self.released {
            self.released = oldest;
            self.consumer.word(0).store(oldest, Ordering::Release);
        }
    }

    fn length_at(&self, position: u64) -> &std::sync::atomic::AtomicU32 {
        self.producer.half_word(self.data_offset + index(position & (self.bytes - 1)))
    }

    /// Bytes of a record that was handed over by the kernel and not yet given back.
    fn slice(&self, position: u64, length: u64) -> &[u8] {
        debug_assert!(position >= self.released && length <= self.bytes);
        let offset = self.data_offset + index(position & (self.bytes - 1));
        // SAFETY: the record's busy bit was seen cleared (acquire), so the kernel has finished
        // writing; it writes there again only after the consumer position has passed, which
        // `release` does through `&mut self`, when no such slice lives any more.
        unsafe { self.producer.bytes(offset, index(length)) }
    }

    fn record_at(&self, position: u64) -> Record {
        Record::from_bytes(self.slice(position, RECORD_BYTES))
    }

    fn hand_out(&mut self, position: u64, payload: u64, sink: &mut dyn FnMut(Event<'_>)) {
        if payload < RECORD_BYTES {
            debug_assert!(false, "a record of {payload} bytes");
            return;
        }
        let record = self.record_at(position);
        let disk = DiskIndex(record.slot);
        let bio = BioKey(record.bio);
        let range = ByteRange { offset: record.offset, length: record.length };
        match u32::from(record.kind) {
            numbers::KIND_SUBMITTED => self.submitted(position, &record, sink),
            numbers::KIND_COMPLETED => {
                let failed = u32::from(record.flags) & numbers::FLAG_FAILED != 0;
                sink(Event::Completed { disk, bio, range, failed });
            }
            numbers::KIND_SPLIT => {
                sink(Event::Split { disk, front: bio, parent: BioKey(record.more), range });
            }
            _ => debug_assert!(false, "a record of kind {}", record.kind),
        }
    }

    fn submitted(&mut self, position: u64, record: &Record, sink: &mut dyn FnMut(Event<'_>)) {
        let key = (DiskIndex(record.slot), BioKey(record.bio));
        let flags = u32::from(record.flags);
        let bytes = u64::from(record.piece_bytes);
        let piece = Piece { position: position + RECORD_BYTES, bytes };
        // A first piece ends whatever was open under the name: its rest was lost.
        let open = self.open.remove(&key).filter(|_| record.more != 0);
        if flags & (numbers::FLAG_NO_DATA | numbers::FLAG_UNREADABLE) != 0 {
            return sink(submission(record, None));
        }
        if record.more == 0 && bytes == record.length {
            return sink(submission(record, Some(&[self.slice(piece.position, piece.bytes)])));
        }
        let start = position - HEADER_BYTES;
        let mut write = match open {
            Some(write) if write.next == record.more => write,
            // The pieces before were forgotten or lost: the loss is counted, this is no write any
            // more.
            _ if record.more != 0 => return,
            _ => OpenWrite { start, next: 0, pieces: Vec::new() },
        };
        write.pieces.push(piece);
        write.next += bytes;
        if write.next < record.length {
            self.open.insert(key, write);
            return;
        }
        let gather: Vec<&[u8]> =
            write.pieces.iter().map(|piece| self.slice(piece.position, piece.bytes)).collect();
        sink(submission(record, Some(&gather)));
    }
}

fn submission<'a>(record: &Record, data: Option<&'a [&'a [u8]]>) -> Event<'a> {
    let operation = match u32::from(record.operation) {
        numbers::OPERATION_ZEROES => Operation::WriteZeroes,
        numbers::OPERATION_DISCARD => Operation::Discard,
        _ => Operation::Write,
    };
    Event::Submitted {
        disk: DiskIndex(record.slot),
        bio: BioKey(record.bio),
        range: ByteRange { offset: record.offset, length: record.length },
        operation,
        data,
        at: record.at,
    }
}
