//! What the kernel itself counts for our programs. It judges nothing.

use super::ProbeError;
use libbpf_rs::Link;
use libbpf_rs::query::ProgInfoIter;

/// The kernel's counters of one program, since it was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramCounters {
    /// Its name.
    pub program: &'static str,
    /// Runs that the kernel skipped: events that nobody saw.
    pub recursion_misses: u64,
    /// Runs; only counted where the sysctl `kernel.bpf_stats_enabled` is set.
    pub runs: u64,
    /// Nanoseconds in all of these.
    pub run_nanoseconds: u64,
}

pub(super) fn read(links: &[(&'static str, Link)]) -> Result<Vec<ProgramCounters>, ProbeError> {
    let mut found = Vec::with_capacity(links.len());
    for (program, link) in links {
        let failed = |source| ProbeError::Attach { program, source };
        let id = link.info().map_err(failed)?.prog_id;
        let missing =
            || failed(libbpf_rs::Error::from(std::io::Error::from(std::io::ErrorKind::NotFound)));
        let info = ProgInfoIter::default().find(|info| info.id == id).ok_or_else(missing)?;
        found.push(ProgramCounters {
            program,
            recursion_misses: info.recursion_misses,
            runs: info.run_cnt,
            run_nanoseconds: info.run_time_ns,
        });
    }
    Ok(found)
}
