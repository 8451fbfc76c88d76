//! The names under which the programs and maps live on in bpffs when no process holds them. It must
//! never leave half a set behind that could be taken for a whole one: `Settings::complete` is set
//! last.

use super::ProbeError;
use nix::mount::{MsFlags, mount};
use redoubt_ebpf::numbers;
use redoubt_log::DiskIndex;
use std::fs;
use std::path::{Path, PathBuf};

const BPF_FS: &str = "/sys/fs/bpf";

/// The programs that are attached, by the side of a write they watch. A completion's second program
/// does the work where the kernel skipped its first one.
pub(crate) const COMPLETION_PROGRAMS: [&str; 5] = [
    "request_completed",
    "request_completed_nested",
    "bio_completed",
    "bio_completed_nested",
    "split",
];
/// The program that sees a write first; attached last.
pub(crate) const SUBMISSION_PROGRAMS: [&str; 1] = ["submitted"];

/// The completion whose first program this is, one of `numbers::COMPLETION_*`.
pub(crate) fn completion_of(program: &str) -> Option<usize> {
    match program {
        "request_completed" => Some(numbers::COMPLETION_REQUEST as usize),
        "bio_completed" => Some(numbers::COMPLETION_BIO as usize),
        _ => None,
    }
}

/// Whether it is a completion's second program.
pub(crate) fn is_second(program: &str) -> bool {
    program.ends_with("_nested")
}

/// Mounts bpffs where it is missing.
pub(crate) fn mount_bpf_fs() -> Result<(), ProbeError> {
    let mounted = nix::sys::statfs::statfs(BPF_FS)
        .is_ok_and(|info| info.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC);
    if mounted {
        return Ok(());
    }
    mount(Some("bpf"), BPF_FS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(|source| ProbeError::BpfFs { source: source.into() })
}

/// Where one set of pins lies.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    directory: PathBuf,
}

impl Pins {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    pub(crate) fn exist(&self) -> bool {
        self.directory.exists()
    }

    pub(crate) fn create(&self) -> Result<(), ProbeError> {
        fs::create_dir_all(&self.directory)
            .map_err(|source| ProbeError::Pin { path: self.directory.clone(), source })
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.directory.join(format!("map_{name}"))
    }

    pub(crate) fn link(&self, program: &str) -> PathBuf {
        self.directory.join(format!("link_{program}"))
    }

    /// One of a disk's two arrays.
    pub(crate) fn array(&self, disk: DiskIndex, side: usize) -> PathBuf {
        self.directory.join(format!("disk_{disk}_{side}"))
    }

    pub(crate) fn remove(path: &Path) -> Result<(), ProbeError> {
        match fs::remove_file(path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(ProbeError::Pin { path: path.to_owned(), source })
            }
            _ => Ok(()),
        }
    }

    /// Ends the tracking: what has no name and no holder any more, the kernel detaches and frees.
    /// Submissions first, so that no write is seen to begin whose end would be missed.
    pub(crate) fn remove_all(&self) -> Result<(), ProbeError> {
        for program in SUBMISSION_PROGRAMS.iter().chain(&COMPLETION_PROGRAMS) {
            Self::remove(&self.link(program))?;
        }
        let failed = |source| ProbeError::Pin { path: self.directory.clone(), source };
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            Self::remove(&entry.map_err(failed)?.path())?;
        }
        fs::remove_dir(&self.directory).map_err(failed)
    }
}
