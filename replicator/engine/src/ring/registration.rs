//! Files and buffers that the kernel looks up once instead of with each operation. Must never
//! register memory that could move or go while the ring lives.

use std::fs::File;
use std::os::fd::AsRawFd;

use crate::buffer::BufferPool;
use crate::ring::{EngineError, FileSlot, Ring};

impl Ring {
    /// Registers the files, once: a `FileSlot` is an index into them. The kernel keeps them open.
    pub fn register_files(&mut self, files: &[File]) -> Result<Vec<FileSlot>, EngineError> {
        let descriptors: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        self.queue
            .submitter()
            .register_files(&descriptors)
            .map_err(|source| EngineError::Register { what: "files", source })?;
        self.files = files.len();
        Ok((0..).take(files.len()).map(FileSlot).collect())
    }

    /// Takes a registered file out of its place; the kernel closes it with the last operation.
    pub(super) fn unregister_file(&mut self, file: FileSlot) -> Result<(), EngineError> {
        const NO_FILE: i32 = -1;
        self.queue
            .submitter()
            .register_files_update(file.0, &[NO_FILE])
            .map(drop)
            .map_err(|source| EngineError::Register { what: "no file in the place of one", source })
    }

    /// Registers the pool's buffers, once: operations with its buffers then spare the kernel the
    /// pinning. Those with buffers of other pools go on to work.
    pub fn register_buffers(&mut self, pool: &BufferPool) -> Result<(), EngineError> {
        let vectors: Vec<libc::iovec> = pool
            .addresses()
            .iter()
            .map(|address| libc::iovec {
                iov_base: std::ptr::without_provenance_mut(*address),
                iov_len: pool.buffer_bytes(),
            })
            .collect();
        // SAFETY: each vector is a live allocation of the pool of that length, and stays one while
        // the ring holds the pool: a buffer that is taken goes back into it, never elsewhere.
        unsafe { self.queue.submitter().register_buffers(&vectors) }
            .map_err(|source| EngineError::Register { what: "buffers", source })?;
        self.pool = Some(pool.clone());
        Ok(())
    }
}
