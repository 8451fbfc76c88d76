//! The oracle itself on trial, without the product: it must pass a true image and catch a damaged
//! one.

use anyhow::{Result, ensure};
use redoubt_e2e::check::{Checked, DATABASE, NOISE, check_image};
use redoubt_e2e::command::run;
use redoubt_e2e::commits::{CommitWriter, Journal};
use redoubt_e2e::disk::{Filesystem, LoopDisk, Mounted, keep_mounts_private, scratch};
use redoubt_e2e::noise::Noise;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Copies the disk's file while the filesystem stands still, its journal unplayed.
fn frozen_copy(disk: &Path, mounted: &Path, to: &Path) -> Result<()> {
    run("fsfreeze", &["--freeze".as_ref(), mounted.as_os_str()])?;
    let copied = run("cp", &["--sparse=always".as_ref(), disk.as_os_str(), to.as_os_str()]);
    run("fsfreeze", &["--unfreeze".as_ref(), mounted.as_os_str()])?;
    copied.map(drop)
}

fn on_trial(filesystem: Filesystem) -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let path = |name: &str| scratch.path().join(name);
    let disk = LoopDisk::create(&path("disk.img"), 512 << 20)?;
    filesystem.make(&disk)?;
    let mounted = Mounted::new(filesystem, &disk, &path("disk"))?;
    let database = mounted.path.join(DATABASE);
    let writer = CommitWriter::start(&[database], Journal::WriteAhead, 1)?;
    let noise = Noise::start(&mounted.path.join(NOISE), 2)?;

    writer.wait_for_rows(100, Duration::from_secs(60))?;
    frozen_copy(&path("disk.img"), &mounted.path, &path("early.img"))?;
    let at_least = writer.acknowledged()[0].len();
    writer.wait_for_rows(at_least + 100, Duration::from_secs(60))?;
    frozen_copy(&path("disk.img"), &mounted.path, &path("late.img"))?;
    let (acknowledged, files) = (writer.stop()?, noise.stop()?);
    mounted.unmount()?;

    let checked = Checked { name: "disk".to_owned(), filesystem, files };
    let early = check_image(&path("early.img"), SystemTime::UNIX_EPOCH, &checked, &path("point"))?;
    let late = check_image(&path("late.img"), SystemTime::UNIX_EPOCH, &checked, &path("point"))?;
    ensure!(early >= 100 && late >= early + 100, "rows {early}, then {late}");
    ensure!(late <= acknowledged[0].len() + 1, "row {late} was never committed");

    // Files were made durable since: an old image must not pass as a new one.
    let all_gone = check_image(&path("early.img"), SystemTime::now(), &checked, &path("point"));
    ensure!(all_gone.is_err(), "an old image passed as a new one");
    Ok(())
}

#[test]
fn the_oracle_knows_a_true_ext4() -> Result<()> {
    on_trial(Filesystem::Ext4)
}

#[test]
fn the_oracle_knows_a_true_xfs() -> Result<()> {
    on_trial(Filesystem::Xfs)
}

#[test]
fn the_oracle_knows_a_true_btrfs() -> Result<()> {
    on_trial(Filesystem::Btrfs)
}
