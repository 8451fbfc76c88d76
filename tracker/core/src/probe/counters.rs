//! What the kernel counts for each program. It only reads: the descriptors are opened once, since
//! opening one by its id needs more privilege than reading it.

use super::ProbeError;
use libbpf_rs::{Link, Program};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, OwnedFd};

/// The kernel's own counts for one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramCounters {
    /// Its name.
    pub program: &'static str,
    /// Runs that were skipped because it ran already on that processor: missed writes.
    pub recursion_misses: u64,
    /// Runs, while `kernel.bpf_stats_enabled` is set.
    pub runs: u64,
    /// Time of these runs, in nanoseconds.
    pub run_nanoseconds: u64,
}

/// A program that runs.
pub(super) struct Running {
    program: &'static str,
    descriptor: OwnedFd,
}

impl Running {
    /// The program behind a link.
    pub fn of(program: &'static str, link: &Link) -> Result<Self, ProbeError> {
        let failed = |source| ProbeError::Attach { program, source };
        let id = link.info().map_err(failed)?.prog_id;
        let descriptor = Program::fd_from_id(id).map_err(failed)?;
        Ok(Self { program, descriptor })
    }

    /// Its counts now.
    pub fn counters(&self) -> Result<ProgramCounters, ProbeError> {
        // SAFETY: the structure is plain numbers and pointers of C; all zero is a valid value of
        // it, and means that no variable-sized part is asked for.
        let mut info: libbpf_sys::bpf_prog_info = unsafe { zeroed() };
        let mut length = u32::try_from(size_of::<libbpf_sys::bpf_prog_info>())
            .expect("a structure of some hundred bytes");
        // SAFETY: `info` lives through the call and is `length` bytes long, of which the kernel
        // writes no more; its pointers are null, so it writes nowhere else.
        let status = unsafe {
            libbpf_sys::bpf_prog_get_info_by_fd(
                self.descriptor.as_raw_fd(),
                &raw mut info,
                &raw mut length,
            )
        };
        if status != 0 {
            let source = libbpf_rs::Error::from(std::io::Error::from_raw_os_error(-status));
            return Err(ProbeError::Attach { program: self.program, source });
        }
        Ok(ProgramCounters {
            program: self.program,
            recursion_misses: info.recursion_misses,
            runs: info.run_cnt,
            run_nanoseconds: info.run_time_ns,
        })
    }
}
