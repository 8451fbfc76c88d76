//! The blocking twin of the ring: the same trait by pread and pwrite. It is the oracle of the tests
//! and the fallback where io_uring is not permitted. Must never do I/O before `reap`.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::ring::{BlockQueue, Completion, Direction, EngineError, FileSlot, Operation};

/// A queue that works when it is reaped, in order. Priorities are not honoured.
#[derive(Debug)]
pub struct BlockingQueue {
    depth: usize,
    files: Vec<Option<File>>,
    waiting: VecDeque<Operation>,
}

impl BlockingQueue {
    /// A queue over these files; a `FileSlot` is an index into them.
    pub fn new(depth: usize, files: Vec<File>) -> Self {
        let files = files.into_iter().map(Some).collect();
        BlockingQueue { depth, files, waiting: VecDeque::new() }
    }
}

impl BlockQueue for BlockingQueue {
    fn depth(&self) -> usize {
        self.depth
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    fn submit(&mut self, operation: Operation) -> Result<(), (Operation, EngineError)> {
        match operation.check(self, self.files.len()) {
            Ok(()) => self.waiting.push_back(operation),
            Err(error) => return Err((operation, error)),
        }
        Ok(())
    }

    fn close_file(&mut self, file: FileSlot) -> Result<(), EngineError> {
        let files = self.files.len();
        let unknown = EngineError::UnknownFile { slot: file.0, files };
        let held = self.files.get_mut(file.0 as usize).ok_or(unknown)?;
        held.take();
        Ok(())
    }

    /// Does exactly `min_wait` operations, so that a caller who only looks (0) is not held up, but
    /// one at least: a caller who never waits must see progress too.
    fn reap(
        &mut self,
        min_wait: usize,
        completions: &mut Vec<Completion>,
    ) -> Result<(), EngineError> {
        for mut operation in self.waiting.drain(..min_wait.max(1).min(self.waiting.len())) {
            let bytes = &mut operation.buffer[..operation.length];
            let result = match (&self.files[operation.file.0 as usize], operation.direction) {
                (Some(file), Direction::Read) => file.read_exact_at(bytes, operation.offset),
                (Some(file), Direction::Write) => file.write_all_at(bytes, operation.offset),
                (None, _) => Err(io::Error::from_raw_os_error(libc::EBADF)),
            };
            completions.push(Completion {
                token: operation.token,
                result: result.map(|()| operation.length),
                buffer: operation.buffer,
            });
        }
        Ok(())
    }
}
