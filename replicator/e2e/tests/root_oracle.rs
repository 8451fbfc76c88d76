//! The commit-writer oracle, a short round of each kind: every recovery point must be
//! crash-consistent. The full rounds are in all_oracle.rs.

use anyhow::Result;
use redoubt_e2e::commits::Journal;
use redoubt_e2e::disk::Filesystem;
use redoubt_e2e::oracle::{Run, run};

fn short(filesystems: &[Filesystem], journal: Journal, kills: usize) -> Result<()> {
    run(&Run { filesystems, journal, points: 12, kills, point_interval: "2s" })
}

#[test]
fn every_point_of_ext4_is_good() -> Result<()> {
    short(&[Filesystem::Ext4], Journal::WriteAhead, 0)
}

#[test]
fn every_point_of_xfs_is_good() -> Result<()> {
    short(&[Filesystem::Xfs], Journal::Rollback, 0)
}

#[test]
fn every_point_of_btrfs_is_good() -> Result<()> {
    short(&[Filesystem::Btrfs], Journal::WriteAhead, 0)
}

#[test]
fn two_disks_agree_at_every_point() -> Result<()> {
    short(&[Filesystem::Ext4, Filesystem::Xfs], Journal::Rollback, 0)
}

#[test]
fn points_stay_good_when_agent_and_target_are_killed() -> Result<()> {
    short(&[Filesystem::Ext4], Journal::WriteAhead, 4)
}
