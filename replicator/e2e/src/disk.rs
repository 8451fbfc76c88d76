//! Loop disks and filesystems on them, gone again with their owner, also when it panics or is
//! killed. It must never touch a device that it has not made.

use crate::command::{run, text, wait_until};
use anyhow::{Context, Result};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Unmounting waits for writers that were told to stop.
const UNMOUNT_WITHIN: Duration = Duration::from_secs(20);

/// The kernel closes what a process had registered with io_uring some time after its end.
const DETACHED_WITHIN: Duration = Duration::from_secs(60);

/// Takes the calling thread, and what it starts from now on, into mounts of their own: they end
/// with it.
pub fn keep_mounts_private() -> Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("cannot leave the mount namespace")?;
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .context("cannot make mounts private")
}

/// A directory on a disk (memory would not bear direct I/O everywhere), removed with its owner.
pub fn scratch() -> Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("redoubt-e2e-").tempdir_in("/var/tmp").context("no scratch")
}

/// A block device over a sparse file.
pub struct LoopDisk {
    /// `/dev/loopN`.
    pub device: PathBuf,
    // The device is detached as soon as the last one closes it; this is the first.
    _held: File,
}

impl LoopDisk {
    /// A new disk of zeros.
    pub fn create(file: &Path, size_bytes: u64) -> Result<Self> {
        File::create_new(file)
            .and_then(|made| made.set_len(size_bytes))
            .with_context(|| format!("cannot make {}", file.display()))?;
        Self::over(file)
    }

    /// A disk whose content stands in a file already.
    pub fn over(file: &Path) -> Result<Self> {
        let mut arguments = vec!["--find", "--show", "--direct-io=on"];
        let name = file.to_string_lossy();
        arguments.push(&name);
        let device = PathBuf::from(run("losetup", &arguments)?.trim_end());
        // Else a page that is changed while it is on its way reaches the disk otherwise than it was
        // queued, and where its file is then removed nothing ever corrects it: no tracker can know.
        let queue =
            Path::new("/sys/block").join(device.file_name().context("a device has a name")?);
        std::fs::write(queue.join("queue/stable_writes"), "1").context("stable_writes")?;
        let held = OpenOptions::new().read(true).write(true).open(&device)?;
        // Detaching an open device makes the kernel do it at the last close, whoever dies how.
        run("losetup", &["--detach".as_ref(), device.as_os_str()])?;
        Ok(Self { device, _held: held })
    }

    /// Lets the device go, and waits until it holds nothing: others may have it open for a while.
    pub fn detach(self) -> Result<()> {
        let name = self.device.file_name().context("a device has a name")?;
        let size = Path::new("/sys/block").join(name).join("size");
        drop(self);
        wait_until("the end of a loop device", DETACHED_WITHIN, || {
            Ok((std::fs::read_to_string(&size)?.trim() == "0").then_some(()))
        })
    }

    /// Splits the disk into partitions of these sizes, in MiB, one behind the other from 1 MiB on.
    pub fn partition(&self, mebibytes: &[u64]) -> Result<Partitions<'_>> {
        let mut table = "label: gpt\n".to_owned();
        let mut start = 1;
        for size in mebibytes {
            table.push_str(&format!("start={start}MiB, size={size}MiB\n"));
            start += size;
        }
        let mut script = tempfile::tempfile()?;
        script.write_all(table.as_bytes())?;
        script.rewind()?;
        let mut write = Command::new("sfdisk");
        write.args(["--quiet", "--no-reread", "--no-tell-kernel"]).arg(&self.device).stdin(script);
        let written = write.output().context("cannot run sfdisk")?;
        anyhow::ensure!(written.status.success(), "{}", text(&written.stderr));
        // The kernel reads no tables by itself where it has no code for them.
        run("partx", &["--add".as_ref(), self.device.as_os_str()])?;
        Ok(Partitions { disk: self })
    }

    /// Bytes written to it so far, by the kernel's own count.
    pub fn written_bytes(&self) -> Result<u64> {
        let name = self.device.file_name().context("a device has a name")?;
        let counters = std::fs::read_to_string(Path::new("/sys/block").join(name).join("stat"))?;
        let sectors = counters.split_whitespace().nth(6).context("no sectors written")?;
        Ok(sectors.parse::<u64>()? * 512)
    }

    /// Empties the kernel's cache of the device, so that the next reader sees what is on it.
    pub fn flush(&self) -> Result<()> {
        run("blockdev", &["--flushbufs".as_ref(), self.device.as_os_str()]).map(drop)
    }

    /// Writes straight to the device through the page cache; `flush` makes it final.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let file = OpenOptions::new().write(true).open(&self.device)?;
        file.write_all_at(bytes, offset)?;
        Ok(file.sync_all()?)
    }
}

/// The partitions of a disk, taken from the kernel with their owner: a loop device would keep them
/// for whoever uses it next.
pub struct Partitions<'a> {
    disk: &'a LoopDisk,
}

impl Partitions<'_> {
    /// The device of the nth, from 1.
    pub fn device(&self, number: usize) -> PathBuf {
        format!("{}p{number}", self.disk.device.display()).into()
    }
}

impl Drop for Partitions<'_> {
    fn drop(&mut self) {
        let removed = run("partx", &["--delete".as_ref(), self.disk.device.as_os_str()]);
        if let Err(error) = removed {
            eprintln!("partitions are left behind: {error:#}");
        }
    }
}

/// A filesystem that the oracles know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filesystem {
    /// ext4 with its journal.
    Ext4,
    /// XFS; a copy is mounted without regard to its UUID.
    Xfs,
    /// btrfs.
    Btrfs,
}

impl Filesystem {
    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Makes an empty one.
    pub fn make(self, disk: &LoopDisk) -> Result<()> {
        let force = if self == Self::Ext4 { "-F" } else { "-f" };
        let program = format!("mkfs.{}", self.name());
        run(&program, &["-q".as_ref(), force.as_ref(), disk.device.as_os_str()]).map(drop)
    }

    /// Asks the filesystem's own checker, which must find nothing. The journal must have been
    /// replayed by a mount.
    pub fn check(self, disk: &LoopDisk) -> Result<()> {
        disk.flush()?;
        let (program, options): (_, &[&str]) = match self {
            Self::Ext4 => ("e2fsck", &["-f", "-n"]),
            Self::Xfs => ("xfs_repair", &["-n"]),
            Self::Btrfs => ("btrfs", &["check", "--readonly"]),
        };
        let device = disk.device.to_string_lossy();
        let arguments: Vec<&str> = options.iter().copied().chain([device.as_ref()]).collect();
        run(program, &arguments).map(drop)
    }
}

/// A mounted filesystem, unmounted with its owner.
pub struct Mounted {
    /// Where it is mounted.
    pub path: PathBuf,
    is_mounted: bool,
}

impl Mounted {
    /// Mounts the disk at a directory, which is made.
    pub fn new(filesystem: Filesystem, disk: &LoopDisk, path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        let options = if filesystem == Filesystem::Xfs { "nouuid" } else { "rw" };
        let arguments = ["-t", filesystem.name(), "-o", options];
        let arguments = arguments.iter().map(AsRef::as_ref);
        let arguments: Vec<_> =
            arguments.chain([disk.device.as_os_str(), path.as_os_str()]).collect();
        run("mount", &arguments)?;
        Ok(Self { path: path.to_path_buf(), is_mounted: true })
    }

    /// Writes everything out and unmounts.
    pub fn unmount(mut self) -> Result<()> {
        self.unmount_once_idle()
    }

    fn unmount_once_idle(&mut self) -> Result<()> {
        wait_until(&format!("unmount of {}", self.path.display()), UNMOUNT_WITHIN, || {
            match nix::mount::umount(&self.path) {
                Ok(()) => Ok(Some(())),
                Err(nix::errno::Errno::EBUSY) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })?;
        self.is_mounted = false;
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_mounted {
            let flags = nix::mount::MntFlags::MNT_DETACH;
            if let Err(error) = nix::mount::umount2(&self.path, flags) {
                eprintln!("cannot unmount {}: {error}", self.path.display());
            }
        }
    }
}
