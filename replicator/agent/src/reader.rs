//! Reads of `D` from the disks: a bounded number at once, direct, at idle priority. It never
//! decides what to read.

use crate::error::AgentError;
use redoubt_engine::buffer::BufferPool;
use redoubt_engine::ring::{BlockQueue, BlockingQueue, Completion, Direction, FileSlot, Operation};
use redoubt_engine::ring::{Priority, Ring};
use redoubt_log::DiskIndex;
use redoubt_tracker::ReadOrder;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Reads at once: what keeps a disk and a line of 10 Gbit/s busy; each holds a buffer of
/// [`READ_BYTES`].
const DEPTH: usize = 8;

/// Bytes of one read: the payload of a frame.
pub(crate) const READ_BYTES: u64 = 1 << 20;

/// A finished read: its bytes, or why there are none.
pub(crate) struct Finished {
    pub order: ReadOrder,
    pub completion: Completion,
}

/// The queue of reads of all disks.
pub(crate) struct Reader {
    queue: Box<dyn BlockQueue>,
    pool: BufferPool,
    slots: HashMap<DiskIndex, FileSlot>,
    orders: HashMap<u64, ReadOrder>,
    tokens: u64,
    completions: Vec<Completion>,
}

impl Reader {
    /// A queue over these disks; by io_uring, or where that is not permitted by blocking reads.
    pub fn new(disks: Vec<(DiskIndex, File)>) -> Result<Self, AgentError> {
        let pool = BufferPool::new(DEPTH, usize::try_from(READ_BYTES).expect("1 MiB"));
        let (indexes, files): (Vec<_>, Vec<_>) = disks.into_iter().unzip();
        let numbered = (0..).map(FileSlot);
        let slots = indexes.into_iter().zip(numbered).collect();
        let queue: Box<dyn BlockQueue> = match uring(&files, &pool) {
            Ok(ring) => Box::new(ring),
            Err(reason) => {
                tracing::warn!(%reason, "reading without io_uring");
                Box::new(BlockingQueue::new(DEPTH, files))
            }
        };
        let (orders, tokens, completions) = (HashMap::new(), 0, Vec::new());
        Ok(Self { queue, pool, slots, orders, tokens, completions })
    }

    /// Reads under way.
    pub fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    /// Whether another read would be taken.
    pub fn has_room(&self) -> bool {
        self.queue.in_flight() < DEPTH && self.pool.available() > 0
    }

    /// Issues a read; needs [`has_room`](Self::has_room).
    pub fn submit(&mut self, order: ReadOrder) -> Result<(), AgentError> {
        let buffer = self.pool.take().expect("the caller asked for room");
        let file = self.slots[&order.disk];
        let length = usize::try_from(order.range.length).expect("at most a frame");
        self.tokens += 1;
        self.orders.insert(self.tokens, order);
        let operation = Operation {
            token: self.tokens,
            file,
            offset: order.range.offset,
            length,
            direction: Direction::Read,
            priority: Priority::Idle,
            buffer,
        };
        self.queue.submit(operation).map_err(|(_, source)| AgentError::Engine(source))
    }

    /// Reads a disk no more and lets its device go; reads under way end as they would have.
    pub fn close(&mut self, disk: DiskIndex) -> Result<(), AgentError> {
        match self.slots.remove(&disk) {
            Some(file) => self.queue.close_file(file).map_err(AgentError::Engine),
            None => Ok(()),
        }
    }

    /// Starts what was submitted and takes what has ended, waiting for at least `least` reads.
    pub fn reap(&mut self, least: usize) -> Result<Vec<Finished>, AgentError> {
        if self.queue.in_flight() == 0 {
            return Ok(Vec::new());
        }
        self.queue.reap(least, &mut self.completions).map_err(AgentError::Engine)?;
        let orders = &mut self.orders;
        let finished = self.completions.drain(..).map(|completion| {
            let order = orders.remove(&completion.token).expect("each token is used once");
            Finished { order, completion }
        });
        Ok(finished.collect())
    }
}

fn uring(files: &[File], pool: &BufferPool) -> Result<Ring, redoubt_engine::ring::EngineError> {
    let mut ring = Ring::new(DEPTH)?;
    // Where no disk is there, none is read.
    if !files.is_empty() {
        ring.register_files(files)?;
    }
    ring.register_buffers(pool)?;
    Ok(ring)
}

/// Opens a disk for direct reads.
pub(crate) fn open_disk(device: &Path) -> Result<File, AgentError> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
        .open(device)
        .map_err(|source| AgentError::OpenDisk { device: device.to_owned(), source })
}
