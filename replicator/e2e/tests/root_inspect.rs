//! `redoubt inspect` on the directory of a real site: beside its running target, after kills at any
//! instant, with a half-done apply to finish, and on a read-only mount.

use anyhow::{Context, Result, ensure};
use redoubt_e2e::command::{finish, output, text};
use redoubt_e2e::disk::{LoopDisk, keep_mounts_private, scratch};
use redoubt_e2e::load::RandomWrites;
use redoubt_e2e::site::{Plan, Role, Site, binary};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const STREAMING_WITHIN: Duration = Duration::from_secs(300);

/// What an inspection says, and its exit status.
fn inspect(data: &Path, flags: &[&str]) -> Result<(Value, Option<i32>)> {
    let mut command = Command::new(binary()?);
    let said = output(command.arg("inspect").arg(data).arg("--json").args(flags))?;
    let status = said.status.code();
    let parsed = serde_json::from_slice(&said.stdout);
    Ok((parsed.with_context(|| format!("{status:?}: {}", text(&said.stderr)))?, status))
}

/// No damage, whatever the instant.
fn expect_unharmed(data: &Path, is_running: bool, flags: &[&str]) -> Result<Value> {
    let (said, status) = inspect(data, flags)?;
    ensure!(status == Some(0), "{status:?}: {:#}", said["damage"]);
    ensure!(said["verdict"] == "unharmed" && said["running"] == is_running, "{said:#}");
    Ok(said)
}

/// How often the target is killed.
const ROUNDS: u32 = 4;
/// Between a start of the target and its kill: the agent's connection takes up to ten seconds to
/// notice the last one.
const ROUND: Duration = Duration::from_secs(12);

#[test]
fn a_site_under_load_is_unharmed_beside_its_target_and_after_every_kill() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = LoopDisk::create(&scratch.path().join("disk.img"), 96 << 20)?;
    let log = scratch.path().join("fio.log");
    let load = RandomWrites::start(&disk.device, 15, ROUND * (ROUNDS + 1), &log)?;
    let disks = vec![("data", disk.device.as_path())];
    let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "300ms" })?;
    let data = site.data();
    let mut half_done = 0;
    for round in 0..ROUNDS {
        watch_until_apply(&data)?;
        site.kill_role(Role::Target)?;
        let said = expect_unharmed(&data, false, &[])?;
        let was_half_done = !said["machines"][0]["log"]["applying"].is_null();
        half_done += u32::from(was_half_done);
        if round % 2 == 0 {
            let said = expect_unharmed(&data, false, &["--finish"])?;
            let finished = said["finished"].as_array().context("it is an array")?.len();
            ensure!(finished == usize::from(was_half_done), "{said:#}");
            ensure!(said["machines"][0]["log"]["applying"].is_null());
        }
        site.start_role(Role::Target)?;
    }
    println!("{half_done} of {ROUNDS} kills fell into an apply");
    load.finish()?;
    site.wait_for_streaming(STREAMING_WITHIN)?;
    site.expect_equal_replicas()?;
    site.stop_role(Role::Agent)?;
    site.kill_role(Role::Target)?;
    finished_replica_is_its_point(scratch.path(), &mut site)?;
    site.stop_role(Role::Target)
}

/// Looks on beside the running target until an apply is under way, some points after its start.
fn watch_until_apply(data: &Path) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < ROUND {
        let said = expect_unharmed(data, true, &[])?;
        let is_warm = started.elapsed() > ROUND * 9 / 10;
        if is_warm && !said["machines"][0]["log"]["applying"].is_null() {
            break;
        }
    }
    Ok(())
}

/// Without a target the replica disk is a raw disk at its last point: later a target copies the
/// same out.
fn finished_replica_is_its_point(scratch: &Path, site: &mut Site) -> Result<()> {
    let said = expect_unharmed(&site.data(), false, &["--finish"])?;
    let disk = &said["machines"][0]["disks"][0];
    ensure!(disk["mid_apply"] == false && disk["ahead_of_point"] == false, "{disk:#}");
    let point = disk["last_point"].as_str().context("it has a point")?.to_owned();
    let replica = disk["replica_path"].as_str().context("it has a path")?;
    let (kept, copied) = (scratch.join("kept"), scratch.join("copied"));
    finish(Command::new("cp").arg("--sparse=always").arg(replica).arg(&kept))?;
    site.start_role(Role::Target)?;
    site.copy_out("data", &point, &copied)?;
    finish(Command::new("cmp").arg(&kept).arg(&copied))?;
    Ok(())
}

/// A read-only view of a directory, taken away with its owner.
struct ReadOnlyMount<'a>(&'a Path);

impl<'a> ReadOnlyMount<'a> {
    fn new(of: &Path, at: &'a Path) -> Result<Self> {
        fs::create_dir(at)?;
        finish(Command::new("mount").arg("--bind").arg(of).arg(at))?;
        let mount = Self(at);
        finish(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(at))?;
        Ok(mount)
    }
}

impl Drop for ReadOnlyMount<'_> {
    fn drop(&mut self) {
        if let Err(error) = finish(Command::new("umount").arg(self.0)) {
            eprintln!("cannot unmount: {error:#}");
        }
    }
}

#[test]
fn a_read_only_mount_is_inspected_and_no_target_starts_on_it() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = LoopDisk::create(&scratch.path().join("disk.img"), 16 << 20)?;
    disk.write_at(&[0x5a; 1 << 16], 0)?;
    disk.flush()?;
    let disks = vec![("data", disk.device.as_path())];
    let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "1s" })?;
    site.wait_for_streaming(STREAMING_WITHIN)?;
    site.expect_equal_replicas()?;
    site.stop_role(Role::Agent)?;
    site.stop_role(Role::Target)?;
    let read_only = scratch.path().join("read-only");
    let _mount = ReadOnlyMount::new(&site.data(), &read_only)?;
    let said = expect_unharmed(&read_only, false, &[])?;
    ensure!(said["machines"][0]["points"].as_array().is_some_and(|points| !points.is_empty()));
    ensure!(said["site"]["machines"][0]["id"] == said["machines"][0]["id"], "{said:#}");
    let mut inspect = Command::new(binary()?);
    let said = output(inspect.arg("inspect").arg("--finish").arg(&read_only))?;
    ensure!(said.status.code() == Some(1) && text(&said.stderr).contains("writable"));
    let mut target = Command::new(binary()?);
    target.arg("--runtime-dir").arg(scratch.path().join("run-other"));
    target.args(["master-target", "--listen", "127.0.0.1:0", "--data"]).arg(&read_only);
    let said = output(target.stdin(Stdio::null()))?;
    let words = text(&said.stderr);
    ensure!(said.status.code() == Some(1), "{words}");
    ensure!(words.contains("Read-only file system") && words.contains("writable"), "{words}");
    Ok(())
}
