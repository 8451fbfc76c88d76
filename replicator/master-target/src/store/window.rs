//! Files read and written through aligned memory, whole blocks at a time, so that the disk takes
//! and gives them without a copy on the way. A window never shows bytes that it did not read, and
//! what an appender was given is written only by `finish`.

use super::error::Result;
use redoubt_engine::buffer::{AlignedBuffer, BLOCK_BYTES};
use redoubt_engine::storage::{BlockFile, ReadRequest, WriteRequest};
use std::sync::Arc;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Whole blocks of one file, read as they are asked for, with what stands behind them.
pub(super) struct Window {
    memory: AlignedBuffer,
    /// Bytes that it reads ahead at most.
    most: usize,
    /// Where in the file the memory begins, and how many of its bytes are filled.
    at: u64,
    filled: usize,
}

impl Window {
    /// Takes no memory before its first read.
    pub(super) fn new(most: usize) -> Self {
        let most = most.next_multiple_of(BLOCK_BYTES);
        Self { memory: AlignedBuffer::zeroed(0), most, at: 0, filled: 0 }
    }

    /// At least `length` bytes from `offset`, which must lie within the file; reads ahead as far as
    /// `end` and the window allow. All calls are for the same file, and what they showed must not
    /// have changed since.
    pub(super) fn bytes(
        &mut self,
        file: &dyn BlockFile,
        offset: u64,
        length: usize,
        end: u64,
    ) -> Result<&[u8]> {
        let wanted_end = offset + length as u64;
        if offset < self.at || wanted_end > self.filled_end() {
            self.read(file, offset, wanted_end, end)?;
        }
        let start = usize_of(offset - self.at);
        Ok(&self.memory[start..self.filled])
    }

    /// Moves on to `offset`, keeping what is there already, and fills the rest.
    fn read(&mut self, file: &dyn BlockFile, offset: u64, wanted_end: u64, end: u64) -> Result<()> {
        let start = offset - offset % BLOCK;
        let until = |position: u64| position.next_multiple_of(BLOCK).min(file.size());
        let most = start + self.most as u64;
        // What lies beyond the file is asked for as it is, so that the file itself refuses it.
        let wanted_end = until(wanted_end).max(wanted_end);
        let until = until(end).min(most).max(wanted_end);
        let kept = if self.at <= start { self.filled_end().saturating_sub(start) } else { 0 };
        // A last part of a block is read again: what follows it must begin at a block.
        let kept = usize_of(kept - kept % BLOCK);
        let from = self.filled.min(usize_of(start.saturating_sub(self.at)));
        let length = usize_of(until - start);
        if self.memory.len() < length {
            let mut larger = AlignedBuffer::zeroed(length.next_multiple_of(BLOCK_BYTES));
            larger[..kept].copy_from_slice(&self.memory[from..from + kept]);
            self.memory = larger;
        } else {
            self.memory.copy_within(from..from + kept, 0);
        }
        (self.at, self.filled) = (start, kept);
        let buffer = &mut self.memory[kept..length];
        file.read(&mut [ReadRequest { offset: start + kept as u64, buffer }])?;
        self.filled = length;
        Ok(())
    }

    fn filled_end(&self) -> u64 {
        self.at + self.filled as u64
    }
}

/// Writes a file from one end to the other, in large pieces of whole blocks.
pub(super) struct Appender {
    file: Arc<dyn BlockFile>,
    memory: AlignedBuffer,
    /// Where in the file the memory begins, and how many of its bytes are used.
    at: u64,
    used: usize,
}

impl Appender {
    /// Begins at `at`, a block's boundary, and collects `bytes` between two writes.
    pub(super) fn new(file: Arc<dyn BlockFile>, at: u64, bytes: usize) -> Self {
        assert!(at.is_multiple_of(BLOCK), "an appender begins at a block");
        let memory = AlignedBuffer::zeroed(bytes.next_multiple_of(BLOCK_BYTES));
        Self { file, memory, at, used: 0 }
    }

    /// Where the next byte will stand.
    pub(super) fn position(&self) -> u64 {
        self.at + self.used as u64
    }

    /// Adds bytes.
    pub(super) fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = self.room(1)?;
            let length = room.len().min(bytes.len());
            room[..length].copy_from_slice(&bytes[..length]);
            self.took(length);
            bytes = &bytes[length..];
        }
        Ok(())
    }

    /// Room for `least` bytes and more, to be filled in place; at most what it collects, less a
    /// block.
    pub(super) fn room(&mut self, least: usize) -> Result<&mut [u8]> {
        assert!(least + BLOCK_BYTES <= self.memory.len(), "no room is ever that large");
        if self.memory.len() - self.used < least {
            self.write_blocks()?;
        }
        Ok(&mut self.memory[self.used..])
    }

    /// The first `length` bytes of the room were filled.
    pub(super) fn took(&mut self, length: usize) {
        self.used += length;
        assert!(self.used <= self.memory.len(), "more was taken than there was room");
    }

    /// Writes what is left, with zeros up to the next block.
    pub(super) fn finish(mut self) -> Result<()> {
        let end = self.used.next_multiple_of(BLOCK_BYTES);
        self.memory[self.used..end].fill(0);
        self.used = end;
        self.write_blocks()
    }

    /// Writes the whole blocks and keeps the rest.
    fn write_blocks(&mut self) -> Result<()> {
        let whole = self.used - self.used % BLOCK_BYTES;
        if whole > 0 {
            self.file.write(&[WriteRequest { offset: self.at, data: &self.memory[..whole] }])?;
            self.memory.copy_within(whole..self.used, 0);
            (self.at, self.used) = (self.at + whole as u64, self.used - whole);
        }
        Ok(())
    }
}

fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a distance within a window fits in memory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use redoubt_engine::lying::LyingStorage;
    use redoubt_engine::storage::{Open, Storage};
    use std::path::Path;

    const SIZE: usize = 100_000;

    fn file(content: &[u8]) -> Arc<dyn BlockFile> {
        let storage = LyingStorage::new(1);
        let file = storage.open(Path::new("f"), Open::CreateSparse(content.len() as u64)).unwrap();
        file.write(&[WriteRequest { offset: 0, data: content }]).unwrap();
        file
    }

    #[test]
    fn a_window_shows_what_the_file_holds_wherever_it_is_moved() {
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let content: Vec<u8> = (0..SIZE).map(|_| random.random()).collect();
            let file = file(&content);
            let mut window = Window::new(random.random_range(1..30_000));
            let mut offset = 0;
            for _ in 0..40 {
                if random.random_bool(0.2) {
                    offset = random.random_range(0..SIZE);
                }
                let length = random.random_range(0..=(SIZE - offset).min(9000));
                let end = random.random_range(offset + length..=SIZE);
                let shown = window.bytes(&*file, offset as u64, length, end as u64).unwrap();
                assert!(shown.len() >= length, "seed {seed}");
                assert!(*shown == content[offset..offset + shown.len()], "seed {seed}");
                offset += length;
            }
        }
    }

    #[test]
    fn a_failed_read_leaves_no_bytes_that_were_not_read() {
        let content = vec![7; SIZE];
        let file = file(&content);
        let mut window = Window::new(8192);
        window.bytes(&*file, 0, 100, 8192).unwrap();
        assert!(window.bytes(&*file, SIZE as u64 - 10, 20, SIZE as u64).is_err());
        assert!(window.bytes(&*file, 4000, 8000, 20_000).unwrap().iter().all(|byte| *byte == 7));
    }

    #[test]
    fn an_appender_leaves_what_it_was_given_in_order() {
        for seed in 0..100 {
            let mut random = StdRng::seed_from_u64(seed);
            let file = file(&vec![9; 1 << 18]);
            let mut appender = Appender::new(file.clone(), 4096, 20_000);
            let mut expected = Vec::new();
            while expected.len() < 120_000 {
                let bytes: Vec<u8> =
                    (0..random.random_range(0..9000)).map(|_| random.random()).collect();
                assert_eq!(appender.position(), 4096 + expected.len() as u64);
                if random.random() {
                    appender.put(&bytes).unwrap();
                } else {
                    appender.room(bytes.len()).unwrap()[..bytes.len()].copy_from_slice(&bytes);
                    appender.took(bytes.len());
                }
                expected.extend(bytes);
            }
            appender.finish().unwrap();
            let mut written = vec![0; expected.len()];
            file.read(&mut [ReadRequest { offset: 4096, buffer: &mut written }]).unwrap();
            assert!(written == expected, "seed {seed}");
        }
    }
}
