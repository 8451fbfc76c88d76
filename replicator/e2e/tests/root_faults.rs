//! Faults from outside: the line is cut, the target's disk fails, the clock jumps, either role is
//! replaced while the machine writes.

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use redoubt_e2e::command::{output, run, text, wait_until};
use redoubt_e2e::disk::{Filesystem, LoopDisk, Mounted, keep_mounts_private, scratch};
use redoubt_e2e::launch;
use redoubt_e2e::load::RandomWrites;
use redoubt_e2e::outage;
use redoubt_e2e::report::Point;
use redoubt_e2e::site::{Plan, Role, Site, binary};
use std::ffi::OsString;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

const STREAMING_WITHIN: Duration = Duration::from_secs(300);
const POINT_WITHIN: Duration = Duration::from_secs(60);
/// Longer than any test.
const LOAD_FOR: Duration = Duration::from_secs(3600);
const DISK_BYTES: u64 = 256 << 20;
/// The part of the disk that is written all the time: less than what a whole read would bring.
const BUSY_BYTES: u64 = 32 << 20;
const MEGABYTES_PER_SECOND: u32 = 2;
const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn a_cut_line_is_told_and_the_same_log_goes_on() -> Result<()> {
    outage::cut_for(Duration::from_secs(20))
}

/// A site whose disk is written all the time. Fields end in this order.
struct Busy {
    site: Site,
    load: RandomWrites,
    disk: LoopDisk,
    scratch: tempfile::TempDir,
}

impl Busy {
    /// In a directory of its own, below a launcher, until the disk streams.
    fn start(scratch: tempfile::TempDir, launcher: &[OsString], size: u64) -> Result<Self> {
        let path = scratch.path();
        let disk = LoopDisk::create(&path.join("disk.img"), size)?;
        let disks = vec![("data", disk.device.as_path())];
        let mut site = Site::prepare(path, &Plan { disks, point_interval: "1s" }, launcher)?;
        site.start_role(Role::Agent)?;
        site.wait_for_streaming(STREAMING_WITHIN)?;
        let load = RandomWrites::start_over(
            &disk.device,
            Some(BUSY_BYTES),
            MEGABYTES_PER_SECOND,
            LOAD_FOR,
            &path.join("fio.log"),
        )?;
        site.mark("the load runs", false)?;
        Ok(Self { site, load, disk, scratch })
    }

    /// The writes end, and everything must be equal.
    fn finish(mut self) -> Result<()> {
        ensure!(self.load.is_running()?, "the load has ended too early");
        self.load.end()?;
        self.wait_for_streaming()?;
        self.site.expect_equal_replicas()?;
        self.site.end()
    }

    /// Waits until both sides call it streaming: the target alone would for some seconds repeat the
    /// last word of an agent that was killed.
    fn wait_for_streaming(&mut self) -> Result<()> {
        wait_until("streaming at the agent", STREAMING_WITHIN, || {
            let disks = self.site.status_of(Role::Agent)?;
            let streaming = disks.iter().all(|disk| disk.state == "streaming");
            Ok((streaming && !disks.is_empty()).then_some(()))
        })?;
        self.site.wait_for_streaming(STREAMING_WITHIN)
    }

    /// Waits until the load has written so many bytes more; meanwhile `check` must hold.
    fn wait_for_writes(&self, bytes: u64, check: impl Fn() -> Result<()>) -> Result<()> {
        let before = self.disk.written_bytes()?;
        wait_until("writes of the load", POINT_WITHIN, || {
            check()?;
            Ok((self.disk.written_bytes()? >= before + bytes).then_some(()))
        })
    }

    /// The run of the agent that writes the log, and what of it is acknowledged.
    fn position(&self) -> Result<(u64, u64)> {
        let position = &self.site.machine_of(Role::Target)?["disks"][0]["position"];
        let number = |name: &str| position[name].as_u64().context("no position");
        Ok((number("incarnation")?, number("acknowledged")?))
    }

    /// Waits for a point behind these that is good, and returns all of them.
    fn next_good_point(&self, before: &[Point]) -> Result<Vec<Point>> {
        wait_until("a good point", POINT_WITHIN, || {
            let points = self.site.points()?;
            let known = |point: &Point| before.iter().any(|before| before.id == point.id);
            let good = |point: &Point| point.complete && point.proven && !known(point);
            Ok(points.iter().any(good).then_some(points))
        })
    }
}

/// Stops a role in order, starts it again as another release would be, and returns the most bytes
/// that were told to remain.
fn replace(busy: &mut Busy, role: Role) -> Result<u64> {
    busy.site.stop_role(role)?;
    // Writes that nobody follows.
    busy.wait_for_writes(4 << 20, || Ok(()))?;
    busy.site.start_role(role)?;
    let mut most = 0;
    wait_until("streaming after the restart", STREAMING_WITHIN, || {
        let disks = busy.site.status_of(Role::Agent)?;
        most = disks.iter().map(|disk| disk.bytes_remaining).fold(most, u64::max);
        let shown = busy.site.status()?;
        let streaming = disks.iter().chain(&shown).all(|disk| disk.state == "streaming");
        Ok((streaming && shown.len() == 1).then_some(()))
    })?;
    Ok(most)
}

/// No more was to be read again than both epochs' marks, to the granule; but for a completion that
/// the kernel did not tell of, which is answered by reading everything.
fn expect_only_marked(busy: &Busy, most: u64) -> Result<()> {
    let is_excused = busy.site.log_of(Role::Agent)?.contains("a completion was missed");
    ensure!(is_excused || most <= BUSY_BYTES + (1 << 20), "{most} bytes were to be read again");
    Ok(())
}

/// Replaces a role twice under load: only what was written meanwhile is read, and points stay.
/// `is_right` judges run and acknowledged position, before and after.
fn expect_replaced(role: Role, is_right: fn((u64, u64), (u64, u64)) -> bool) -> Result<()> {
    keep_mounts_private()?;
    let mut busy = Busy::start(scratch()?, &[], DISK_BYTES)?;
    for _ in 0..2 {
        let position = busy.position()?;
        let before = busy.site.points()?;
        let most = replace(&mut busy, role)?;
        let now = busy.position()?;
        ensure!(is_right(position, now), "{now:?} after {position:?}");
        expect_only_marked(&busy, most)?;
        let points = busy.next_good_point(&before)?;
        let kept = before.iter().all(|old| points.iter().any(|point| point.id == old.id));
        ensure!(kept, "points are gone: {before:?} became {points:?}");
    }
    let said = busy.site.log_of(Role::Agent)?;
    ensure!(said.matches("the whole disk is read").count() == 1, "it was read again:\n{said}");
    busy.finish()
}

#[test]
fn an_agent_is_replaced_under_load_and_reads_only_what_was_written_meanwhile() -> Result<()> {
    expect_replaced(Role::Agent, |(run, _), (now, _)| now == run + 1)
}

#[test]
fn a_target_is_replaced_under_load_and_the_same_run_goes_on() -> Result<()> {
    expect_replaced(Role::Target, |(run, acknowledged), (same, now)| {
        same == run && now >= acknowledged
    })
}

/// A disk that has no room for what it says it has: its writes fail once the ballast is there.
struct Overcommitted {
    memory: PathBuf,
}

impl Overcommitted {
    /// An image of `size` bytes in `room` bytes of memory.
    fn make(memory: PathBuf, room: u64, size: u64) -> Result<(Self, LoopDisk)> {
        fs::create_dir(&memory)?;
        let options = format!("size={room}");
        let arguments = ["-t", "tmpfs", "-o", &options, "redoubt-e2e"].map(OsString::from);
        run("mount", &[&arguments[..], &[memory.clone().into()]].concat())?;
        let disk = LoopDisk::create(&memory.join("disk.img"), size)?;
        Ok((Self { memory }, disk))
    }

    /// Takes all room that is left.
    fn fail(&self) -> Result<()> {
        let mut take = Command::new("dd");
        take.args(["if=/dev/zero", "bs=64K"]);
        take.arg(format!("of={}", self.memory.join("ballast").display()));
        let taken = output(&mut take)?;
        let said = text(&taken.stderr);
        ensure!(said.contains("No space left"), "the memory is not full: {said}");
        Ok(())
    }

    fn recover(&self) -> Result<()> {
        Ok(fs::remove_file(self.memory.join("ballast"))?)
    }
}

impl Drop for Overcommitted {
    fn drop(&mut self) {
        let flags = nix::mount::MntFlags::MNT_DETACH;
        if let Err(error) = nix::mount::umount2(&self.memory, flags) {
            eprintln!("cannot unmount {}: {error}", self.memory.display());
        }
    }
}

/// Waits until the target says that it takes nothing and the agent that it is not well, and proves
/// that nothing more is acknowledged. Returns what is shown, and what was acknowledged.
fn expect_standstill(busy: &Busy) -> Result<(String, u64)> {
    let mut shown = String::new();
    wait_until("the fault in the status", POINT_WITHIN, || {
        let disks = busy.site.status()?.into_iter().chain(busy.site.status_of(Role::Agent)?);
        let disks: Vec<_> = disks.collect();
        shown.clone_from(&disks[0].reason);
        Ok(disks.iter().all(|disk| disk.state == "paused").then_some(()))
    })?;
    let (_, acknowledged) = busy.position()?;
    // The machine writes on meanwhile, so that there is something to be taken.
    busy.wait_for_writes(8 << 20, || {
        let disks = busy.site.status()?.into_iter().chain(busy.site.status_of(Role::Agent)?);
        let good: Vec<_> = disks.filter(|disk| disk.state != "paused").collect();
        ensure!(good.is_empty(), "called good though nothing is taken: {good:?}");
        Ok(())
    })?;
    ensure!(busy.position()?.1 == acknowledged, "acknowledged beyond the fault");
    Ok((shown, acknowledged))
}

/// Everything that was acknowledged is still there, a point that was good is as it was, and the
/// site goes on.
fn expect_nothing_lost(mut busy: Busy, acknowledged: u64, good: &str) -> Result<()> {
    busy.wait_for_streaming()?;
    ensure!(busy.position()?.1 >= acknowledged, "acknowledged and lost");
    let path = busy.scratch.path().to_path_buf();
    busy.site.copy_out("data", good, &path.join("after.img"))?;
    run("cmp", &[path.join("before.img"), path.join("after.img")])?;
    busy.finish()
}

/// A site's directory, which cannot go with the site where a file system is still mounted in it: it
/// goes with the one around it.
fn below(outer: &tempfile::TempDir) -> Result<tempfile::TempDir> {
    Ok(tempfile::tempdir_in(outer.path())?)
}

#[test]
fn a_disk_that_runs_out_below_the_targets_files_is_a_full_one_and_it_goes_on_by_itself()
-> Result<()> {
    keep_mounts_private()?;
    let outer = scratch()?;
    let scratch = below(&outer)?;
    let path = scratch.path().to_path_buf();
    let (memory, under) = Overcommitted::make(path.join("memory"), 512 << 20, 1 << 30)?;
    Filesystem::Ext4.make(&under)?;
    let data = Mounted::new(Filesystem::Ext4, &under, &path.join("data"))?;
    let busy = Busy::start(scratch, &[], 64 << 20)?;
    let good = busy.site.mark("before the fault", true)?;
    busy.site.copy_out("data", &good, &path.join("before.img"))?;
    memory.fail()?;
    let (shown, acknowledged) = expect_standstill(&busy)?;
    ensure!(shown == "target-full", "{shown}");
    memory.recover()?;
    expect_nothing_lost(busy, acknowledged, &good)?;
    data.unmount()
}

#[test]
fn a_failing_disk_below_the_targets_files_is_told_and_loses_nothing() -> Result<()> {
    keep_mounts_private()?;
    let outer = scratch()?;
    let scratch = below(&outer)?;
    let path = scratch.path().to_path_buf();
    let memory = memfd_create("redoubt-e2e", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC)?;
    let memory = fs::File::from(memory);
    memory.set_len(1 << 30)?;
    let content = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
    let under = LoopDisk::over(Path::new(&content))?;
    Filesystem::Ext4.make(&under)?;
    let data = Mounted::new(Filesystem::Ext4, &under, &path.join("data"))?;
    let mut busy = Busy::start(scratch, &[], 64 << 20)?;
    let good = busy.site.mark("before the fault", true)?;
    busy.site.copy_out("data", &good, &path.join("before.img"))?;

    // Nobody may write to it any more, not even the kernel: every write of the disk is an EIO.
    fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE))?;
    let (shown, acknowledged) = expect_standstill(&busy)?;
    ensure!(shown.starts_with("journal-failed: "), "{shown}");

    // Another disk with what could be saved, and the target again, as the status says.
    busy.site.stop_role(Role::Target)?;
    data.unmount()?;
    drop(under);
    run("cp", &["--sparse=always", &content, &path.join("saved.img").to_string_lossy()])?;
    let under = LoopDisk::over(&path.join("saved.img"))?;
    let data = Mounted::new(Filesystem::Ext4, &under, &path.join("data"))?;
    busy.site.start_role(Role::Target)?;
    expect_nothing_lost(busy, acknowledged, &good)?;
    data.unmount()
}

/// Sets what the wall clock of a role is off by.
fn set_clock(file: &Path, offset: &str) -> Result<()> {
    let next = file.with_extension("next");
    fs::write(&next, format!("{offset}\n"))?;
    Ok(fs::rename(next, file)?)
}

/// Points come, in the order of the log, good and at the time that the machine believes in; what is
/// told in between makes sense.
fn expect_points_at(busy: &mut Busy, before: &[Point], skew: i64) -> Result<Vec<Point>> {
    let mut points = before.to_vec();
    for _ in 0..3 {
        points = busy.next_good_point(&points)?;
        let machine = busy.site.machine_of(Role::Target)?;
        let rpo = machine["rpo_seconds"].as_f64().context("no RPO")?;
        ensure!((0.0..60.0).contains(&rpo), "an RPO of {rpo} s");
    }
    busy.wait_for_streaming()?;
    let newest = points.last().context("no point")?;
    let now = SystemTime::now();
    let believed = match skew {
        0.. => now + DAY * u32::try_from(skew)?,
        _ => now - DAY * u32::try_from(-skew)?,
    };
    let off = newest.taken_at.duration_since(believed).unwrap_or_else(|error| error.duration());
    ensure!(off < Duration::from_secs(120), "{newest:?} is not of {skew} days from now");
    let ids = |points: &[Point]| points.iter().map(|point| point.id.clone()).collect::<Vec<_>>();
    let kept = &points[..before.len().min(points.len())];
    ensure!(ids(kept) == ids(before), "{before:?} became {points:?}");
    ensure!(points.iter().all(|point| point.proven), "{points:?}");
    Ok(points)
}

#[test]
fn points_stay_good_and_are_kept_when_the_agents_clock_jumps() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let clock = scratch.path().join("clock");
    set_clock(&clock, "+0")?;
    let launcher = launch::with_clock("agent", &clock);
    let mut busy = Busy::start(scratch, &launcher, 64 << 20)?;
    let mut points = busy.site.points()?;
    for (offset, skew) in [("+1d", 1), ("-1d", -1), ("+0", 0)] {
        set_clock(&clock, offset)?;
        // The first may still be of the old time.
        points = busy.next_good_point(&points)?;
        expect_points_at(&mut busy, &points, skew).with_context(|| offset.to_owned())?;
        let id = busy.site.mark("at this clock", true)?;
        busy.site.copy_out("data", &id, &busy.scratch.path().join("point.img"))?;
        fs::remove_file(busy.scratch.path().join("point.img"))?;
        points = busy.site.points()?;
        // A certificate is good for a day back, and for years.
        busy.site.kill_role(Role::Agent)?;
        busy.site.start_role(Role::Agent)?;
        busy.wait_for_streaming()?;
    }

    // Beyond that no connection is made, and the log says that it is the clock.
    busy.site.kill_role(Role::Agent)?;
    set_clock(&clock, "-30d")?;
    busy.site.start_role(Role::Agent)?;
    wait_until("the wrong clock in the log", POINT_WITHIN, || {
        let disks = busy.site.status_of(Role::Agent)?;
        ensure!(disks.iter().all(|disk| disk.state != "streaming"), "{disks:?}");
        let said = busy.site.log_of(Role::Agent)?;
        Ok(said.contains("not valid yet").then_some(()))
    })?;
    set_clock(&clock, "+0")?;
    busy.wait_for_streaming()?;
    busy.finish()
}

/// A machine that would join, and is ended and detached with its owner.
struct Newcomer {
    child: Option<Child>,
    scratch: PathBuf,
}

impl Newcomer {
    fn command(&self) -> Result<Command> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(binary()?).args(["agent", "--state"]);
        command.arg(self.scratch.join("state-new"));
        command.env("REDOUBT_RUNTIME_DIR", self.scratch.join("run-new"));
        command.stdin(Stdio::null());
        Ok(command)
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take()
            && let Err(error) = child.kill().and_then(|()| child.wait())
        {
            eprintln!("cannot end the newcomer: {error}");
        }
        let detached = self.command().and_then(|mut command| output(command.arg("--detach")));
        if let Err(error) = detached {
            eprintln!("cannot detach the newcomer: {error:#}");
        }
    }
}

#[test]
fn points_are_kept_and_tokens_expire_by_the_targets_clock_when_it_jumps() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let clock = scratch.path().join("clock");
    set_clock(&clock, "+0")?;
    let launcher = launch::with_clock("master-target", &clock);
    let mut busy = Busy::start(scratch, &launcher, 64 << 20)?;
    let token = busy.site.invite(&["--machine", "newcomer"])?;
    let other = LoopDisk::create(&busy.scratch.path().join("new.img"), 16 << 20)?;
    let mut newcomer = Newcomer { child: None, scratch: busy.scratch.path().to_path_buf() };
    let mut joins = newcomer.command()?;
    joins.arg("--disk").arg(&other.device).args(["--token", &token]);
    let mut points = busy.site.points()?;
    for offset in ["+1d", "-1d", "+0"] {
        set_clock(&clock, offset)?;
        points = expect_points_at(&mut busy, &points, 0).with_context(|| offset.to_owned())?;
        if offset == "+1d" {
            let log = busy.scratch.path().join("refused.log");
            newcomer.child = Some(joins.stderr(fs::File::create(&log)?).spawn()?);
            let status = wait_until("the refusal of the newcomer", POINT_WITHIN, || {
                Ok(newcomer.child.as_mut().context("it was started")?.try_wait()?)
            })?;
            let said = fs::read_to_string(&log)?;
            ensure!(status.code() == Some(1), "{status}: {said}");
            ensure!(said.contains("expired"), "{said}");
        }
        busy.site.stop_role(Role::Target)?;
        busy.site.start_role(Role::Target)?;
        busy.wait_for_streaming()?;
    }
    // A token that was refused for the clock alone is not used up.
    let log = fs::File::create(busy.scratch.path().join("new.log"))?;
    newcomer.child = Some(joins.stderr(log).spawn()?);
    wait_until("the newcomer", STREAMING_WITHIN, || {
        let status = output(busy.site.command(Role::Target).args(["status", "--json"]))?;
        Ok(text(&status.stdout).contains("\"newcomer\"").then_some(()))
    })?;
    drop(newcomer);
    drop(busy.load);
    busy.site.end()
}
