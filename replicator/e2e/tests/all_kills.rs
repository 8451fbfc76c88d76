//! Ten minutes in which either role, or both, are killed at any instant: the replicas are equal
//! afterwards, and every recovery point is good.

use anyhow::{Context, Result};
use redoubt_e2e::commits::Journal;
use redoubt_e2e::disk::Filesystem;
use redoubt_e2e::oracle::{Run, run_killing_for};
use std::time::Duration;

/// Seconds, where they shall be fewer or more than ten minutes.
const SECONDS: &str = "REDOUBT_KILLS_SECONDS";
const LONG: Duration = Duration::from_secs(600);

#[test]
fn every_point_is_good_after_ten_minutes_of_kills_of_both_sides() -> Result<()> {
    let long = match std::env::var(SECONDS) {
        Ok(seconds) => Duration::from_secs(seconds.parse().context(SECONDS)?),
        Err(_) => LONG,
    };
    let filesystems = &[Filesystem::Ext4, Filesystem::Xfs];
    let journal = Journal::WriteAhead;
    let run = Run { filesystems, journal, points: 20, kills: 0, point_interval: "5s" };
    run_killing_for(&run, long)
}
