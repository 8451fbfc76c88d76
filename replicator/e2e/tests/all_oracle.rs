//! The commit-writer oracle in full: fifty points of each kind, then with twenty kills of either
//! role. The short rounds are in root_oracle.rs.

use anyhow::Result;
use redoubt_e2e::commits::Journal;
use redoubt_e2e::disk::Filesystem;
use redoubt_e2e::oracle::{Run, run};

fn full(filesystems: &[Filesystem], journal: Journal, kills: usize) -> Result<()> {
    run(&Run { filesystems, journal, points: 50, kills, point_interval: "5s" })
}

#[test]
fn fifty_points_of_ext4_are_good() -> Result<()> {
    full(&[Filesystem::Ext4], Journal::WriteAhead, 0)
}

#[test]
fn fifty_points_of_xfs_are_good() -> Result<()> {
    full(&[Filesystem::Xfs], Journal::Rollback, 0)
}

#[test]
fn fifty_points_of_btrfs_are_good() -> Result<()> {
    full(&[Filesystem::Btrfs], Journal::WriteAhead, 0)
}

#[test]
fn two_disks_agree_at_fifty_points() -> Result<()> {
    full(&[Filesystem::Ext4, Filesystem::Xfs], Journal::Rollback, 0)
}

#[test]
fn fifty_points_of_ext4_are_good_through_twenty_kills_each() -> Result<()> {
    full(&[Filesystem::Ext4], Journal::Rollback, 20)
}

#[test]
fn fifty_points_of_xfs_are_good_through_twenty_kills_each() -> Result<()> {
    full(&[Filesystem::Xfs], Journal::WriteAhead, 20)
}

#[test]
fn fifty_points_of_btrfs_are_good_through_twenty_kills_each() -> Result<()> {
    full(&[Filesystem::Btrfs], Journal::Rollback, 20)
}

#[test]
fn two_disks_agree_through_twenty_kills_each() -> Result<()> {
    full(&[Filesystem::Ext4, Filesystem::Xfs], Journal::WriteAhead, 20)
}
