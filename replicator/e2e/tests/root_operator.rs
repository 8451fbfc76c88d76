//! What operators order, on real disks with real processes: pause, unprotect, place, and disks that
//! are added later. Whatever is ordered at one side is true at both, and outlives restarts.

use anyhow::{Context, Result, ensure};
use redoubt_e2e::command::{finish, run, wait_until};
use redoubt_e2e::disk::{Filesystem, LoopDisk, Mounted, keep_mounts_private, scratch};
use redoubt_e2e::load::RandomWrites;
use redoubt_e2e::orders::{
    BOTH, MIB, WITHIN, audited, audited_ends, end, equal, fill, half_full, host, invite,
    not_placed, ordered, place, protected_anew, refused, said, streaming, wait_for,
};
use redoubt_e2e::site::{Plan, Role, Site};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;
use std::time::Duration;

#[test]
fn a_pause_is_one_for_both_sides_and_outlives_restarts() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = half_full(&scratch.path().join("disk.img"), 64 * MIB)?;
    let disks = vec![("data", disk.device.as_path())];
    let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "1s" })?;
    streaming(&site, "data")?;
    said(&ordered(&site, Role::Agent, &["pause"])?, "paused")?;
    for role in BOTH {
        wait_for(&site, role, "data", "paused", "by-operator")?;
        said(&refused(&site, role, &["mark"], 1)?, "redoubt resume")?;
    }
    let points = site.points()?.len();
    for (megabytes, role) in [(4, Role::Agent), (12, Role::Target)] {
        fill(&disk, 40 * MIB, megabytes * MIB, 7)?;
        // Whoever starts anew still knows.
        site.stop_role(role)?;
        site.start_role(role)?;
        for role in BOTH {
            let status = wait_for(&site, role, "data", "paused", "by-operator")?;
            let remaining = wait_until("what a resume has to read", WITHIN, || {
                let disks = site.status_of(role)?;
                Ok(disks
                    .first()
                    .map(|disk| disk.bytes_remaining)
                    .filter(|it| *it >= megabytes * MIB))
            });
            remaining.with_context(|| format!("{status:?}"))?;
        }
    }
    ensure!(site.points()?.len() == points, "a paused machine has taken a point");
    said(&ordered(&site, Role::Target, &["resume"])?, "resumed")?;
    streaming(&site, "data")?;
    equal(&site, "data", &disk, 64 * MIB)?;

    // Each side is told while the other is away.
    site.stop_role(Role::Agent)?;
    said(&ordered(&site, Role::Target, &["pause"])?, "is not connected")?;
    site.start_role(Role::Agent)?;
    wait_for(&site, Role::Agent, "data", "paused", "by-operator")?;
    wait_for(&site, Role::Target, "data", "paused", "by-operator")?;
    site.stop_role(Role::Target)?;
    fill(&disk, 20 * MIB, MIB, 9)?;
    wait_until("the agent notices", WITHIN, || {
        let status = finish(site.command(Role::Agent).args(["status", "--json"]))?;
        Ok(status.contains(r#""connected":false"#).then_some(()))
    })?;
    said(&ordered(&site, Role::Agent, &["resume"])?, "is not connected")?;
    site.start_role(Role::Target)?;
    streaming(&site, "data")?;
    equal(&site, "data", &disk, 64 * MIB)?;

    for role in BOTH {
        for action in ["pause", "resume"] {
            let entries = audited_ends(scratch.path(), role, action)?;
            let by_hand = entries.iter().filter(|entry| entry["actor"] == 0).count();
            let heard = entries.iter().filter(|entry| entry["actor"].is_null()).count();
            ensure!((by_hand, heard) == (1, 1), "{role:?} {action}: {entries:?}");
            ensure!(entries.iter().all(|entry| entry["outcome"] == "done"), "{entries:?}");
        }
    }
    end(site)
}

#[test]
fn a_disk_is_let_go_kept_and_protected_again_beside_another() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let first = half_full(&scratch.path().join("first.img"), 64 * MIB)?;
    let second = half_full(&scratch.path().join("second.img"), 32 * MIB)?;
    let disks = vec![("first", first.device.as_path())];
    let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "1s" })?;
    streaming(&site, "first")?;
    let before = site.mark("one disk", true)?;

    // One more --disk adds it; the first disk goes on where it was.
    ensure!(read_whole(&site)? == 1);
    site.stop_role(Role::Agent)?;
    site.set_disks(&[("first", &first.device), ("second", &second.device)]);
    site.start_role(Role::Agent)?;
    streaming(&site, "first")?;
    streaming(&site, "second")?;
    ensure!(read_whole(&site)? == 2, "only the added disk is read whole");
    equal(&site, "first", &first, 64 * MIB)?;
    equal(&site, "second", &second, 32 * MIB)?;
    let both = site.mark("both", true)?;
    let points = site.points()?;
    ensure!(points.iter().any(|point| point.id == before), "the first disk's points stay");
    ensure!(points.iter().any(|point| point.id == both && point.complete));

    let_go(&site, second)?;
    let second = protected_again(&mut site, scratch.path(), &first)?;
    let image = scratch.path().join("copy.img");
    site.copy_out("second.ended-1", &both, &image)?;
    let original = scratch.path().join("second.img");
    run("cmp", &[image.as_os_str(), original.as_os_str()])?;
    forgotten(&mut site, &before)?;
    equal(&site, "first", &first, 64 * MIB)?;
    equal(&site, "second", &second, 48 * MIB)?;

    let object = format!("{}/second", host()?);
    for (role, actor) in [(Role::Agent, Some(0)), (Role::Target, None)] {
        let entries = audited(scratch.path(), role, "unprotect")?;
        let found = entries.iter().any(|entry| {
            entry["object"] == object
                && entry["actor"].as_u64() == actor
                && entry["outcome"] == "done"
        });
        ensure!(found, "{role:?}: {entries:?}");
    }
    ensure!(audited_ends(scratch.path(), Role::Target, "delete-replica")?.len() == 1);
    end(site)
}

/// Ends the second disk's protection at the agent; the first goes on, and nothing is held.
fn let_go(site: &Site, second: LoopDisk) -> Result<()> {
    let told = ordered(site, Role::Agent, &["unprotect", "--disk", "second"])?;
    said(&told, "the target knows")?;
    said(&refused(site, Role::Agent, &["unprotect", "--disk", "second"], 1)?, "there are first")?;
    let left: Vec<String> =
        site.status_of(Role::Agent)?.into_iter().map(|disk| disk.name).collect();
    ensure!(left == ["first"], "{left:?}");
    wait_for(site, Role::Target, "second", "paused", "unprotected-by-agent")?;
    streaming(site, "first")?;
    let alone = site.mark("alone", true)?;
    let points = site.points()?;
    ensure!(points.iter().any(|point| point.id == alone && point.complete), "{points:?}");
    // A loop device goes with the last who has it open.
    let node = second.device.clone();
    drop(second);
    wait_until("the end of the loop device", WITHIN, || {
        let left = run("losetup", &["--list", "--noheadings", "--output", "BACK-FILE"])?;
        Ok((!left.contains("second.img")).then_some(()))
    })
    .with_context(|| format!("{} is held", node.display()))
}

/// Protects another second disk, larger than the one before.
fn protected_again(site: &mut Site, root: &Path, first: &LoopDisk) -> Result<LoopDisk> {
    let second = half_full(&root.join("second-again.img"), 48 * MIB)?;
    site.stop_role(Role::Agent)?;
    site.set_disks(&[("first", &first.device), ("second", &second.device)]);
    site.start_role(Role::Agent)?;
    streaming(site, "second")?;
    streaming(site, "first")?;
    ensure!(read_whole(site)? == 3);
    wait_for(site, Role::Target, "second.ended-1", "paused", "unprotected-by-agent")?;
    Ok(second)
}

/// Deletes what is kept of the old second disk; the rest does not notice.
fn forgotten(site: &mut Site, before: &str) -> Result<()> {
    let words = ["unprotect", "--disk", "second.ended-1", "--delete-replica"];
    said(&refused(site, Role::Agent, &words, 1)?, "at the target only")?;
    said(&ordered(site, Role::Target, &words)?, "its replica is deleted")?;
    let names: Vec<String> = site.status()?.into_iter().map(|disk| disk.name).collect();
    ensure!(names == ["first", "second"], "{names:?}");
    ensure!(site.points()?.iter().any(|point| point.id == before));
    site.stop_role(Role::Target)?;
    site.start_role(Role::Target)?;
    streaming(site, "second")
}

/// How many disks the agent began to read whole, in all its runs.
fn read_whole(site: &Site) -> Result<usize> {
    let log = site.logged(Role::Agent)?;
    Ok(log.lines().filter(|line| line.contains("the whole disk is read")).count())
}

/// kill -9 at instants around an order: it was carried out, or it was not, and can be given again.
#[test]
fn an_agent_that_is_killed_while_it_lets_a_disk_go_finishes_that() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let first = half_full(&scratch.path().join("first.img"), 16 * MIB)?;
    let second = half_full(&scratch.path().join("second.img"), 16 * MIB)?;
    let both = [("first", first.device.as_path()), ("second", second.device.as_path())];
    let plan = Plan { disks: both.to_vec(), point_interval: "1s" };
    let mut site = Site::start(scratch.path(), &plan)?;
    for milliseconds in [0, 2, 5, 10, 20, 40] {
        streaming(&site, "first")?;
        streaming(&site, "second")?;
        let mut order =
            site.command(Role::Agent).args(["unprotect", "--disk", "second"]).spawn()?;
        std::thread::sleep(Duration::from_millis(milliseconds));
        site.kill_role(Role::Agent)?;
        order.wait()?;
        site.set_disks(&both[..1]);
        site.start_role(Role::Agent)?;
        let known = wait_until("the agent's disks", WITHIN, || {
            let disks = site.status_of(Role::Agent)?;
            Ok((!disks.is_empty()).then_some(disks))
        })?;
        if known.iter().any(|disk| disk.name == "second") {
            ordered(&site, Role::Agent, &["unprotect", "--disk", "second"])?;
        }
        wait_for(&site, Role::Target, "second", "paused", "unprotected-by-agent")?;
        streaming(&site, "first")?;
        equal(&site, "first", &first, 16 * MIB)?;
        // Its number is taken, and its name is free.
        site.stop_role(Role::Agent)?;
        site.set_disks(&both);
        site.start_role(Role::Agent)?;
    }
    streaming(&site, "second")?;
    equal(&site, "second", &second, 16 * MIB)?;
    end(site)
}

/// A disk that has grown is refused until its protection is ended, at either side, and then is
/// protected anew.
#[test]
fn a_disk_that_grew_is_protected_again() -> Result<()> {
    keep_mounts_private()?;
    for side in BOTH {
        let scratch = scratch()?;
        let path = scratch.path().join("disk.img");
        let disk = half_full(&path, 32 * MIB)?;
        let disks = vec![("data", disk.device.as_path())];
        let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "1s" })?;
        streaming(&site, "data")?;
        site.stop_role(Role::Agent)?;
        OpenOptions::new().write(true).open(&path)?.set_len(40 * MIB)?;
        run("losetup", &["--set-capacity".as_ref(), disk.device.as_os_str()])?;
        fill(&disk, 32 * MIB, 8 * MIB, 3)?;
        site.start_role(Role::Agent)?;
        let why = format!("size-changed: {}", disk.device.display());
        BOTH.into_iter()
            .try_for_each(|role| wait_for(&site, role, "data", "paused", &why).map(drop))?;
        said(&site.logged(Role::Agent)?, "redoubt unprotect --disk")?;
        let told = ordered(&site, side, &["unprotect", "--disk", "data"])?;
        said(&told, if side == Role::Agent { "the target knows" } else { "has let it go" })?;
        // It was the last disk: nothing is left to do.
        site.wait_for_end(Role::Agent)?;
        protected_anew(site, side, &disk, 40 * MIB)?;
    }
    Ok(())
}

#[test]
fn a_machine_is_let_go_forgotten_and_invited_anew() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = half_full(&scratch.path().join("disk.img"), 32 * MIB)?;
    let disks = vec![("data", disk.device.as_path())];
    let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "1s" })?;
    streaming(&site, "data")?;
    let kept = site.mark("kept", true)?;

    // From the target, without deleting: the agent lets go and ends; what is kept stays.
    said(&ordered(&site, Role::Target, &["unprotect"])?, "its agent has let it go")?;
    site.wait_for_end(Role::Agent)?;
    wait_for(&site, Role::Target, "data", "paused", "unprotected")?;
    let image = scratch.path().join("copy.img");
    site.copy_out("data", &kept, &image)?;
    run("cmp", &[image.as_os_str(), disk.device.as_os_str()])?;
    site.start_role(Role::Agent)?;
    streaming(&site, "data")?;

    // With deleting: by name only, and all of it.
    let name = host()?;
    said(&refused(&site, Role::Target, &["unprotect", "--delete-replica"], 2)?, "--machine")?;
    let words = ["unprotect", "--machine", &name, "--delete-replica"];
    said(&ordered(&site, Role::Target, &words)?, "forgotten")?;
    site.wait_for_end(Role::Agent)?;
    ensure!(fs::read_dir(site.data().join("machines"))?.count() == 0, "a store is left");
    ensure!(fs::read_dir(site.data().join("site/machines"))?.count() == 0, "an identity is left");
    ensure!(site.status()?.is_empty());
    for _ in 0..2 {
        // The agent comes back as who it was: it is told, whoever starts anew.
        site.start_role(Role::Agent)?;
        wait_for(&site, Role::Agent, "data", "paused", "unprotected")?;
        said(&site.logged(Role::Agent)?, "protects this machine no more")?;
        site.stop_role(Role::Target)?;
        site.start_role(Role::Target)?;
        // The tracker goes without a session.
        said(&ordered(&site, Role::Agent, &["unprotect"])?, "the agent ends")?;
        site.wait_for_end(Role::Agent)?;
    }
    ensure!(!audited(scratch.path(), Role::Target, "delete-replica")?.is_empty());

    let token = finish(site.command(Role::Target).args(["invite", "--data"]).arg(site.data()))?;
    let token = token.lines().last().context("no token")?;
    fs::write(scratch.path().join("token"), token)?;
    fs::remove_dir_all(scratch.path().join("state"))?;
    fs::create_dir(scratch.path().join("state"))?;
    site.start_role(Role::Agent)?;
    streaming(&site, "data")?;
    equal(&site, "data", &disk, 32 * MIB)?;
    end(site)
}

#[test]
fn a_replica_on_a_device_is_equal_after_a_sync_under_load_and_every_restart() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let root = scratch.path();
    let size = 128 * MIB;
    let disk = half_full(&root.join("disk.img"), size)?;
    let replica = LoopDisk::create(&root.join("replica.img"), size + 8192)?;
    // What was on it does not matter.
    fill(&replica, 0, size, 99)?;
    let (link, other) =
        (root.join("link"), LoopDisk::create(&root.join("other.img"), size + 8192)?);
    symlink(&replica.device, &link)?;
    let disks = vec![("data", disk.device.as_path())];
    let mut site = Site::prepare(root, &Plan { disks, point_interval: "1s" }, &[])?;
    invite(&site, root, "web-01")?;
    said(&place(&site, "web-01", "data", &link)?, "once its agent announces it")?;
    site.stop_role(Role::Target)?;
    site.start_role(Role::Target)?;

    let log = root.join("fio.log");
    let mut load = RandomWrites::start(&disk.device, 10, Duration::from_secs(20), &log)?;
    site.start_role(Role::Agent)?;
    streaming(&site, "data")?;
    ensure!(load.is_running()?, "initial sync did not converge while the load went on");
    let status = wait_for(&site, Role::Target, "data", "streaming", "")?;
    ensure!(status.replica_path.as_deref() == Some(link.as_path()), "{status:?}");
    // It is the target's alone while that runs.
    let taken = OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(&replica.device);
    ensure!(taken.is_err(), "the replica can be claimed by another");
    said(&not_placed(&site, "web-01", "data", &other.device)?, "its first sync has begun")?;
    site.stop_role(Role::Target)?;
    site.start_role(Role::Target)?;
    load.finish()?;
    streaming(&site, "data")?;
    equal(&site, "data", &disk, size)?;
    let point = site.mark("copy", true)?;
    let image = root.join("copy.img");
    site.copy_out("data", &point, &image)?;
    run("cmp", &[image.as_os_str(), disk.device.as_os_str()])?;

    // Another device under the path, or none: apply waits, and nothing is written to it.
    for impostor in [Some(&other.device), None] {
        site.stop_role(Role::Target)?;
        fs::remove_file(&link)?;
        impostor.map(|device| symlink(device, &link)).transpose()?;
        site.start_role(Role::Target)?;
        fill(&disk, 0, MIB, 5)?;
        let what = if impostor.is_some() { "is not the device that was placed" } else { "No such" };
        wait_until("the reason", WITHIN, || {
            Ok(site.status()?.into_iter().find(|disk| disk.reason.contains(what)))
        })?;
        said(
            &refused(&site, Role::Target, &["mark", "--applied", "--timeout", "3s"], 4)?,
            "applied",
        )?;
        impostor.map(|_| fs::remove_file(&link)).transpose()?;
        symlink(&replica.device, &link)?;
        streaming(&site, "data")?;
        equal(&site, "data", &disk, size)?;
    }
    let untouched = fs::read(&other.device)?;
    ensure!(untouched.iter().all(|byte| *byte == 0), "the wrong device was written");
    end(site)
}

#[test]
fn a_device_that_does_not_fit_or_is_in_use_is_refused() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let root = scratch.path();
    let disk = half_full(&root.join("disk.img"), 32 * MIB)?;
    let make = |name: &str, size| LoopDisk::create(&root.join(name), size);
    let (good, small) = (make("good.img", 40 * MIB)?, make("small.img", 16 * MIB)?);
    let disks = vec![("data", disk.device.as_path())];
    let mut site = Site::prepare(root, &Plan { disks, point_interval: "1s" }, &[])?;

    said(&not_placed(&site, "web-01", "data", &good.device)?, "redoubt invite --machine web-01")?;
    invite(&site, root, "web-01")?;
    let file = root.join("disk.img");
    said(&not_placed(&site, "web-01", "data", &file)?, "not a block device")?;
    let missing = Path::new("/dev/no-such-device");
    said(&not_placed(&site, "web-01", "data", missing)?, "no such device")?;
    run("blockdev", &["--setro".as_ref(), good.device.as_os_str()])?;
    said(&not_placed(&site, "web-01", "data", &good.device)?, "is read-only")?;
    run("blockdev", &["--setrw".as_ref(), good.device.as_os_str()])?;
    Filesystem::Ext4.make(&good)?;
    let mounted = Mounted::new(Filesystem::Ext4, &good, &root.join("mounted"))?;
    said(&not_placed(&site, "web-01", "data", &good.device)?, "in use")?;
    mounted.unmount()?;
    let held: File =
        OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(&good.device)?;
    said(&not_placed(&site, "web-01", "data", &good.device)?, "is in use")?;
    drop(held);

    // Too small is seen when the disk is known: it is not taken in, rather than put elsewhere.
    place(&site, "web-01", "data", &small.device)?;
    said(&not_placed(&site, "web-01", "more", &small.device)?, "replica of web-01/data already")?;
    site.start_role(Role::Agent)?;
    wait_for(&site, Role::Agent, "data", "paused", "target-refuses")?;
    said(&site.logged(Role::Agent)?, "place it on a larger one")?;
    place(&site, "web-01", "data", &good.device)?;
    streaming(&site, "data")?;
    equal(&site, "data", &disk, 32 * MIB)?;
    let entries = audited(root, Role::Target, "place")?;
    let outcomes = |outcome: &str| entries.iter().filter(|it| it["outcome"] == outcome).count();
    // Of each there is one more: what became of a device that had waited.
    ensure!((outcomes("done"), outcomes("failed")) == (3, 8), "{entries:?}");
    end(site)
}
