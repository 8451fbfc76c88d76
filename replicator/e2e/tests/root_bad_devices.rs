//! Devices that cannot be protected are refused with what to do about it, and nothing changes;
//! those in use can be, the one that holds the agent's own state among them.

use anyhow::{Context, Result, ensure};
use redoubt_e2e::command::{finish, output, run, text, wait_until};
use redoubt_e2e::disk::{Filesystem, LoopDisk, Mounted, keep_mounts_private, scratch};
use redoubt_e2e::site::{Plan, Role, Site, binary};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const STREAMING_WITHIN: Duration = Duration::from_secs(300);
const POINT_WITHIN: Duration = Duration::from_secs(60);
const DISK_BYTES: u64 = 64 << 20;

fn agent(scratch: &Path) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.args(["agent", "--state"]).arg(scratch.join("new-state"));
    command.env("REDOUBT_RUNTIME_DIR", scratch.join("new-run"));
    Ok(command)
}

/// What `--check` says of a device, and whether it can be protected.
fn check(scratch: &Path, device: &Path) -> Result<(Value, bool)> {
    let checked = output(agent(scratch)?.args(["--check", "--json", "--disk"]).arg(device))?;
    let report: Value = serde_json::from_str(&text(&checked.stdout))
        .with_context(|| format!("no report: {}", text(&checked.stderr)))?;
    let code = checked.status.code();
    ensure!(matches!(code, Some(0 | 3)), "{}: {report}", checked.status);
    Ok((report["disks"][0].clone(), code == Some(0)))
}

fn pins() -> Result<BTreeSet<PathBuf>> {
    let entries = fs::read_dir("/sys/fs/bpf").context("bpffs is not mounted")?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Both `--check` and the agent itself say what is wrong and what to do; neither changes a thing.
fn expect_refused(scratch: &Path, device: &Path, words: &[&str]) -> Result<()> {
    let before = pins()?;
    let (disk, good) = check(scratch, device)?;
    let said = format!("{} {}", disk["reason"], disk["remedy"]);
    ensure!(!good && disk["mode"].is_null(), "it could be protected: {disk}");
    let refused = output(agent(scratch)?.args(["--token", "none", "--disk"]).arg(device))?;
    ensure!(refused.status.code() == Some(1), "{}", refused.status);
    for said in [said, text(&refused.stderr)] {
        for word in words.iter().copied().chain([device.to_string_lossy().as_ref()]) {
            ensure!(
                said.contains(word) || disk["device"].as_str() == Some(word),
                "no word of {word}: {said}"
            );
        }
    }
    let left = ["new-state", "new-run"].map(|name| scratch.join(name).exists());
    ensure!(left == [false, false], "it left a trace");
    ensure!(pins()? == before, "it left pins");
    Ok(())
}

fn content(device: &Path) -> Result<String> {
    run("sha256sum", &[device])
}

#[test]
fn what_is_not_there_not_writable_or_has_no_size_is_refused() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let path = scratch.path();
    expect_refused(path, Path::new("/dev/no-such-disk"), &["no such device", "lsblk"])?;
    let file = path.join("plain");
    fs::write(&file, "no device")?;
    expect_refused(path, &file, &["not a block device"])?;

    let disk = LoopDisk::create(&path.join("disk.img"), DISK_BYTES)?;
    disk.write_at(&[0x5a; 1 << 20], 1 << 20)?;
    let before = content(&disk.device)?;
    run("blockdev", &["--setro".as_ref(), disk.device.as_os_str()])?;
    let refused = expect_refused(path, &disk.device, &["read-only", "--setrw"]);
    run("blockdev", &["--setrw".as_ref(), disk.device.as_os_str()])?;
    refused?;
    ensure!(content(&disk.device)? == before, "the device has changed");

    // A loop device without a file stands for a drive without a medium.
    let empty = PathBuf::from(run("losetup", &["--find"])?.trim_end());
    ensure!(empty.exists(), "{} has no node", empty.display());
    expect_refused(path, &empty, &["no size", "medium"])
}

/// Swap on a disk, off again with its owner.
struct Swap<'a>(&'a LoopDisk);

impl<'a> Swap<'a> {
    fn on(disk: &'a LoopDisk) -> Result<Self> {
        run("mkswap", &[&disk.device])?;
        run("swapon", &[&disk.device])?;
        Ok(Self(disk))
    }
}

impl Drop for Swap<'_> {
    fn drop(&mut self) {
        if let Err(error) = run("swapoff", &[&self.0.device]) {
            eprintln!("swap is left on: {error:#}");
        }
    }
}

#[test]
fn swap_space_is_refused_and_protected_once_it_is_none() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = LoopDisk::create(&scratch.path().join("disk.img"), DISK_BYTES)?;
    let swap = Swap::on(&disk)?;
    expect_refused(scratch.path(), &disk.device, &["swap space", "swapoff"])?;
    drop(swap);
    let (report, good) = check(scratch.path(), &disk.device)?;
    ensure!(good && report["mode"] == "data" && report["used_by"] == serde_json::json!([]));
    Ok(())
}

#[test]
fn a_disk_in_use_can_be_protected_and_the_check_says_who_uses_it() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = LoopDisk::create(&scratch.path().join("disk.img"), DISK_BYTES)?;
    Filesystem::Ext4.make(&disk)?;
    let mounted = Mounted::new(Filesystem::Ext4, &disk, &scratch.path().join("mounted"))?;
    let (report, good) = check(scratch.path(), &disk.device)?;
    let place = mounted.path.to_string_lossy();
    ensure!(good && report["used_by"] == serde_json::json!([place]), "{report}");
    ensure!(report["holds_agent_state"] == false, "{report}");
    mounted.unmount()
}

#[test]
fn the_disk_with_the_agents_own_state_is_protected_and_its_writes_are_few() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = LoopDisk::create(&scratch.path().join("disk.img"), 2 * DISK_BYTES)?;
    Filesystem::Ext4.make(&disk)?;
    let state = Mounted::new(Filesystem::Ext4, &disk, &scratch.path().join("state"))?;
    let mut checks = Command::new(binary()?);
    checks.args(["agent", "--check", "--json", "--state"]).arg(state.path.join("not/yet"));
    let report: Value = serde_json::from_str(&finish(checks.arg("--disk").arg(&disk.device))?)?;
    ensure!(report["disks"][0]["holds_agent_state"] == true, "{report}");

    let disks = vec![("own", disk.device.as_path())];
    let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "1s" })?;
    site.wait_for_streaming(STREAMING_WITHIN)?;
    let said = site.log_of(Role::Agent)?;
    ensure!(said.contains("holds the agent's own state"), "{said}");
    // What it writes down of its own writes' acknowledgement must not go on for ever.
    wait_until("a quiet disk", POINT_WITHIN, || {
        let before = disk.written_bytes()?;
        std::thread::sleep(Duration::from_secs(10));
        let written = disk.written_bytes()? - before;
        eprintln!("{written} bytes in ten seconds");
        Ok((written < 1 << 20).then_some(()))
    })?;
    site.mark("own state", true)?;
    let verified = site.verify(Role::Target)?;
    ensure!(verified.equal, "{verified:?}");
    let points = site.points()?;
    ensure!(points.iter().all(|point| point.complete && point.proven), "{points:?}");
    site.end()?;
    state.unmount()
}
