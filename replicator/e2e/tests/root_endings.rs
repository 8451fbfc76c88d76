//! Protection that ends at an awkward moment: in the middle of a verify, with the device gone, with
//! nothing left; and devices that two would have.

use anyhow::{Context, Result, ensure};
use redoubt_e2e::command::{output, run, text, wait_until};
use redoubt_e2e::disk::{LoopDisk, keep_mounts_private, scratch};
use redoubt_e2e::orders::{
    BOTH, MIB, WITHIN, audited, end, end_reason, equal, fill, half_full, host, invite, not_placed,
    ordered, place, protected_anew, refused, said, streaming, wait_for,
};
use redoubt_e2e::site::{Plan, Role, Site};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

fn plan<'a>(disks: &[(&'a str, &'a Path)]) -> Plan<'a> {
    Plan { disks: disks.to_vec(), point_interval: "1s" }
}

/// The verify ends without a result and says why, whoever asked for it; the disk that stays is
/// whole, and can be verified again.
#[test]
fn a_disk_is_let_go_while_it_is_verified() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let first = half_full(&scratch.path().join("first.img"), 64 * MIB)?;
    let second = half_full(&scratch.path().join("second.img"), 64 * MIB)?;
    let both = [("first", first.device.as_path()), ("second", second.device.as_path())];
    let mut site = Site::start(scratch.path(), &plan(&both))?;
    for (round, side) in BOTH.into_iter().enumerate() {
        streaming(&site, "first")?;
        streaming(&site, "second")?;
        // An agent that has just begun verifies only once all that was in flight has ended: so the
        // verify is under way when the order comes.
        site.stop_role(Role::Agent)?;
        site.start_role(Role::Agent)?;
        streaming(&site, "second")?;
        let mut verify = site.command(side);
        let verify = verify.arg("verify").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        wait_until("the verify", WITHIN, || {
            let entries = audited(scratch.path(), Role::Agent, "verify")?;
            let begun =
                entries.iter().filter(|it| it["actor"].is_null() && it["outcome"] == "begun");
            Ok((begun.count() > round * 2).then_some(()))
        })?;
        ordered(&site, side, &["unprotect", "--disk", "second"])?;
        let verify = verify.wait_with_output()?;
        ensure!(verify.status.code() == Some(1), "{verify:?}");
        said(&text(&verify.stderr), "the protection of a disk ends")?;
        let reason = end_reason(side);
        wait_for(&site, Role::Target, "second", "paused", reason)?;
        streaming(&site, "first")?;
        fill(&first, 0, MIB, 3)?;
        ensure!(site.verify(side)?.equal);
        equal(&site, "first", &first, 64 * MIB)?;
        let entries = audited(scratch.path(), Role::Agent, "verify")?;
        let ended = |outcome: &str| entries.iter().filter(|it| it["outcome"] == outcome).count();
        ensure!(ended("failed") > round && ended("ended") > round, "{entries:?}");
        site.stop_role(Role::Agent)?;
        site.start_role(Role::Agent)?;
    }
    end(site)
}

/// A disk whose device is gone is let go at either side; the other goes on, and points are complete
/// again.
#[test]
fn a_disk_that_is_not_there_is_let_go() -> Result<()> {
    keep_mounts_private()?;
    for side in BOTH {
        let scratch = scratch()?;
        let first = half_full(&scratch.path().join("first.img"), 32 * MIB)?;
        let second = half_full(&scratch.path().join("second.img"), 32 * MIB)?;
        let both = [("first", first.device.as_path()), ("second", second.device.as_path())];
        let mut site = Site::start(scratch.path(), &plan(&both))?;
        streaming(&site, "first")?;
        streaming(&site, "second")?;
        let kept = site.mark("kept", true)?;
        site.stop_role(Role::Agent)?;
        let why = format!("device-missing: {}", second.device.display());
        second.detach()?;
        site.set_disks(&[("first", &first.device)]);
        site.start_role(Role::Agent)?;
        for role in BOTH {
            wait_for(&site, role, "second", "paused", &why)?;
        }
        let told = ordered(&site, side, &["unprotect", "--disk", "second"])?;
        said(&told, if side == Role::Agent { "the target knows" } else { "has let it go" })?;
        let left: Vec<String> =
            site.status_of(Role::Agent)?.into_iter().map(|disk| disk.name).collect();
        ensure!(left == ["first"], "{left:?}");
        let reason = end_reason(side);
        wait_for(&site, Role::Target, "second", "paused", reason)?;
        streaming(&site, "first")?;
        let alone = site.mark("alone", true)?;
        let points = site.points()?;
        ensure!(points.iter().any(|point| point.id == alone && point.complete), "{points:?}");
        let image = scratch.path().join("copy.img");
        site.copy_out("second", &kept, &image)?;
        let original = scratch.path().join("second.img");
        run("cmp", &[image.as_os_str(), original.as_os_str()])?;
        // It stays so.
        site.stop_role(Role::Agent)?;
        site.start_role(Role::Agent)?;
        streaming(&site, "first")?;
        wait_for(&site, Role::Target, "second", "paused", reason)?;
        end(site)?;
    }
    Ok(())
}

/// With its last disk, named or not, the agent ends in order and leaves nothing in the kernel.
#[test]
fn the_last_disk_is_let_go() -> Result<()> {
    keep_mounts_private()?;
    for side in BOTH {
        let scratch = scratch()?;
        let disk = half_full(&scratch.path().join("disk.img"), 16 * MIB)?;
        let mut site = Site::start(scratch.path(), &plan(&[("data", &disk.device)]))?;
        streaming(&site, "data")?;
        let before = pins()?.len();
        let told = ordered(&site, side, &["unprotect", "--disk", "data"])?;
        said(&told, if side == Role::Agent { "and the agent ends" } else { "has let it go" })?;
        site.wait_for_end(Role::Agent)?;
        ensure!(pins()?.len() + 1 == before, "{:?}", pins()?);
        wait_for(&site, Role::Target, "data", "paused", end_reason(side))?;
        protected_anew(site, side, &disk, 16 * MIB)?;
    }
    Ok(())
}

/// As a kill leaves it once the end is remembered: a start with nothing to protect says so, and
/// leaves nothing in the kernel.
#[test]
fn the_last_end_is_finished_when_it_was_cut() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let state = scratch.path().join("state");
    let disk = half_full(&scratch.path().join("disk.img"), 16 * MIB)?;
    let before = pins()?;
    let mut site = Site::start(scratch.path(), &plan(&[("data", &disk.device)]))?;
    streaming(&site, "data")?;
    site.kill_role(Role::Agent)?;
    let file = state.join("state.json");
    let mut known: serde_json::Value = serde_json::from_slice(&fs::read(&file)?)?;
    let disk_of = known["disks"].as_array_mut().and_then(Vec::pop).context("no disk")?;
    known["ended"] = serde_json::json!([{ "index": disk_of["index"], "name": disk_of["name"] }]);
    fs::write(&file, serde_json::to_vec(&known)?)?;
    ensure!(pins()?.len() == before.len() + 1, "{:?}", pins()?);
    let mut agent = site.command(Role::Agent);
    let ended = output(agent.arg("agent").arg("--state").arg(&state))?;
    ensure!(ended.status.code() == Some(1), "{ended:?}");
    said(&text(&ended.stderr), "no disk to protect")?;
    said(&text(&ended.stderr), "nothing is tracked any more")?;
    ensure!(pins()? == before, "{:?}", pins()?);
    // The target learns it once there is something to protect.
    site.start_role(Role::Agent)?;
    streaming(&site, "data")?;
    wait_for(&site, Role::Target, "data.ended-0", "paused", "unprotected-by-agent")?;
    end(site)
}

/// The disks before it have ended, and are shown no more at once; those behind it are protected;
/// its own end is finished by the next start.
#[test]
fn an_end_that_fails_leaves_the_others_as_they_are() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let make = |name: &str| half_full(&scratch.path().join(name), 16 * MIB);
    let (first, second, third) = (make("first.img")?, make("second.img")?, make("third.img")?);
    let all = [("first", &first), ("second", &second), ("third", &third)];
    let all = all.map(|(name, disk)| (name, disk.device.as_path()));
    let before = pins()?;
    let mut site = Site::start(scratch.path(), &plan(&all))?;
    for (name, _) in all {
        streaming(&site, name)?;
    }
    // A directory in the place of a pin is not removed as one.
    let ours = pins()?.difference(&before).next().cloned().context("nothing is pinned")?;
    let in_the_way = Obstacle::put(ours.join("disk_1_0"))?;
    let told = refused(&site, Role::Agent, &["unprotect"], 1)?;
    let left = site.status_of(Role::Agent)?.into_iter().map(|disk| disk.name);
    let left: Vec<String> = left.collect();
    ensure!(left == ["third"], "{left:?}");
    said(&told, "second: ")?;
    wait_for(&site, Role::Target, "first", "paused", "unprotected-by-agent")?;
    drop(in_the_way);
    streaming(&site, "third")?;
    site.stop_role(Role::Agent)?;
    site.set_disks(&all[2..]);
    site.start_role(Role::Agent)?;
    streaming(&site, "third")?;
    wait_for(&site, Role::Target, "second", "paused", "unprotected-by-agent")?;
    equal(&site, "third", &third, 16 * MIB)?;
    end(site)
}

/// A directory in the place of a pin, gone when dropped.
struct Obstacle(PathBuf);

impl Obstacle {
    fn put(pin: PathBuf) -> Result<Self> {
        fs::remove_file(&pin)?;
        fs::create_dir(&pin)?;
        Ok(Self(pin))
    }
}

impl Drop for Obstacle {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// What agents have pinned in the kernel.
fn pins() -> Result<BTreeSet<PathBuf>> {
    let entries = fs::read_dir("/sys/fs/bpf").context("bpffs is not mounted")?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let is_ours = |path: &PathBuf| path.to_string_lossy().contains("/redoubt-");
    Ok(paths.into_iter().filter(is_ours).collect())
}

/// What an agent of this machine protects is no replica's place, and what a target has for a
/// replica no agent protects; each is told who has it. A device that waits is shown.
#[test]
fn a_device_has_one_user() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let root = scratch.path();
    let make = |name: &str| LoopDisk::create(&root.join(name), 40 * MIB);
    let (disk, more) = (half_full(&root.join("disk.img"), 32 * MIB)?, make("more.img")?);
    let replica = make("replica.img")?;
    let mut site = Site::start(root, &plan(&[("data", &disk.device)]))?;
    let machine = host()?;
    streaming(&site, "data")?;
    let told = not_placed(&site, &machine, "more", &disk.device)?;
    said(&told, &format!("the agent with --state {}", root.join("state").display()))?;
    ensure!(waiting(&site)?.is_empty());

    invite(&site, root, "web-02")?;
    place(&site, &machine, "more", &replica.device)?;
    let expected = format!("{machine}/more on {}", replica.device.display());
    ensure!(waiting(&site)? == [expected.as_str()], "{:?}", waiting(&site)?);
    let shown = text(&output(site.command(Role::Target).arg("status"))?.stdout);
    said(&shown, &format!("{} will be its replica", replica.device.display()))?;

    // Once it holds the replica it waits no more, and no agent takes it.
    site.stop_role(Role::Agent)?;
    site.set_disks(&[("data", &disk.device), ("more", &more.device)]);
    site.start_role(Role::Agent)?;
    streaming(&site, "more")?;
    ensure!(waiting(&site)?.is_empty());
    let mut check = site.command(Role::Agent);
    let state = root.join("other-state");
    let named = format!("{}=replica", replica.device.display());
    check.args(["agent", "--disk", &named, "--token-file"]).arg(root.join("token"));
    check.arg("--state").arg(&state).env("REDOUBT_RUNTIME_DIR", root.join("other-run"));
    let refused = output(&mut check)?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    let who = format!("the target with --data {}", site.data().display());
    said(&text(&refused.stderr), &who)?;
    let entries = audited(root, Role::Target, "place")?;
    let by_role = entries.iter().filter(|it| it["actor"].is_null() && it["outcome"] == "done");
    ensure!(by_role.count() == 1, "{entries:?}");
    streaming(&site, "more")?;
    equal(&site, "more", &more, 40 * MIB)?;
    end(site)
}

/// Devices that the target's status shows as waiting for their disks.
fn waiting(site: &Site) -> Result<Vec<String>> {
    let printed = text(&output(site.command(Role::Target).args(["status", "--json"]))?.stdout);
    let status: serde_json::Value = serde_json::from_str(&printed)?;
    let waiting = status["placements"].as_array().context("no placements")?;
    let show = |it: &serde_json::Value| {
        let of = |name: &str| it[name].as_str().unwrap_or_default().to_owned();
        format!("{}/{} on {}", of("machine"), of("disk"), of("device"))
    };
    Ok(waiting.iter().map(show).collect())
}
