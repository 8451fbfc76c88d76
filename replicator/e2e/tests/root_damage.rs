//! What the target keeps is damaged while it is stopped: what that costs, and what `status` says.

use anyhow::{Context, Result, ensure};
use redoubt_e2e::command::{output, text, wait_until};
use redoubt_e2e::disk::{LoopDisk, keep_mounts_private, scratch};
use redoubt_e2e::site::{Plan, Role, Site};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const STREAMING_WITHIN: Duration = Duration::from_secs(300);
const SHOWN_WITHIN: Duration = Duration::from_secs(60);
const DISK_BYTES: u64 = 32 << 20;

/// The machine as a role shows it, and the exit status of that.
fn shown(site: &Site, role: Role) -> Result<(Value, Option<i32>)> {
    let said = output(site.command(role).args(["status", "--json"]))?;
    let status: Value = serde_json::from_slice(&said.stdout).with_context(|| text(&said.stderr))?;
    Ok((status["machines"][0].clone(), said.status.code()))
}

/// The directory of the only machine.
fn machine_directory(site: &Site) -> Result<PathBuf> {
    let mut machines = fs::read_dir(site.data().join("machines"))?;
    Ok(machines.next().context("no machine")??.path())
}

fn audited(site: &Site, words: &[&str]) -> Result<()> {
    wait_until("a line of the audit log", SHOWN_WITHIN, || {
        let log = site.audited(Role::Target)?;
        let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
        Ok(log.lines().find(has_all).map(drop))
    })
}

fn start(scratch: &Path, disks: &[(&str, &LoopDisk)]) -> Result<Site> {
    let disks = disks.iter().map(|(name, disk)| (*name, disk.device.as_path())).collect();
    let mut site = Site::start(scratch, &Plan { disks, point_interval: "1s" })?;
    site.wait_for_streaming(STREAMING_WITHIN)?;
    Ok(site)
}

#[test]
fn a_machine_whose_store_does_not_open_is_shown_and_goes_on_once_it_is_mended() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = LoopDisk::create(&scratch.path().join("disk.img"), DISK_BYTES)?;
    let mut site = start(scratch.path(), &[("data", &disk)])?;
    site.mark("before", true)?;
    let name = shown(&site, Role::Target)?.0["name"].clone();
    site.stop_role(Role::Target)?;
    let manifest = machine_directory(&site)?.join("manifest");
    let whole = fs::read(&manifest)?;
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    fs::write(&manifest, damaged)?;
    site.start_role(Role::Target)?;
    let (machine, status) = shown(&site, Role::Target)?;
    ensure!(status == Some(3), "{status:?}: {machine:#}");
    ensure!(machine["name"] == name && machine["disks"] == Value::Array(vec![]), "{machine:#}");
    let reason = machine["reason"].as_str().context("no reason")?;
    ensure!(reason.starts_with("store-damaged: ") && reason.contains("manifest"), "{reason}");
    audited(&site, &["\"state\"", "\"paused\"", "store-damaged: "])?;
    let points = output(site.command(Role::Target).arg("points"))?;
    ensure!(points.status.code() == Some(1), "{:?}", points.status);
    ensure!(text(&points.stderr).contains("store-damaged"), "{}", text(&points.stderr));
    site.stop_role(Role::Target)?;
    fs::write(&manifest, whole)?;
    site.start_role(Role::Target)?;
    site.wait_for_streaming(STREAMING_WITHIN)?;
    ensure!(shown(&site, Role::Target)?.1 == Some(0));
    site.expect_equal_replicas()?;
    site.end()
}

/// The points as a role lists them.
fn points(site: &Site, role: Role) -> Result<Vec<Value>> {
    let said = output(site.command(role).args(["points", "--json"]))?;
    ensure!(said.status.success(), "{}", text(&said.stderr));
    Ok(serde_json::from_slice(&said.stdout)?)
}

/// The retention files, the oldest first.
fn retention_files(site: &Site) -> Result<Vec<PathBuf>> {
    let files = fs::read_dir(machine_directory(site)?.join("retention"))?;
    let mut files: Vec<PathBuf> = files.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
    files.sort();
    Ok(files)
}

#[test]
fn a_lost_retention_file_costs_the_points_behind_it_and_the_machine_goes_on() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = LoopDisk::create(&scratch.path().join("disk.img"), DISK_BYTES)?;
    let mut site = start(scratch.path(), &[("data", &disk)])?;
    disk.write_at(&[1; 4096], 0)?;
    let lost = site.mark("lost", true)?;
    disk.write_at(&[2; 4096], 0)?;
    let kept = site.mark("kept", true)?;
    site.stop_role(Role::Target)?;
    let file = retention_files(&site)?.pop().context("no retention file")?;
    fs::remove_file(&file)?;
    let name = file.file_name().context("no name")?.to_string_lossy().into_owned();
    site.start_role(Role::Target)?;
    wait_until("streaming beside the harm", STREAMING_WITHIN, || {
        let (machine, status) = shown(&site, Role::Target)?;
        let disk = &machine["disks"][0];
        let harm = disk["harm"].as_str().unwrap_or_default();
        ensure!(status == Some(3), "{status:?}: {machine:#}");
        ensure!(harm.starts_with("points-lost: ") && harm.contains(&name), "{machine:#}");
        Ok((disk["state"] == "streaming").then_some(()))
    })?;
    audited(&site, &["\"harm\"", "\"found\"", "points-lost: ", &name])?;
    disk.write_at(&[3; 4096], 0)?;
    let newer = site.mark("newer", true)?;
    for role in [Role::Target, Role::Agent] {
        for (id, is_lost) in [(&lost, true), (&kept, false), (&newer, false)] {
            let points = points(&site, role)?;
            let point = points.iter().find(|point| point["id"] == id.as_str());
            let point = point.with_context(|| format!("{id} is not listed"))?;
            let named = |name: &str| point[name].as_array().is_some_and(|list| !list.is_empty());
            ensure!(named("harmed_disks") == is_lost && named("disks") != is_lost, "{point:#}");
            ensure!(point["complete"] != is_lost, "{point:#}");
        }
    }
    let copy = scratch.path().join("copy");
    for (id, byte) in [(&kept, 2), (&newer, 3)] {
        site.copy_out("data", id, &copy)?;
        ensure!(fs::read(&copy)?[..4096] == [byte; 4096], "{id} is not what it was");
        fs::remove_file(&copy)?;
    }
    let refused = site.copy_out("data", &lost, &copy).err().context("a lost point was read")?;
    ensure!(format!("{refused:#}").contains(&name), "{refused:#}");
    ensure!(!copy.exists(), "a part of a lost point was left");
    // What is read of the machine is not touched.
    ensure!(site.verify(Role::Target)?.equal, "the replica differs");
    site.end()
}

#[test]
fn a_replica_file_that_is_gone_is_named_at_both_sides_and_the_other_disk_waits() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let one = LoopDisk::create(&scratch.path().join("one.img"), DISK_BYTES)?;
    let two = LoopDisk::create(&scratch.path().join("two.img"), DISK_BYTES)?;
    let mut site = start(scratch.path(), &[("one", &one), ("two", &two)])?;
    site.mark("before", true)?;
    let replicas = site.status()?;
    let replica = replicas.iter().find(|disk| disk.name == "two").context("no disk two")?;
    let replica = replica.replica_path.clone().context("no replica")?;
    site.stop_role(Role::Target)?;
    let aside = replica.with_extension("aside");
    fs::rename(&replica, &aside)?;
    site.start_role(Role::Target)?;
    one.write_at(&[7; 4096], 0)?;
    for role in [Role::Target, Role::Agent] {
        wait_until("both disks' reasons", SHOWN_WITHIN, || {
            let (machine, status) = shown(&site, role)?;
            let told = |at: usize, name: &str| machine["disks"][at][name].as_str().unwrap_or("-");
            let gone = told(1, "state") == "paused"
                && told(1, "reason").starts_with("replica-missing: ")
                && told(1, "reason").contains("disk two is not there");
            let waits = told(0, "state") == "paused"
                && told(0, "reason").starts_with("apply-waits: ")
                && told(0, "reason").contains("disk two is not there");
            Ok((gone && waits && status == Some(3)).then_some(()))
        })?;
        ensure!(!replica.exists(), "something was made in its place");
    }
    // What is written is acknowledged all the same.
    site.mark("it waits", false)?;
    audited(&site, &["/two", "\"paused\"", "replica-missing: "])?;
    site.stop_role(Role::Target)?;
    fs::rename(&aside, &replica)?;
    site.start_role(Role::Target)?;
    for role in [Role::Target, Role::Agent] {
        wait_until("nothing to tell", STREAMING_WITHIN, || {
            let (machine, status) = shown(&site, role)?;
            let is_well = |at: usize| {
                let disk = &machine["disks"][at];
                disk["state"] == "streaming" && disk["reason"].is_null()
            };
            Ok((is_well(0) && is_well(1) && status == Some(0)).then_some(()))
        })?;
    }
    site.expect_equal_replicas()?;
    site.end()
}
