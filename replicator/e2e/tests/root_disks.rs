//! Several disks of one machine: one that is missing does not stop the others, a disk and its
//! partitions are protected once, and what the tracker did not see is read again and shown.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::Rng;
use redoubt_e2e::command::{finish, output, run, text, wait_until};
use redoubt_e2e::disk::{LoopDisk, keep_mounts_private, scratch};
use redoubt_e2e::load::RandomWrites;
use redoubt_e2e::memory::{AGENT_BYTES_MAX, resident_bytes};
use redoubt_e2e::orders::{BOTH, audited, refused, said, streaming, wait_for};
use redoubt_e2e::report::Point;
use redoubt_e2e::site::{Plan, Role, Site, binary};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const STREAMING_WITHIN: Duration = Duration::from_secs(300);
const POINT_WITHIN: Duration = Duration::from_secs(60);
/// What has changed under the agent is looked at in every round.
const SEEN_WITHIN: Duration = Duration::from_secs(5);
/// A peak lasts as long as frames take to be sealed.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(2);
const MISSING: &str = "device-missing";

/// A point that none of `before` is.
fn new_point(site: &Site, before: &[Point]) -> Result<Point> {
    let known: BTreeSet<&str> = before.iter().map(|point| point.id.as_str()).collect();
    wait_until("a new point", POINT_WITHIN, || {
        Ok(site.points()?.into_iter().find(|point| !known.contains(point.id.as_str())))
    })
}

/// A verify of all disks names the one that cannot be compared, at either side.
fn not_verified(site: &Site, disk: &str, size: u64) -> Result<()> {
    for role in BOTH {
        let verified = site.verify(role)?;
        ensure!(!verified.equal && verified.not_compared_bytes == size, "{verified:?}");
        let why = format!("{disk} is not tracked");
        ensure!(verified.hindrance.as_deref().is_some_and(|told| told.contains(&why)));
    }
    Ok(())
}

#[test]
fn a_missing_disk_does_not_stop_the_others_and_goes_on_when_it_is_back() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let path = |name: &str| scratch.path().join(name);
    let kept = LoopDisk::create(&path("kept.img"), 64 << 20)?;
    let lost = LoopDisk::create(&path("lost.img"), 64 << 20)?;
    lost.write_at(&[0x11; 1 << 20], 8 << 20)?;
    // A name that stays, as udev makes them.
    let name = path("by-name");
    symlink(&lost.device, &name)?;
    let disks = vec![("kept", kept.device.as_path()), ("lost", name.as_path())];
    let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "1s" })?;
    site.wait_for_streaming(STREAMING_WITHIN)?;
    site.expect_equal_replicas()?;

    site.stop_role(Role::Agent)?;
    lost.detach()?;
    kept.write_at(&[0x22; 1 << 20], 0)?;
    let before = site.points()?;
    site.start_role(Role::Agent)?;
    let is_missing = format!("{MISSING}: {}", name.display());
    site.wait_for_status("the kept disk alone", STREAMING_WITHIN, |disks| {
        let state = |at: usize| (disks[at].state.as_str(), disks[at].reason.as_str());
        disks.len() == 2 && state(0) == ("streaming", "") && state(1) == ("paused", &is_missing)
    })?;
    let of_agent = site.status_of(Role::Agent)?;
    ensure!(of_agent[1].state == "paused" && of_agent[1].reason == is_missing, "{of_agent:?}");
    let point = new_point(&site, &before)?;
    ensure!(!point.complete, "a point claims the missing disk: {point:?}");
    kept.write_at(&[0x33; 1 << 20], 4 << 20)?;
    site.mark_without("lost")?;
    not_verified(&site, "lost", 64 << 20)?;
    let replica = site.status()?.remove(0).replica_path.context("a replica")?;
    kept.flush()?;
    finish(Command::new("cmp").arg(&kept.device).arg(replica))?;
    let log = site.log_of(Role::Agent)?;
    let said: Vec<&str> = log.lines().filter(|line| line.contains(MISSING)).collect();
    ensure!(said.len() == 1 && said[0].contains("start the agent again"), "{said:?}");

    // It comes back as another device, and not as it went.
    fs::remove_file(&name)?;
    let back = LoopDisk::over(&path("lost.img"))?;
    back.write_at(&[0x44; 1 << 20], 32 << 20)?;
    symlink(&back.device, &name)?;
    site.stop_role(Role::Agent)?;
    let before = site.points()?;
    site.start_role(Role::Agent)?;
    site.wait_for_streaming(STREAMING_WITHIN)?;
    site.expect_equal_replicas()?;
    wait_until("a complete point", POINT_WITHIN, || {
        let count = before.len();
        Ok(site.points()?.into_iter().skip(count).any(|point| point.complete).then_some(()))
    })?;
    site.stop_role(Role::Agent)?;
    site.stop_role(Role::Target)
}

#[test]
fn an_agent_whose_only_disk_is_gone_says_so_and_waits() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let path = |name: &str| scratch.path().join(name);
    let disk = LoopDisk::create(&path("disk.img"), 32 << 20)?;
    let name = path("by-name");
    symlink(&disk.device, &name)?;
    let disks = vec![("only", name.as_path())];
    let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "1s" })?;
    site.wait_for_streaming(STREAMING_WITHIN)?;
    site.stop_role(Role::Agent)?;
    disk.detach()?;
    fs::remove_file(&name)?;
    site.start_role(Role::Agent)?;
    site.wait_for_status("the missing disk", STREAMING_WITHIN, |disks| {
        disks.len() == 1 && disks[0].state == "paused" && disks[0].reason.starts_with(MISSING)
    })?;
    site.stop_role(Role::Agent)?;
    let back = LoopDisk::over(&path("disk.img"))?;
    symlink(&back.device, &name)?;
    site.start_role(Role::Agent)?;
    site.wait_for_streaming(STREAMING_WITHIN)?;
    site.expect_equal_replicas()?;
    ensure!(lock_files(&back)?.len() == 2, "{:?}", lock_files(&back)?);
    site.stop_role(Role::Agent)?;
    ensure!(lock_files(&back)?.is_empty(), "{:?}", lock_files(&back)?);
    site.stop_role(Role::Target)
}

/// A disk that grows or shrinks under load stops being good at once, and the other goes on; when
/// its size is back its marks count no more.
#[test]
fn a_disk_that_is_resized_while_it_is_protected_is_in_no_point() -> Result<()> {
    keep_mounts_private()?;
    for size in [80_u64 << 20, 48 << 20] {
        let scratch = scratch()?;
        let path = |name: &str| scratch.path().join(name);
        let kept = LoopDisk::create(&path("kept.img"), 32 << 20)?;
        let sized = LoopDisk::create(&path("sized.img"), 64 << 20)?;
        sized.write_at(&noise(1 << 20), 60 << 20)?;
        let disks = vec![("kept", kept.device.as_path()), ("sized", sized.device.as_path())];
        let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "1s" })?;
        site.wait_for_streaming(STREAMING_WITHIN)?;
        let (log, first) = (path("fio.log"), Some(32 << 20));
        let mut load = RandomWrites::start_over(&sized.device, first, 4, STREAMING_WITHIN, &log)?;
        new_point(&site, &site.points()?)?;

        let resize = |bytes| -> Result<()> {
            fs::OpenOptions::new().write(true).open(path("sized.img"))?.set_len(bytes)?;
            run("losetup", &["--set-capacity".as_ref(), sized.device.as_os_str()]).map(drop)
        };
        resize(size)?;
        let resized = Instant::now();
        let why = format!("size-changed: {}", sized.device.display());
        wait_for(&site, Role::Agent, "sized", "paused", &why)?;
        ensure!(resized.elapsed() < SEEN_WITHIN, "seen after {:?}", resized.elapsed());
        wait_for(&site, Role::Target, "sized", "paused", &why)?;
        streaming(&site, "kept")?;
        let id = site.mark_without("sized")?;
        not_verified(&site, "sized", 64 << 20)?;
        let point = site.points()?.into_iter().find(|point| point.id == id);
        ensure!(point.is_some_and(|point| !point.complete), "{id} claims the resized disk");
        refused(&site, Role::Agent, &["verify", "--disk", "sized"], 1)?;
        said(&site.logged(Role::Agent)?, "redoubt unprotect --disk")?;
        wait_until("an entry of the change", POINT_WITHIN, || {
            let entries = audited(scratch.path(), Role::Agent, "state")?;
            Ok(entries.iter().any(|entry| entry["reason"] == why.as_str()).then_some(()))
        })?;
        ensure!(load.is_running()?, "the load ended: {}", fs::read_to_string(&log)?);
        load.end()?;

        // What was cut off does not come back with the size.
        resize(64 << 20)?;
        site.stop_role(Role::Agent)?;
        site.start_role(Role::Agent)?;
        site.wait_for_streaming(STREAMING_WITHIN)?;
        site.expect_equal_replicas()?;
        site.stop_role(Role::Agent)?;
        site.stop_role(Role::Target)?;
    }
    Ok(())
}

/// An agent with a state directory of its own.
fn agent(scratch: &Path, name: &str, disks: &[&Path]) -> Result<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(binary()?).args(["agent", "--state"]);
    command.arg(scratch.join(format!("state-{name}")));
    command.env("REDOUBT_RUNTIME_DIR", scratch.join(format!("run-{name}")));
    for disk in disks {
        command.arg("--disk").arg(disk);
    }
    Ok(command)
}

fn expect_refused(refused: &Output, named: &[&Path]) -> Result<()> {
    let said = text(&refused.stderr);
    ensure!(refused.status.code() == Some(1), "{}: {said}", refused.status);
    for name in named {
        ensure!(
            said.contains(&name.display().to_string()),
            "{} is not named: {said}",
            name.display()
        );
    }
    Ok(())
}

/// A second agent, ended and detached with its owner.
struct SecondAgent {
    child: Child,
    detach: Command,
}

impl Drop for SecondAgent {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("cannot end the second agent: {error}");
        }
        if let Err(error) = finish(&mut self.detach) {
            eprintln!("cannot detach the second agent: {error:#}");
        }
    }
}

#[test]
fn a_disk_or_its_partitions_are_protected_and_never_both() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = LoopDisk::create(&scratch.path().join("disk.img"), 64 << 20)?;
    let partitions = disk.partition(&[16, 16])?;
    let (first, second) = (partitions.device(1), partitions.device(2));
    let disks = vec![("first", first.as_path())];
    let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "5s" })?;

    // A check says before what a start would say, and to its own agent that all is well.
    let (status, told) = checked(&mut agent(scratch.path(), "whole", &[&disk.device])?)?;
    ensure!(status == Some(3) && told.contains(&*first.to_string_lossy()), "{told}");
    let (status, told) = checked(&mut agent(scratch.path(), "same", &[&first])?)?;
    ensure!(status == Some(3) && told.contains("has this disk already"), "{told}");
    said(&told, "redoubt unprotect")?;
    let (status, told) = checked(&mut agent(scratch.path(), "twice", &[&second, &second])?)?;
    ensure!(status == Some(3) && told.contains("each only once"), "{told}");
    let mut own = Command::new(binary()?);
    own.args(["agent", "--state"]).arg(scratch.path().join("state")).arg("--disk").arg(&first);
    let (status, told) = checked(&mut own)?;
    ensure!(status == Some(0) && told.contains("protects it already"), "{told}");

    let refused = output(&mut agent(scratch.path(), "whole", &[&disk.device])?)?;
    expect_refused(&refused, &[&disk.device, &first])?;
    let refused = output(&mut agent(scratch.path(), "same", &[&first])?)?;
    expect_refused(&refused, &[&first])?;
    let refused = output(&mut agent(scratch.path(), "both", &[&second, &disk.device])?)?;
    expect_refused(&refused, &[&second, &disk.device])?;
    let missing = Path::new("/dev/no-such-disk");
    let refused = output(&mut agent(scratch.path(), "missing", &[&second, missing])?)?;
    expect_refused(&refused, &[missing])?;
    for name in ["state-missing", "run-missing", "state-whole", "state-same", "state-both"] {
        ensure!(!scratch.path().join(name).exists(), "{name} was left");
    }

    // The other partition is another agent's.
    let token = site.invite(&["--machine", "second"])?;
    let mut command = agent(scratch.path(), "second", &[&second])?;
    let log = fs::File::create(scratch.path().join("second.log"))?;
    command.args(["--token", &token]).stdin(Stdio::null()).stderr(log);
    let mut detach = agent(scratch.path(), "second", &[])?;
    detach.arg("--detach");
    let other = SecondAgent { child: command.spawn()?, detach };
    let mut status = Command::new(binary()?);
    status.env("REDOUBT_RUNTIME_DIR", scratch.path().join("run-second"));
    status.args(["status", "--json"]);
    wait_until("streaming of the second agent", STREAMING_WITHIN, || {
        let told = output(&mut status)?;
        Ok(text(&told.stdout).contains("\"streaming\"").then_some(()))
    })?;
    site.wait_for_streaming(STREAMING_WITHIN)?;
    site.stop_role(Role::Agent)?;

    // The whole disk is still not free; once it is another's, its partition is not.
    let refused = output(&mut agent(scratch.path(), "whole", &[&disk.device])?)?;
    expect_refused(&refused, &[&disk.device, &second])?;
    drop(other);
    site.stop_role(Role::Target)?;
    drop(site);
    let whole = scratch.path().join("whole");
    fs::create_dir(&whole)?;
    let disks = vec![("whole", disk.device.as_path())];
    let _site = Site::start(&whole, &Plan { disks, point_interval: "5s" })?;
    let refused = output(&mut agent(scratch.path(), "part", &[&second])?)?;
    expect_refused(&refused, &[&second, &disk.device])
}

/// How a check ends, and what it says of the last disk and of what to do.
fn checked(agent: &mut Command) -> Result<(Option<i32>, String)> {
    let checked = output(agent.args(["--check", "--json"]))?;
    let report: serde_json::Value = serde_json::from_str(&text(&checked.stdout))
        .with_context(|| format!("no report: {}", text(&checked.stderr)))?;
    let disk = report["disks"].as_array().and_then(|disks| disks.last()).context("no disk")?;
    Ok((checked.status.code(), format!("{} {}", disk["reason"], disk["remedy"])))
}

/// The files of a disk's locks.
fn lock_files(disk: &LoopDisk) -> Result<Vec<PathBuf>> {
    let name = disk.device.file_name().context("a device has a name")?;
    let number = fs::read_to_string(Path::new("/sys/block").join(name).join("diskseq"))?;
    let (file, part) = (number.trim().to_owned(), format!("{}.", number.trim()));
    let entries: Result<Vec<PathBuf>, _> =
        fs::read_dir("/run/lock/redoubt")?.map(|entry| entry.map(|it| it.path())).collect();
    let is_of_it = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name == file.as_str() || name.starts_with(&part)
    };
    Ok(entries?.into_iter().filter(is_of_it).collect())
}

/// Bytes that do not compress.
fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    rand::rng().fill(&mut noise[..]);
    noise
}

#[test]
fn a_loss_of_one_disk_does_not_bring_the_others_part_of_the_ring_into_memory() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let path = |name: &str| scratch.path().join(name);
    let loses = LoopDisk::create(&path("loses.img"), 128 << 20)?;
    let busy = LoopDisk::create(&path("busy.img"), 128 << 20)?;
    let disks = vec![("loses", loses.device.as_path()), ("busy", busy.device.as_path())];
    let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "5s" })?;
    site.wait_for_streaming(STREAMING_WITHIN)?;
    // One disk fills the ring while nobody drains it, the other finds no room.
    let process = site.process_id(Role::Agent)?;
    let agent = Pid::from_raw(i32::try_from(process)?);
    kill(agent, Signal::SIGSTOP)?;
    let filled =
        busy.write_at(&noise(60 << 20), 0).and_then(|()| loses.write_at(&noise(16 << 20), 0));
    kill(agent, Signal::SIGCONT)?;
    filled?;
    let mut most = 0;
    let sampled = wait_until("the loss in the status", STREAMING_WITHIN, || {
        for _ in 0..100 {
            most = most.max(resident_bytes(process)?);
            std::thread::sleep(SAMPLE_INTERVAL);
        }
        let disks = site.status()?;
        let streaming = disks.iter().all(|disk| disk.state == "streaming");
        Ok((streaming && disks[0].losses > 0).then_some(disks))
    })?;
    eprintln!("most resident: {} MiB", most >> 20);
    ensure!(sampled[1].losses == 0, "the busy disk has lost events, too: {sampled:?}");
    ensure!(most <= AGENT_BYTES_MAX, "the agent took {} MiB", most >> 20);
    site.expect_equal_replicas()?;
    site.stop_role(Role::Agent)?;
    site.stop_role(Role::Target)
}

fn pin_directories() -> Result<BTreeSet<PathBuf>> {
    let entries = fs::read_dir("/sys/fs/bpf").context("bpffs is not mounted")?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

#[test]
fn a_submission_that_nobody_saw_is_shown_and_read_again() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = LoopDisk::create(&scratch.path().join("disk.img"), 64 << 20)?;
    let disks = vec![("data", disk.device.as_path())];
    let before = pin_directories()?;
    let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "1s" })?;
    site.wait_for_streaming(STREAMING_WITHIN)?;
    let seen = site.status()?;
    ensure!((seen[0].misses, seen[0].mode.as_str()) == (0, "data"), "{seen:?}");

    // Without its name the program that sees submissions ends.
    let pins: Vec<PathBuf> = pin_directories()?.difference(&before).cloned().collect();
    let [pins] = &pins[..] else { anyhow::bail!("one agent makes one set of pins: {pins:?}") };
    fs::remove_file(pins.join("link_submitted"))?;
    let mut offset = 0;
    wait_until("a miss in the status", POINT_WITHIN, || {
        disk.write_at(&[0x5a; 1 << 16], offset)?;
        offset = (offset + (1 << 16)) % (32 << 20);
        Ok(site.status()?.iter().any(|disk| disk.misses > 0).then_some(()))
    })?;
    disk.write_at(&[0xa5; 1 << 20], 40 << 20)?;
    site.wait_for_streaming(STREAMING_WITHIN)?;
    site.expect_equal_replicas()?;

    let points = site.points()?;
    ensure!(points.iter().all(|point| point.proven), "{points:?}");
    site.stop_role(Role::Agent)?;
    site.stop_role(Role::Target)
}
