//! Loop disks, pin directories and writers for the tests; everything is taken away when dropped,
//! also by a panic.

use redoubt_log::{ByteRange, DiskIndex};
use redoubt_tracker::device::BlockDevice;
use redoubt_tracker::probe::{Attached, Probe, ProbeOptions};
use redoubt_tracker::source::{BioKey, Operation};
use redoubt_tracker::{Array, ChangeSource, Event};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Direct writes come from memory aligned to this.
const ALIGNMENT: usize = 4096;

/// Runs a command; its standard output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// A loop disk over a sparse file.
pub struct LoopDisk {
    pub path: PathBuf,
    _directory: TempDir,
}

impl LoopDisk {
    pub fn new(bytes: u64) -> Self {
        Self::over(TempDir::new().expect("a directory"), bytes, true)
    }

    pub fn over(directory: TempDir, bytes: u64, direct: bool) -> Self {
        let backing = directory.path().join("disk.img");
        File::create(&backing).and_then(|file| file.set_len(bytes)).expect("a backing file");
        let name = backing.to_str().expect("a plain path");
        let direct = format!("--direct-io={}", if direct { "on" } else { "off" });
        let path = run("losetup", &[&direct, "--find", "--show", name]).into();
        Self { path, _directory: directory }
    }

    /// One partition from 1 MiB on, of this many MiB.
    pub fn partition(&self, mebibytes: u64) -> PathBuf {
        let script = self._directory.path().join("table");
        std::fs::write(&script, format!("label: gpt\nstart=1MiB, size={mebibytes}MiB\n"))
            .expect("a table");
        let disk = self.path.to_str().expect("a plain path");
        let command = format!(
            "sfdisk --quiet --no-reread --no-tell-kernel {disk} < {} && partx -a {disk}",
            script.display()
        );
        run("sh", &["-c", &command]);
        format!("{disk}p1").into()
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // Fails where there are no partitions.
        let _ = Command::new("partx").arg("-d").arg(&self.path).output();
        let detached = Command::new("losetup").arg("-d").arg(&self.path).status();
        if !detached.is_ok_and(|status| status.success()) {
            eprintln!("left behind: {}", self.path.display());
        }
    }
}

/// A pin directory of its own.
pub struct PinDirectory(pub PathBuf);

impl PinDirectory {
    pub fn new(test: &str) -> Self {
        let name = format!("redoubt-test-{}-{test}", std::process::id());
        Self(Path::new("/sys/fs/bpf").join(name))
    }

    pub fn attach(&self, ring_bytes: u32) -> Attached {
        Probe::attach(&self.0, ProbeOptions { ring_bytes }).expect("the tracker attaches")
    }
}

impl Drop for PinDirectory {
    fn drop(&mut self) {
        Probe::detach(&self.0).expect("the tracker detaches");
    }
}

/// Bytes as a length in memory.
pub fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a 64-bit machine")
}

/// Memory for direct I/O.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    pub fn new(length: usize) -> Self {
        let memory = vec![0; length + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, length }
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

pub fn open_direct(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .expect("a device")
}

/// Writes a range with one byte value, past the page cache.
pub fn write_direct(file: &File, range: ByteRange, value: u8) -> std::io::Result<()> {
    let mut memory = Aligned::new(size(range.length));
    memory.bytes().fill(value);
    file.write_all_at(memory.bytes(), range.offset)
}

/// The whole content of a device, read past the page cache.
pub fn content(path: &Path) -> Vec<u8> {
    let device = BlockDevice::resolve(path).expect("a device");
    let mut memory = Aligned::new(size(device.length));
    open_direct(path).read_exact_at(memory.bytes(), 0).expect("a read");
    memory.bytes().to_vec()
}

/// An event, kept.
#[derive(Debug)]
pub enum Kept {
    Submitted { disk: DiskIndex, range: ByteRange, operation: Operation, data: Option<Vec<u8>> },
    Completed { disk: DiskIndex, range: ByteRange, failed: bool },
    Split { front: BioKey, parent: BioKey, range: ByteRange },
}

impl From<Event<'_>> for Kept {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Submitted { disk, range, operation, data, .. } => {
                Self::Submitted { disk, range, operation, data: data.map(<[_]>::concat) }
            }
            Event::Completed { disk, range, failed, .. } => Self::Completed { disk, range, failed },
            Event::Split { front, parent, range, .. } => Self::Split { front, parent, range },
        }
    }
}

/// Everything the ring holds now.
pub fn drain(attached: &mut Attached) -> Vec<Kept> {
    let mut kept = Vec::new();
    let until = attached.produced();
    while attached.drain(until, &mut |event| kept.push(event.into())) < until {
        std::thread::yield_now();
    }
    kept
}

pub fn marks(attached: &Attached, disk: DiskIndex, array: Array) -> Vec<ByteRange> {
    let mut found = Vec::new();
    attached.marks(disk, array, &mut |range| found.push(range));
    found
}

pub fn is_marked(marks: &[ByteRange], range: ByteRange) -> bool {
    marks.iter().any(|mark| mark.contains(&range))
}
