//! The main job on real disks: initial sync under load, streaming, and a replica equal to its
//! source.

use anyhow::{Result, ensure};
use redoubt_e2e::disk::{LoopDisk, keep_mounts_private, scratch};
use redoubt_e2e::load::RandomWrites;
use redoubt_e2e::site::{Plan, Role, Site};
use std::time::Duration;

const STREAMING_WITHIN: Duration = Duration::from_secs(300);

/// A disk with data over its first half, zeros behind.
fn half_full(path: &std::path::Path, size_bytes: u64) -> Result<LoopDisk> {
    let disk = LoopDisk::create(path, size_bytes)?;
    let piece: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    for offset in (0..size_bytes / 2).step_by(piece.len()) {
        disk.write_at(&piece, offset)?;
    }
    disk.flush()?;
    Ok(disk)
}

/// Random writes from before the agent until well after initial sync; then everything must be
/// equal.
fn sync_under_load(size_bytes: u64, rate: u32, written_for: Duration) -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = half_full(&scratch.path().join("disk.img"), size_bytes)?;
    let log = scratch.path().join("fio.log");
    let mut load = RandomWrites::start(&disk.device, rate, written_for, &log)?;
    let disks = vec![("data", disk.device.as_path())];
    let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "5s" })?;
    site.wait_for_streaming(STREAMING_WITHIN)?;
    ensure!(load.is_running()?, "initial sync did not converge while the load went on");
    load.finish()?;
    site.expect_equal_replicas()?;
    site.stop_role(Role::Agent)?;
    site.stop_role(Role::Target)
}

#[test]
fn a_disk_is_equal_after_initial_sync_under_load() -> Result<()> {
    sync_under_load(256 << 20, 10, Duration::from_secs(30))
}

#[test]
fn two_gigabytes_converge_under_twenty_megabytes_a_second() -> Result<()> {
    sync_under_load(2 << 30, 20, Duration::from_secs(120))
}

#[test]
fn an_orderly_restart_of_either_side_goes_on() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = half_full(&scratch.path().join("disk.img"), 128 << 20)?;
    let disks = vec![("data", disk.device.as_path())];
    let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "1s" })?;
    site.wait_for_streaming(STREAMING_WITHIN)?;
    for (offset, role) in [(0, Role::Agent), (64 << 20, Role::Target)] {
        site.stop_role(role)?;
        disk.write_at(&[0xa5; 1 << 16], offset)?;
        site.start_role(role)?;
        disk.write_at(&[0x5a; 1 << 16], offset + (1 << 20))?;
        site.wait_for_streaming(STREAMING_WITHIN)?;
        site.expect_equal_replicas()?;
    }
    site.stop_role(Role::Agent)?;
    site.stop_role(Role::Target)
}
