//! I/O by io_uring. A buffer belongs to the ring from `submit` to its completion, by type; dropping
//! a ring waits for the kernel. Must never free or show memory that the kernel may still touch.

mod blocking;
mod operation;
mod queue;
mod registration;

use std::io;

use io_uring::types::Fixed;

use crate::buffer::BufferPool;
pub use blocking::BlockingQueue;
pub use operation::{BlockQueue, Completion, Direction, FileSlot, Operation, Priority};
pub(crate) use queue::{Piece, Queue};
use queue::{Target, Transfer};

/// Depth beyond which a ring is refused: more in flight only waits in the disk's own queue.
pub const DEPTH_MAX: usize = 4096;

/// What can go wrong with a queue as a whole; what goes wrong with one operation stands in its
/// completion.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The kernel gave us no ring.
    #[error(
        "set up io_uring with depth {depth}: {source} (check sysctl kernel.io_uring_disabled and \
         the memlock limit, or use blocking I/O)"
    )]
    Setup {
        /// Operations in flight that were asked for.
        depth: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused files or buffers.
    #[error("register {what} with io_uring: {source} (raise the memlock and nofile limits)")]
    Register {
        /// Files or buffers.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Submitting or waiting failed for good.
    #[error("enter io_uring: {source} (the queue is broken: build a new one)")]
    Enter {
        /// What the kernel said.
        source: io::Error,
    },
    /// As many operations are in flight as the queue takes.
    #[error("the queue is full ({depth} operations in flight): reap first")]
    Full {
        /// Operations that may be in flight.
        depth: usize,
    },
    /// The operation names a file that was not registered.
    #[error("file slot {slot} is not registered ({files} are)")]
    UnknownFile {
        /// The slot.
        slot: u32,
        /// Files registered.
        files: usize,
    },
    /// The operation is longer than its buffer.
    #[error("an operation of {length} bytes has a buffer of {buffer}")]
    TooLong {
        /// Bytes asked for.
        length: usize,
        /// Bytes of the buffer.
        buffer: usize,
    },
}

/// A queue by io_uring. Its files and buffers are registered once.
pub struct Ring {
    queue: Queue,
    files: usize,
    pool: Option<BufferPool>,
    /// Operations in flight, by the number under which the kernel knows them.
    slots: Vec<Option<InFlight>>,
    vacant: Vec<usize>,
}

struct InFlight {
    operation: Operation,
    transfer: Transfer,
}

impl Ring {
    /// A ring for this many operations in flight (1 to [`DEPTH_MAX`]).
    pub fn new(depth: usize) -> Result<Self, EngineError> {
        let queue = Queue::new(depth).map_err(|source| EngineError::Setup { depth, source })?;
        let slots = (0..depth).map(|_| None).collect();
        Ok(Ring { queue, files: 0, pool: None, slots, vacant: (0..depth).collect() })
    }

    fn retire(&mut self, slot: usize, result: io::Result<usize>) -> Option<Completion> {
        let InFlight { operation, .. } = self.slots[slot].take()?;
        self.vacant.push(slot);
        Some(Completion { token: operation.token, buffer: operation.buffer, result })
    }
}

impl BlockQueue for Ring {
    fn depth(&self) -> usize {
        self.slots.len()
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    fn submit(&mut self, mut operation: Operation) -> Result<(), (Operation, EngineError)> {
        if let Err(error) = operation.check(self, self.files) {
            return Err((operation, error));
        }
        let Some(slot) = self.vacant.pop() else {
            return Err((operation, EngineError::Full { depth: self.depth() }));
        };
        let ours = self.pool.as_ref().is_some_and(|pool| pool.is(operation.buffer.pool()));
        let transfer = Transfer {
            target: Target::Registered(Fixed(operation.file.0)),
            direction: operation.direction,
            priority: operation.priority,
            registered_buffer: ours.then(|| operation.buffer.index()),
            offset: operation.offset,
            start: operation.buffer.as_mut_ptr(),
            length: operation.length,
            done: 0,
            retries: 0,
        };
        // SAFETY: the memory is the operation's own buffer, which lies in `slots` from here until
        // the kernel has completed the transfer: `reap` takes it out only then, `drop` waits for
        // that, and nothing touches the bytes meanwhile. The bytes lie apart from the buffer, so
        // moving it moves none of them. `check` has compared the length with the buffer's.
        let pushed = unsafe { self.queue.push(slot as u64, &transfer) };
        if let Err(source) = pushed {
            self.vacant.push(slot);
            return Err((operation, EngineError::Enter { source }));
        }
        self.slots[slot] = Some(InFlight { operation, transfer });
        Ok(())
    }

    fn close_file(&mut self, file: FileSlot) -> Result<(), EngineError> {
        self.unregister_file(file)
    }

    fn reap(
        &mut self,
        min_wait: usize,
        completions: &mut Vec<Completion>,
    ) -> Result<(), EngineError> {
        let wanted = completions.len() + min_wait.min(self.in_flight());
        let mut entered = false;
        loop {
            while let Some((key, result)) = self.queue.pop() {
                let slot = usize::try_from(key).expect("keys are indexes of slots");
                let InFlight { transfer, .. } =
                    self.slots[slot].as_mut().expect("the kernel completes what is in flight");
                let outcome = match transfer.advance(result) {
                    Some(outcome) => outcome,
                    // SAFETY: as in `submit`: the operation is still in its slot, and stays there.
                    None => match unsafe { self.queue.push(key, transfer) } {
                        Ok(()) => continue,
                        Err(error) => Err(error),
                    },
                };
                completions.extend(self.retire(slot, outcome));
            }
            let missing = wanted.saturating_sub(completions.len());
            if (entered && missing == 0 && self.queue.unsubmitted() == 0) || self.in_flight() == 0 {
                return Ok(());
            }
            self.queue.enter(missing).map_err(|source| EngineError::Enter { source })?;
            entered = true;
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // What was not submitted the kernel has never seen; what it has seen it must give back
        // before the buffers in `slots` may go.
        self.queue.settle(|_, _| {});
    }
}
