//! A site under load whose replicas are garbled behind its back: verify must find exactly that. It
//! garbles replicas only, never a source.

use crate::command::wait_until;
use crate::disk::{Filesystem, LoopDisk, Mounted, scratch};
use crate::load::RandomWrites;
use crate::noise::Noise;
use crate::report::Verified;
use crate::site::{Plan, Role, Site};
use anyhow::{Context, Result, ensure};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// What a difference is named by.
pub const GRANULE_BYTES: u64 = 4096;

/// The disk with the filesystem.
const FILES_BYTES: u64 = 128 << 20;
const FILES: &str = "files";
const RAW: &str = "raw";

const STREAMING_WITHIN: Duration = Duration::from_secs(300);
/// Longer than any test.
const HOT_FOR: Duration = Duration::from_secs(3600);
/// A difference is read again within moments; the rest is the status's turn.
const REPAIRED_WITHIN: Duration = Duration::from_secs(60);

/// Where the kernel runs no program for a completion, everything is read again; a verify that this
/// falls into is told as incomplete, and tried again.
const ATTEMPTS: usize = 5;
const MISSED: &str = "a completion was missed";

/// The load on the raw disk.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Bytes of the disk; random writes go to its first half only.
    pub raw_bytes: u64,
    /// How fast.
    pub megabytes_per_second: u32,
    /// How long at most: longer than the test.
    pub runs: Duration,
}

/// A site with two disks, one under random writes, one with files that come and go. Fields end in
/// this order.
pub struct LoadedSite {
    /// The site.
    pub site: Site,
    writes: RandomWrites,
    noise: Noise,
    files: Mounted,
    /// The disk under random writes.
    pub raw: LoopDisk,
    raw_bytes: u64,
    _files_disk: LoopDisk,
    scratch: tempfile::TempDir,
}

impl LoadedSite {
    /// Starts everything and waits until the disks stream.
    pub fn start(load: &Load, seed: u64) -> Result<Self> {
        let scratch = scratch()?;
        let raw = LoopDisk::create(&scratch.path().join("raw.img"), load.raw_bytes)?;
        fill_upper_half(&raw, load.raw_bytes)?;
        let files_disk = LoopDisk::create(&scratch.path().join("files.img"), FILES_BYTES)?;
        Filesystem::Ext4.make(&files_disk)?;
        let files = Mounted::new(Filesystem::Ext4, &files_disk, &scratch.path().join("files"))?;
        let noise = Noise::start(&files.path.join("noise"), seed)?;
        let writes = RandomWrites::start_over(
            &raw.device,
            Some(load.raw_bytes / 2),
            load.megabytes_per_second,
            load.runs,
            &scratch.path().join("fio.log"),
        )?;
        let disks = vec![(RAW, raw.device.as_path()), (FILES, files_disk.device.as_path())];
        let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "5s" })?;
        site.wait_for_streaming(STREAMING_WITHIN)?;
        let (raw_bytes, _files_disk) = (load.raw_bytes, files_disk);
        Ok(Self { site, writes, noise, files, raw, raw_bytes, _files_disk, scratch })
    }

    /// A verify that must compare everything and find nothing.
    pub fn expect_equal(&mut self, role: Role) -> Result<Verified> {
        let verified = self.undisturbed(|loaded| {
            let verified = loaded.site.verify(role)?;
            let ended = verified.equal || !verified.differences.is_empty();
            ensure!(ended, "not everything was compared: {verified:?}");
            Ok(verified)
        })?;
        ensure!(verified.equal, "not equal: {verified:?}");
        let all = verified.compared_bytes + verified.discarded_bytes;
        ensure!(all == self.raw_bytes + FILES_BYTES, "not everything: {verified:?}");
        ensure!(self.writes.is_running()?, "the load has ended too early");
        Ok(verified)
    }

    /// Garbles the byte of the raw disk's replica where the load does not write: exactly its
    /// granule must be found, and be right again soon.
    pub fn expect_found_and_repaired(&mut self, offset: u64, role: Role) -> Result<()> {
        ensure!(offset >= self.raw_bytes / 2, "{offset} is under the load");
        let granule = (RAW.to_owned(), offset / GRANULE_BYTES * GRANULE_BYTES, GRANULE_BYTES);
        self.undisturbed(|loaded| {
            loaded.garble(offset)?;
            let verified = loaded.site.verify(role)?;
            ensure!(verified.differences == [granule.clone()], "byte {offset}: {verified:?}");
            Ok(())
        })?;
        let replica = self.replica()?;
        let source = read_byte(&self.raw.device, offset)?;
        wait_until("the repair", REPAIRED_WITHIN, || {
            Ok((read_byte(&replica, offset)? == source).then_some(()))
        })
    }

    /// Tries again what failed while the tracker missed a completion: nothing else.
    pub fn undisturbed<T>(&mut self, mut attempt: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        for _ in 1..ATTEMPTS {
            let before = self.misses()?;
            match attempt(self) {
                Err(error) if self.misses()? > before => {
                    eprintln!("tried again, since {MISSED}: {error:#}");
                    self.site.wait_for_streaming(STREAMING_WITHIN)?;
                }
                ended => return ended,
            }
        }
        attempt(self)
    }

    /// How often the agent said so.
    pub fn misses(&self) -> Result<usize> {
        Ok(self.site.logged(Role::Agent)?.matches(MISSED).count())
    }

    /// Garbles a byte where the load writes: either it is found, or the load has repaired it.
    /// Returns whether it was found.
    pub fn garble_under_load(&mut self, offset: u64, role: Role) -> Result<bool> {
        let granule = (RAW.to_owned(), offset / GRANULE_BYTES * GRANULE_BYTES, GRANULE_BYTES);
        self.undisturbed(|loaded| {
            loaded.garble(offset)?;
            let verified = loaded.site.verify(role)?;
            ensure!(
                verified.equal || verified.differences == [granule.clone()],
                "byte {offset} was garbled: {verified:?}"
            );
            Ok(!verified.equal)
        })
    }

    /// More load: one block of the raw disk, written again and again until what is returned ends.
    pub fn heat(&self, offset: u64) -> Result<RandomWrites> {
        let log = self.scratch.path().join("hot.log");
        RandomWrites::start_over_one_block(&self.raw.device, offset, HOT_FOR, &log)
    }

    fn garble(&self, offset: u64) -> Result<()> {
        let wrong = read_byte(&self.raw.device, offset)? ^ 0x40;
        let file = OpenOptions::new().write(true).open(self.replica()?)?;
        file.write_all_at(&[wrong], offset)?;
        Ok(file.sync_all()?)
    }

    fn replica(&self) -> Result<std::path::PathBuf> {
        let disks = self.site.status()?;
        let raw = disks.into_iter().find(|disk| disk.name == RAW).context("no raw disk")?;
        raw.replica_path.context("no replica")
    }

    /// The load ends, and everything must be equal byte by byte.
    pub fn finish(self) -> Result<()> {
        // What is taken apart ends in the opposite order: the site first.
        let Self {
            scratch: _scratch, _files_disk, raw: _raw, files, noise, writes, mut site, ..
        } = self;
        drop(writes);
        noise.stop()?;
        files.unmount()?;
        site.wait_for_streaming(STREAMING_WITHIN)?;
        site.expect_equal_replicas()?;
        site.stop_role(Role::Agent)?;
        site.stop_role(Role::Target)
    }
}

fn read_byte(path: &Path, offset: u64) -> Result<u8> {
    let mut byte = [0];
    OpenOptions::new().read(true).open(path)?.read_exact_at(&mut byte, offset)?;
    Ok(byte[0])
}

/// Data over the third quarter of the disk; the last stays zero.
fn fill_upper_half(disk: &LoopDisk, size_bytes: u64) -> Result<()> {
    let piece: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    for offset in (size_bytes / 2..size_bytes / 4 * 3).step_by(piece.len()) {
        disk.write_at(&piece, offset)?;
    }
    disk.flush()
}
