//! Where a run keeps what it makes: one directory on a disk, gone with its owner; the source disks
//! in it; and whether a copy is one. Nothing outside the directory is ever written to, but for the
//! loop devices over its files.

use crate::stop;
use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use redoubt_e2e::command::run;
use redoubt_e2e::disk::LoopDisk;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Content is made in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

/// Pieces that stand together, full or empty, on a half empty disk: files of some megabytes.
const RUN_PIECES: u64 = 4;

/// Of the kernel's statistics of a disk: the word that counts written sectors, and their size.
const WRITTEN_SECTORS: usize = 6;
const SECTOR_BYTES: u64 = 512;

/// A directory for one run.
pub struct Place {
    directory: TempDir,
}

/// A directory for one part of a run.
pub struct Room {
    directory: TempDir,
}

impl Place {
    /// A new one below a directory, which must have so much room.
    pub fn new(under: &Path, room_bytes: u64) -> Result<Self> {
        let is_root = nix::unistd::Uid::effective().is_root();
        ensure!(is_root, "loop devices and BPF programs need root: run the bench as root");
        let free = nix::sys::statvfs::statvfs(under)
            .with_context(|| format!("no room can be found in {}", under.display()))?;
        let free = free.blocks_available() * free.fragment_size();
        ensure!(
            free > room_bytes,
            "{} has {} MiB free, {} MiB are needed: give another --directory, or less --size",
            under.display(),
            free >> 20,
            room_bytes >> 20
        );
        let prefix = format!("redoubt-bench-{}-", std::process::id());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir_in(under)?;
        Ok(Self { directory })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// An empty directory of its own, once everything written before is on the disk: what one
    /// contender left to be written must not cost the next one time.
    pub fn room(&self) -> Result<Room> {
        stop::check()?;
        nix::unistd::syncfs(File::open(self.path())?)?;
        Ok(Room { directory: TempDir::new_in(self.path())? })
    }
}

impl Room {
    /// Its path.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// What is on a source disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Content {
    /// Random bytes everywhere.
    Incompressible,
    /// Random bytes in every other 4 MiB, never written between.
    HalfEmpty,
}

impl Content {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Incompressible => "incompressible",
            Self::HalfEmpty => "half empty",
        }
    }

    fn has(self, piece: u64) -> bool {
        match self {
            Self::Incompressible => true,
            Self::HalfEmpty => (piece / RUN_PIECES).is_multiple_of(2),
        }
    }
}

/// A disk to be protected or copied.
pub struct Source {
    disk: LoopDisk,
    bytes: u64,
}

impl Source {
    /// A loop disk over a new file of whole MiB.
    pub fn make(place: &Path, content: Content, bytes: u64, seed: u64) -> Result<Self> {
        let path = place.join("source.img");
        let mut file = File::create_new(&path)?;
        file.set_len(bytes)?;
        let mut random = StdRng::seed_from_u64(seed);
        let mut data = vec![0; PIECE_BYTES];
        for piece in (0..bytes / PIECE_BYTES as u64).filter(|piece| content.has(*piece)) {
            stop::check()?;
            random.fill_bytes(&mut data);
            file.seek(SeekFrom::Start(piece * PIECE_BYTES as u64))?;
            file.write_all(&data)?;
        }
        file.sync_all()?;
        Ok(Self { disk: LoopDisk::over(&path)?, bytes })
    }

    /// Its device.
    pub fn device(&self) -> &Path {
        &self.disk.device
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes written to it since it was attached, as the kernel counts them.
    pub fn written_bytes(&self) -> Result<u64> {
        let name = self.device().file_name().context("a device has a name")?;
        let path = Path::new("/sys/class/block").join(name).join("stat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let sectors = text.split_whitespace().nth(WRITTEN_SECTORS);
        let sectors: u64 = sectors.context("a short line of statistics")?.parse()?;
        Ok(sectors * SECTOR_BYTES)
    }

    /// Empties the kernel's cache of it, so that every reader reads the disk.
    pub fn forget(&self) -> Result<()> {
        stop::check()?;
        self.disk.flush()
    }

    /// Fails where a file does not hold exactly what the disk holds.
    pub fn expect_equal(&self, copy: &Path) -> Result<()> {
        self.forget()?;
        expect_equal(self.device(), copy)?;
        // What comparing has cached would slow direct writes down, which have to drop it first.
        self.forget()
    }
}

/// Fails where two files, or a disk and a file, differ.
pub fn expect_equal(one: &Path, other: &Path) -> Result<()> {
    let arguments: [&OsStr; 2] = [one.as_ref(), other.as_ref()];
    run("cmp", &arguments).map(drop).with_context(|| {
        format!("{} is no copy of {}: no time of it counts", other.display(), one.display())
    })
}

/// An empty file for a copy, as large as it will be, without content.
pub fn empty_sink(room: &Path, bytes: u64) -> Result<PathBuf> {
    let path = room.join("sink.img");
    fs::File::create_new(&path)?.set_len(bytes)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_differs_or_is_cut_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = directory.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let source = file("source", b"abcd");
        assert!(expect_equal(&source, &file("same", b"abcd")).is_ok());
        for (name, content) in [("other", b"abXd".as_slice()), ("cut", b"abc"), ("more", b"abcde")]
        {
            let error = expect_equal(&source, &file(name, content)).unwrap_err();
            assert!(error.to_string().contains("no time of it counts"), "{error}");
        }
    }

    #[test]
    fn half_of_a_half_empty_disk_is_full() {
        let full = (0..64).filter(|piece| Content::HalfEmpty.has(*piece)).count();
        assert_eq!(full, 32);
        assert!(Content::HalfEmpty.has(3) && !Content::HalfEmpty.has(4));
    }
}
