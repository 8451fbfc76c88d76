//! A directory tree through blocking system calls: the plain twin and oracle of the io_uring one.
//! Must never report a range as written that the system took only in part.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use crate::buffer::BLOCK_BYTES;
use crate::device;
use crate::locks::{DiskLock, LockError};
use crate::steps::{self, named};
use crate::storage::{BlockFile, Open, ReadRequest, Result, Storage, StorageError, WriteRequest};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Zeros are written from a buffer of this size where a range cannot be punched: large enough that
/// the calls do not count, small enough to be static. Aligned, so that direct I/O takes it as it
/// is.
static ZEROS: Zeros = Zeros([0; 64 * 1024]);

#[repr(align(4096))]
struct Zeros([u8; 64 * 1024]);

/// A directory tree on a mounted file system. The root need not exist before `create_directory`.
#[derive(Clone, Debug)]
pub struct DirectoryStorage {
    root: PathBuf,
}

impl DirectoryStorage {
    /// The tree below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        DirectoryStorage { root: root.into() }
    }

    /// Where a path of this tree lies; an absolute path stays itself.
    pub(crate) fn resolve(&self, path: &Path) -> Result<PathBuf> {
        let full =
            if path.as_os_str().is_empty() { self.root.clone() } else { self.root.join(path) };
        named(&full, || "resolve".into(), steps::check_path(path))?;
        Ok(full)
    }

    /// Opens without a virtual call.
    pub(crate) fn open_file(&self, path: &Path, how: Open) -> Result<DirectoryFile> {
        let full = self.resolve(path)?;
        let opened = match how {
            Open::ReadOnly => OpenOptions::new().read(true).open(&full),
            Open::ReadWrite => OpenOptions::new().read(true).write(true).open(&full),
            // Of a block device this makes the caller its one claimant, as a mount is. An agent
            // that protects it claims nothing, and has its lock.
            Open::Claim => {
                OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(&full)
            }
            Open::CreateSparse(size) => create(&full, |file| file.set_len(size)),
            Open::CreateAllocated(size) => create(&full, |file| allocate(file, size)),
        };
        let opened = opened.and_then(|file| {
            let is_device = file.metadata()?.file_type().is_block_device();
            if how == Open::Claim && !is_device {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a block device"));
            }
            // A device's metadata has no size; its end has.
            let end = lseek(&file, 0, Whence::SeekEnd)?;
            let lock = if how == Open::Claim { Some(self.lock(&file)?) } else { None };
            Ok(DirectoryFile {
                path: full.clone(),
                file,
                size: to_u64(end)?,
                is_device,
                _lock: lock,
            })
        });
        named(&full, || open_words(how), opened)
    }

    fn lock(&self, device: &File) -> io::Result<DiskLock> {
        let bytes = device::bytes(device.metadata()?.rdev())?;
        let root = std::path::absolute(&self.root).unwrap_or_else(|_| self.root.clone());
        let who = format!("the target with --data {}", root.display());
        DiskLock::take(bytes, &who).map_err(|error| match error {
            LockError::Held(_) => io::Error::new(io::ErrorKind::ResourceBusy, error),
            LockError::Failed { .. } | LockError::Open { .. } => io::Error::other(error),
        })
    }
}

impl Storage for DirectoryStorage {
    fn open(&self, path: &Path, how: Open) -> Result<Arc<dyn BlockFile>> {
        Ok(Arc::new(self.open_file(path, how)?))
    }

    fn create_directory(&self, path: &Path) -> Result<()> {
        let full = self.resolve(path)?;
        let created = create_directories(&full);
        named(&full, || "create directory".into(), created)
    }

    fn list(&self, path: &Path) -> Result<Vec<String>> {
        let full = self.resolve(path)?;
        named(&full, || "list".into(), list(&full))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let full = self.resolve(path)?;
        named(&full, || "remove".into(), std::fs::remove_file(&full))
    }

    fn remove_tree(&self, path: &Path) -> Result<()> {
        let full = self.resolve(path)?;
        named(&full, || "remove with all below it".into(), std::fs::remove_dir_all(&full))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let (from, to) = (self.resolve(from)?, self.resolve(to)?);
        let renamed = std::fs::rename(&from, &to);
        named(&from, || format!("rename to {}", to.display()), renamed)
    }

    fn sync_directory(&self, path: &Path) -> Result<()> {
        let full = self.resolve(path)?;
        named(&full, || "sync directory".into(), File::open(&full).and_then(|dir| dir.sync_all()))
    }

    fn load(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        let full = self.resolve(path)?;
        let loaded = match std::fs::read(&full) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        };
        named(&full, || "load".into(), loaded)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        steps::replace(self, path, bytes)
    }

    fn free_space(&self) -> Result<u64> {
        let space = nix::sys::statvfs::statvfs(&self.root).map_err(io::Error::from);
        let space = named(&self.root, || "ask for free space".into(), space)?;
        Ok(space.blocks_available().saturating_mul(space.fragment_size()))
    }
}

/// An open file or block device of a [`DirectoryStorage`].
#[derive(Debug)]
pub(crate) struct DirectoryFile {
    path: PathBuf,
    file: File,
    size: u64,
    is_device: bool,
    /// Of a device that was claimed.
    _lock: Option<DiskLock>,
}

impl DirectoryFile {
    /// The descriptor, for the io_uring twin.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Names this file in an error.
    pub(crate) fn error(&self, operation: String, source: io::Error) -> StorageError {
        StorageError { path: self.path.clone(), operation, source }
    }

    /// Refuses a range past the end.
    pub(crate) fn check(&self, verb: &str, offset: u64, length: usize) -> Result<()> {
        steps::check_range(self.size, offset, length as u64)
            .map_err(|source| self.error(format!("{verb} {length} bytes at {offset}"), source))
    }

    /// Zeroes a range: by `punch`, which says whether it could, and by `write` what it could not.
    pub(crate) fn zero_by(
        &self,
        offset: u64,
        length: u64,
        punch: impl Fn(u64, u64) -> io::Result<bool>,
        write: impl Fn(&[WriteRequest<'_>]) -> Result<()>,
    ) -> Result<()> {
        let words = || format!("zero {length} bytes at {offset}");
        named(&self.path, words, steps::check_range(self.size, offset, length))?;
        let end = offset + length;
        // A device zeroes whole logical blocks only, so the parts around them are written.
        let (first, last) = match self.is_device {
            true => (offset.next_multiple_of(BLOCK).min(end), (end - end % BLOCK).max(offset)),
            false => (offset, end),
        };
        if first >= last {
            return write_zeros(offset, end, write);
        }
        write_zeros(offset, first, &write)?;
        if !named(&self.path, words, punch(first, last - first))? {
            write_zeros(first, last, &write)?;
        }
        write_zeros(last, end, write)
    }

    /// Whether the system could zero the range by itself.
    pub(crate) fn punch(&self, offset: u64, length: u64) -> io::Result<bool> {
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE;
        let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
        // Block devices take these two as well. What neither can do (a device's partial sectors, a
        // file system without holes) is written out.
        for flag in [punch, zero] {
            let flags = flag | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            match fallocate(&self.file, flags, to_i64(offset)?, to_i64(length)?) {
                Ok(()) => return Ok(true),
                Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    fn data_after(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        if offset >= self.size {
            return Ok(None);
        }
        if self.is_device {
            return Ok(Some((offset, self.size - offset)));
        }
        // Both seeks are absolute and reads name their offsets, so threads may share the
        // descriptor.
        let start = match lseek(&self.file, to_i64(offset)?, Whence::SeekData) {
            Ok(start) => to_u64(start)?,
            Err(Errno::ENXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let end = match lseek(&self.file, to_i64(start)?, Whence::SeekHole) {
            Ok(end) => to_u64(end)?,
            Err(error) => return Err(error.into()),
        };
        Ok((start < self.size).then(|| (start, end.min(self.size) - start)))
    }
}

impl BlockFile for DirectoryFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, batch: &mut [ReadRequest<'_>]) -> Result<()> {
        for request in batch {
            let (offset, length) = (request.offset, request.buffer.len());
            self.check("read", offset, length)?;
            self.file
                .read_exact_at(request.buffer, offset)
                .map_err(|source| self.error(format!("read {length} bytes at {offset}"), source))?;
        }
        Ok(())
    }

    fn write(&self, batch: &[WriteRequest<'_>]) -> Result<()> {
        for request in batch {
            let (offset, length) = (request.offset, request.data.len());
            self.check("write", offset, length)?;
            self.file.write_all_at(request.data, offset).map_err(|source| {
                self.error(format!("write {length} bytes at {offset}"), source)
            })?;
        }
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64) -> Result<()> {
        let punch = |offset, length| self.punch(offset, length);
        self.zero_by(offset, length, punch, |batch| self.write(batch))
    }

    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        named(&self.path, || format!("look for data at {offset}"), self.data_after(offset))
    }

    fn sync(&self) -> Result<()> {
        named(&self.path, || "sync".into(), self.file.sync_data())
    }

    fn identity(&self) -> Result<Option<String>> {
        let known = match self.is_device {
            true => self.file.metadata().and_then(|metadata| device::identity(metadata.rdev())),
            false => Ok(None),
        };
        named(&self.path, || "ask for its identity".into(), known)
    }
}

fn write_zeros(
    mut offset: u64,
    end: u64,
    write: impl Fn(&[WriteRequest<'_>]) -> Result<()>,
) -> Result<()> {
    while offset < end {
        let step = (end - offset).min(ZEROS.0.len() as u64);
        let data = &ZEROS.0[..usize::try_from(step).unwrap_or(ZEROS.0.len())];
        write(&[WriteRequest { offset, data }])?;
        offset += step;
    }
    Ok(())
}

fn create(path: &Path, grow: impl FnOnce(&File) -> io::Result<()>) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    if let Err(error) = grow(&file) {
        // A file of the wrong size must not be found later; the first error is the one to report.
        std::fs::remove_file(path).ok();
        return Err(error);
    }
    Ok(file)
}

fn allocate(file: &File, size: u64) -> io::Result<()> {
    if size == 0 {
        return Ok(());
    }
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, to_i64(size)?) {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Syncs every parent, made now or found: one found may be a killed process's, not durable yet.
fn create_directories(path: &Path) -> io::Result<()> {
    let mut missing: Vec<&Path> = vec![path];
    while let Some(parent) = missing.last().and_then(|last| last.parent()) {
        if parent.as_os_str().is_empty() {
            break;
        }
        missing.push(parent);
        if parent.is_dir() {
            break;
        }
    }
    for directory in missing.into_iter().rev() {
        match std::fs::create_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            other => other?,
        }
        if let Some(parent) = directory.parent() {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}

fn list(path: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        if steps::is_listed(&name) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn open_words(how: Open) -> String {
    match how {
        Open::ReadOnly => "open for reading".into(),
        Open::ReadWrite => "open for reading and writing".into(),
        Open::Claim => "claim".into(),
        Open::CreateSparse(size) => format!("create sparse with {size} bytes"),
        Open::CreateAllocated(size) => format!("create with {size} bytes allocated"),
    }
}

fn to_i64(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(io::Error::other)
}

fn to_u64(value: i64) -> io::Result<u64> {
    u64::try_from(value).map_err(io::Error::other)
}
