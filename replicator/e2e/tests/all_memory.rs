//! Memory is a budget: both roles stay within theirs over ten minutes at 50 MB/s.

use anyhow::{Result, ensure};
use redoubt_e2e::disk::{LoopDisk, keep_mounts_private, scratch};
use redoubt_e2e::load::RandomWrites;
use redoubt_e2e::memory::{AGENT_BYTES_MAX, resident_bytes};
use redoubt_e2e::site::{Plan, Role, Site};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const TARGET_BYTES_MAX: u64 = 256 * MIB;
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

#[test]
fn ten_minutes_at_fifty_megabytes_a_second_stay_within_memory() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = LoopDisk::create(&scratch.path().join("disk.img"), 2 << 30)?;
    let runs = Duration::from_secs(600);
    let log = scratch.path().join("fio.log");
    let mut load = RandomWrites::start(&disk.device, 50, runs, &log)?;
    let disks = vec![("data", disk.device.as_path())];
    let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "5s" })?;
    let (mut agent, mut target) = (0, 0);
    while load.is_running()? {
        agent = agent.max(resident_bytes(site.process_id(Role::Agent)?)?);
        target = target.max(resident_bytes(site.process_id(Role::Target)?)?);
        std::thread::sleep(SAMPLE_INTERVAL);
    }
    load.finish()?;
    eprintln!("most resident: agent {} MiB, target {} MiB", agent / MIB, target / MIB);
    ensure!(agent <= AGENT_BYTES_MAX, "the agent took {} MiB", agent / MIB);
    ensure!(target <= TARGET_BYTES_MAX, "the target took {} MiB", target / MIB);
    site.wait_for_streaming(Duration::from_secs(300))?;
    site.expect_equal_replicas()
}
