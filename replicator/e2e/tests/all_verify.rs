//! Verify in full: two gigabytes under load, ten clean runs, and a garbled byte at random places in
//! each of several. The short rounds are in root_verify.rs.

use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redoubt_e2e::command::wait_until;
use redoubt_e2e::disk::keep_mounts_private;
use redoubt_e2e::site::Role;
use redoubt_e2e::verified::{GRANULE_BYTES, Load, LoadedSite};
use std::time::Duration;

const RAW_BYTES: u64 = 2 << 30;
const LOAD: Load =
    Load { raw_bytes: RAW_BYTES, megabytes_per_second: 20, runs: Duration::from_secs(3600) };

const CLEAN_RUNS: usize = 10;
const GARBLED_RUNS: usize = 6;

/// A block that is written thousands of times a second lets few rounds end in peace.
const HOT_WITHIN: Duration = Duration::from_secs(600);

#[test]
fn two_gigabytes_under_load_are_verified() -> Result<()> {
    keep_mounts_private()?;
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut loaded = LoadedSite::start(&LOAD, seed)?;
    for run in 0..CLEAN_RUNS {
        let role = if run % 2 == 0 { Role::Target } else { Role::Agent };
        let verified = loaded.expect_equal(role)?;
        eprintln!("clean run {run}: {} bytes compared", verified.compared_bytes);
    }
    for _ in 0..GARBLED_RUNS {
        let offset = random.random_range(RAW_BYTES / 2..RAW_BYTES);
        loaded.expect_found_and_repaired(offset, Role::Target)?;
        let offset = random.random_range(0..RAW_BYTES / 2);
        let found = loaded.garble_under_load(offset, Role::Target)?;
        eprintln!("byte {offset} under load: found {found}");
        loaded.expect_equal(Role::Target)?;
    }
    loaded.finish()
}

/// Honesty about a block that no try can catch at rest: nothing is known of it.
#[test]
fn what_is_written_without_a_pause_is_not_called_equal() -> Result<()> {
    keep_mounts_private()?;
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (raw_bytes, megabytes_per_second) = (256 << 20, 10);
    let load = Load { raw_bytes, megabytes_per_second, runs: Duration::from_secs(1200) };
    let mut loaded = LoadedSite::start(&load, seed)?;
    let block = random.random_range(raw_bytes / 2 / GRANULE_BYTES..raw_bytes / GRANULE_BYTES);
    let hot = loaded.heat(block * GRANULE_BYTES)?;
    let verified = wait_until("a verify that misses the block", HOT_WITHIN, || {
        let verified = loaded.site.verify(Role::Target)?;
        ensure!(verified.differences.is_empty(), "nothing is wrong: {verified:?}");
        Ok((verified.not_compared_bytes == GRANULE_BYTES).then_some(verified))
    })?;
    ensure!(!verified.equal, "{verified:?}");
    drop(hot);
    loaded.expect_equal(Role::Target)?;
    loaded.finish()
}
