//! What is asked of a queue and what it answers: an operation takes its buffer along and the
//! completion brings it back. Must never let both sides hold a buffer.

use std::io;

use crate::buffer::Buffer;
use crate::ring::EngineError;

/// A file that a queue knows, by its place in the list that was registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileSlot(pub u32);

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the file into the buffer.
    Read,
    /// From the buffer into the file; not durable before the file is synced.
    Write,
}

/// How the block layer's scheduler ranks an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// As the process.
    Normal,
    /// Only where nobody else wants the disk, as far as its scheduler knows classes.
    Idle,
}

/// One read or write.
#[derive(Debug)]
pub struct Operation {
    /// The caller's name for it, returned with the completion.
    pub token: u64,
    /// The file.
    pub file: FileSlot,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes, from the start of the buffer.
    pub length: usize,
    /// Which way.
    pub direction: Direction,
    /// How urgent.
    pub priority: Priority,
    /// The memory: the queue's own until the completion.
    pub buffer: Buffer,
}

/// What became of an operation.
#[derive(Debug)]
pub struct Completion {
    /// As in the operation.
    pub token: u64,
    /// The buffer, the caller's again. After a failed read its content means nothing.
    pub buffer: Buffer,
    /// Bytes, all of them: a short transfer is continued or an error.
    pub result: io::Result<usize>,
}

/// A bounded queue of reads and writes that complete in any order.
pub trait BlockQueue: Send {
    /// Operations that may be in flight.
    fn depth(&self) -> usize;

    /// Operations taken and not yet given back.
    fn in_flight(&self) -> usize;

    /// Takes an operation, or gives it back with the reason. It starts with the next `reap`, at the
    /// latest.
    fn submit(&mut self, operation: Operation) -> Result<(), (Operation, EngineError)>;

    /// Lets a file go, so that its device is no longer held; operations on it that are in flight
    /// end as they would have, and no further one may name it.
    fn close_file(&mut self, file: FileSlot) -> Result<(), EngineError>;

    /// Starts what was submitted, waits until `min_wait` operations have ended (or all, where fewer
    /// are in flight), and appends all that have.
    fn reap(
        &mut self,
        min_wait: usize,
        completions: &mut Vec<Completion>,
    ) -> Result<(), EngineError>;
}

impl Operation {
    /// Refuses what a queue with these limits cannot take.
    pub(super) fn check(&self, queue: &dyn BlockQueue, files: usize) -> Result<(), EngineError> {
        if queue.in_flight() >= queue.depth() {
            return Err(EngineError::Full { depth: queue.depth() });
        }
        if usize::try_from(self.file.0).map_or(true, |slot| slot >= files) {
            return Err(EngineError::UnknownFile { slot: self.file.0, files });
        }
        if self.length > self.buffer.len() {
            return Err(EngineError::TooLong { length: self.length, buffer: self.buffer.len() });
        }
        Ok(())
    }
}
