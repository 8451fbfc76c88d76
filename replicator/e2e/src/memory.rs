//! What a process holds in memory. It only looks.

use anyhow::{Context, Result};

/// The agent's budget, beside the kernel's ring and bitmaps.
pub const AGENT_BYTES_MAX: u64 = 96 << 20;

/// Resident bytes of a process without the BPF maps, which the kernel holds whether they are mapped
/// or not.
pub fn resident_bytes(process: u32) -> Result<u64> {
    let map = std::fs::read_to_string(format!("/proc/{process}/smaps"))?;
    let (mut bytes, mut is_counted) = (0, true);
    for line in map.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if first == "Rss:" && is_counted {
            let kibibytes: u64 = words.next().context("Rss without a number")?.parse()?;
            bytes += kibibytes * 1024;
        } else if !first.ends_with(':') {
            is_counted = !line.contains("bpf-map") && !line.contains("bpf_ringbuf");
        }
    }
    Ok(bytes)
}
