//! The ring below its two users: the one that owns buffers and the one that borrows slices. Counts
//! what the kernel holds. Must never be dropped, by them, before the kernel holds nothing.

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::types::{Fd, Fixed};
use io_uring::{IoUring, Submitter, opcode, squeue};

use crate::ring::{DEPTH_MAX, Direction, Priority};

/// Times that an operation is tried again without progress (EAGAIN, EINTR) before it fails: such
/// answers come from short shortages, and a lasting one must reach the operator.
const RETRIES_MAX: u32 = 64;

/// Bytes of one submission: the kernel takes less than 2 GiB at once, and whole blocks of it.
const SUBMISSION_BYTES_MAX: usize = 1 << 30;

/// `IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT`, from linux/ioprio.h.
const IOPRIO_IDLE: u16 = 3 << 13;

/// A file as the kernel is told of it.
#[derive(Clone, Copy)]
pub(super) enum Target {
    Registered(Fixed),
    Descriptor(Fd),
}

/// How far an operation has come.
#[derive(Clone)]
pub(super) struct Transfer {
    pub(super) target: Target,
    pub(super) direction: Direction,
    pub(super) priority: Priority,
    pub(super) registered_buffer: Option<u16>,
    pub(super) offset: u64,
    pub(super) start: *mut u8,
    pub(super) length: usize,
    pub(super) done: usize,
    pub(super) retries: u32,
}

// SAFETY: the pointer is only handed to the kernel, whose view of it no thread changes.
unsafe impl Send for Transfer {}

impl Transfer {
    /// Takes the kernel's answer in: `None` where the operation must be pushed again.
    pub(super) fn advance(&mut self, result: i32) -> Option<io::Result<usize>> {
        let Ok(moved) = usize::try_from(result) else {
            let again = matches!(-result, libc::EAGAIN | libc::EINTR);
            if again && self.retries < RETRIES_MAX {
                self.retries += 1;
                return None;
            }
            return Some(Err(io::Error::from_raw_os_error(-result)));
        };
        self.done += moved;
        self.retries = 0;
        if self.done >= self.length {
            return Some(Ok(self.length));
        }
        if moved > 0 {
            return None;
        }
        let kind = match self.direction {
            Direction::Read => io::ErrorKind::UnexpectedEof,
            Direction::Write => io::ErrorKind::WriteZero,
        };
        let message = format!("only {} of {} bytes", self.done, self.length);
        Some(Err(io::Error::new(kind, message)))
    }

    fn entry(&self) -> squeue::Entry {
        let start = self.start.wrapping_add(self.done);
        let length = (self.length - self.done).min(SUBMISSION_BYTES_MAX);
        let length = u32::try_from(length).expect("bounded by the line above");
        let offset = self.offset + self.done as u64;
        let priority = match self.priority {
            Priority::Normal => 0,
            Priority::Idle => IOPRIO_IDLE,
        };
        // The crate's trait over both kinds of file cannot be named from outside, nor one over the
        // operations.
        macro_rules! entry {
            ($operation:ident $(, $index:expr)?) => {
                match self.target {
                    Target::Registered(file) => {
                        opcode::$operation::new(file, start, length $(, $index)?)
                    }
                    Target::Descriptor(file) => {
                        opcode::$operation::new(file, start, length $(, $index)?)
                    }
                }
                .offset(offset)
                .ioprio(priority)
                .build()
            };
        }
        match (self.direction, self.registered_buffer) {
            (Direction::Read, None) => entry!(Read),
            (Direction::Write, None) => entry!(Write),
            (Direction::Read, Some(index)) => entry!(ReadFixed, index),
            (Direction::Write, Some(index)) => entry!(WriteFixed, index),
        }
    }
}

/// A ring and the count of what is in it.
pub(crate) struct Queue {
    ring: IoUring,
    depth: usize,
    /// Pushed and not yet popped.
    outstanding: usize,
    /// Entering failed for good: the kernel is entered no more, so that it takes no new entry.
    broken: bool,
}

impl Queue {
    pub(crate) fn new(depth: usize) -> io::Result<Self> {
        if !(1..=DEPTH_MAX).contains(&depth) {
            let message = format!("the depth must be 1 to {DEPTH_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let entries = u32::try_from(depth).map_err(io::Error::other)?;
        // The completion side has twice as many entries, so it never overflows.
        let ring = IoUring::builder().build(entries)?;
        Ok(Queue { ring, depth, outstanding: 0, broken: false })
    }

    pub(super) fn submitter(&self) -> Submitter<'_> {
        self.ring.submitter()
    }

    /// Whether the queue must be thrown away.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Pushed and not yet taken by the kernel.
    pub(super) fn unsubmitted(&mut self) -> usize {
        self.ring.submission().len()
    }

    /// Lines a transfer up under a key.
    ///
    /// # Safety
    /// The bytes from `start` to `start + length` must stay allocated, and untouched by anybody
    /// else, until the transfer's completion was popped or `settle` has returned.
    pub(super) unsafe fn push(&mut self, key: u64, transfer: &Transfer) -> io::Result<()> {
        if self.broken || self.outstanding >= self.depth {
            return Err(io::Error::other("the io_uring queue takes no more"));
        }
        let entry = transfer.entry().user_data(key);
        // SAFETY: the entry's memory is valid long enough by this function's own contract; its file
        // is registered, or a descriptor that the caller keeps open as long.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(io::Error::other)?;
        self.outstanding += 1;
        Ok(())
    }

    /// The next completion.
    pub(super) fn pop(&mut self) -> Option<(u64, i32)> {
        let entry = self.ring.completion().next()?;
        self.outstanding -= 1;
        Some((entry.user_data(), entry.result()))
    }

    /// Submits everything and waits for that many completions. May return with fewer: look and
    /// enter again.
    pub(super) fn enter(&mut self, wait: usize) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("the io_uring queue is broken"));
        }
        let error = match self.ring.submitter().submit_and_wait(wait) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EINTR) => Ok(()),
            // The kernel is short of memory or wants its completions taken: both pass as long as
            // it holds something of ours whose end frees it.
            Some(libc::EAGAIN | libc::EBUSY) if self.held() > 0 => {
                std::thread::yield_now();
                Ok(())
            }
            _ => {
                self.broken = true;
                Err(error)
            }
        }
    }

    /// Waits until the kernel holds nothing of ours, whatever happens: memory depends on it.
    pub(super) fn settle(&mut self, mut ended: impl FnMut(u64, i32)) {
        loop {
            while let Some((key, result)) = self.pop() {
                ended(key, result);
            }
            if self.held() == 0 {
                // Nothing unsubmitted may ever reach the kernel: its memory is about to go.
                self.broken |= self.outstanding > 0;
                return;
            }
            if self.enter(1).is_err() {
                // What the kernel holds completes without being waited for.
                std::thread::yield_now();
            }
        }
    }

    /// Moves the bytes of all pieces, at most `depth` at a time, and returns when the last has
    /// ended. After an error no further ones are started; the first error is returned with its
    /// piece.
    pub(crate) fn run(
        &mut self,
        file: BorrowedFd<'_>,
        pieces: Vec<Piece<'_>>,
    ) -> Result<(), (u64, usize, io::Error)> {
        let target = Target::Descriptor(Fd(file.as_raw_fd()));
        let mut transfers: Vec<Transfer> =
            pieces.iter().map(|piece| piece.transfer(target)).collect();
        let mut waiting: VecDeque<usize> = (0..transfers.len()).collect();
        let mut failed = None;
        // From here to the end of its life the guard stands between the kernel and the caller's
        // slices: returning or unwinding drops it, and dropping it settles the queue.
        let settling = Settling { queue: self };
        loop {
            while failed.is_none() && settling.queue.outstanding < settling.queue.depth {
                let Some(index) = waiting.pop_front() else { break };
                // SAFETY: the memory is borrowed by `pieces`, mutably where it is read into, for
                // longer than this call; `settling` does not let the call end before the kernel
                // holds nothing; and this function touches no byte of it. `file` is borrowed as
                // long.
                if let Err(error) = unsafe { settling.queue.push(index as u64, &transfers[index]) }
                {
                    failed = Some((index, error));
                }
            }
            if settling.queue.outstanding == 0 {
                break;
            }
            if let Err(error) = settling.queue.enter(1) {
                failed.get_or_insert((0, error));
                break;
            }
            while let Some((key, result)) = settling.queue.pop() {
                let index = usize::try_from(key).expect("keys are indexes of pieces");
                match transfers[index].advance(result) {
                    None => waiting.push_front(index),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        failed.get_or_insert((index, error));
                    }
                }
            }
        }
        drop(settling);
        match failed {
            None => Ok(()),
            Some((index, error)) => Err((pieces[index].offset, pieces[index].length, error)),
        }
    }

    /// Pushed, taken by the kernel, and not yet popped.
    fn held(&mut self) -> usize {
        self.outstanding - self.unsubmitted()
    }
}

struct Settling<'a> {
    queue: &'a mut Queue,
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        self.queue.settle(|_, _| {});
    }
}

/// Borrowed memory and its place in a file, for one batch.
pub(crate) struct Piece<'a> {
    direction: Direction,
    offset: u64,
    start: *mut u8,
    length: usize,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Piece<'a> {
    /// From the file into the memory.
    pub(crate) fn read(offset: u64, memory: &'a mut [u8]) -> Self {
        let (start, length) = (memory.as_mut_ptr(), memory.len());
        Piece { direction: Direction::Read, offset, start, length, memory: PhantomData }
    }

    /// From the memory into the file.
    pub(crate) fn write(offset: u64, memory: &'a [u8]) -> Self {
        // Never written through: the kernel only reads what it writes to a file.
        let (start, length) = (memory.as_ptr().cast_mut(), memory.len());
        Piece { direction: Direction::Write, offset, start, length, memory: PhantomData }
    }

    fn transfer(&self, target: Target) -> Transfer {
        Transfer {
            target,
            direction: self.direction,
            priority: Priority::Normal,
            registered_buffer: None,
            offset: self.offset,
            start: self.start,
            length: self.length,
            done: 0,
            retries: 0,
        }
    }
}
