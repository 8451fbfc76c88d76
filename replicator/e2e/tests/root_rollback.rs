//! A target's data directory that was put back to an earlier state while both sides were stopped:
//! nobody who runs has seen it, and both must tell.

use anyhow::{Context, Result, ensure};
use redoubt_e2e::command::{run, wait_until};
use redoubt_e2e::disk::{keep_mounts_private, scratch};
use redoubt_e2e::orders::{BOTH, MIB, WITHIN, audited, end, equal, fill, half_full, streaming};
use redoubt_e2e::site::{Plan, Role, Site};
use serde_json::Value;
use std::fs;
use std::path::Path;

const SIZE: u64 = 32 * MIB;

/// What an agent that starts again knows that the target has.
fn remembered(root: &Path) -> Result<u64> {
    let state: Value = serde_json::from_slice(&fs::read(root.join("state/state.json"))?)?;
    state["acknowledged"].as_u64().context("the state has no acknowledged position")
}

/// The newest position that the target has.
fn acknowledged(site: &Site) -> Result<u64> {
    let machine = site.machine_of(Role::Target)?;
    machine["disks"][0]["position"]["acknowledged"].as_u64().context("no position")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    run("cp", &["-a".as_ref(), from.as_os_str(), to.as_os_str()]).map(drop)
}

/// Whether a side's audit log tells of the restored target.
fn tells(root: &Path, role: Role) -> Result<()> {
    wait_until("the resync in the audit log", WITHIN, || {
        let entries = audited(root, role, "resync")?;
        let tells = |entry: &Value| {
            entry["reason"].as_str().is_some_and(|why| why.contains("restored or rolled back"))
        };
        Ok(entries.iter().any(tells).then_some(()))
    })
}

fn restore_between(is_killed: bool) -> Result<()> {
    let scratch = scratch()?;
    let root = scratch.path();
    let disk = half_full(&root.join("disk.img"), SIZE)?;
    let plan = Plan { disks: vec![("data", disk.device.as_path())], point_interval: "1s" };
    let mut site = Site::start(root, &plan)?;
    streaming(&site, "data")?;
    let kept = site.mark("kept", true)?;
    site.stop_role(Role::Target)?;
    copy(&site.data(), &root.join("backup"))?;
    site.start_role(Role::Target)?;
    streaming(&site, "data")?;
    fill(&disk, SIZE / 2, MIB, 7)?;
    let lost = site.mark("lost", true)?;
    if is_killed {
        let position = acknowledged(&site)?;
        wait_until("the agent's memory of it", WITHIN, || {
            Ok((remembered(root)? >= position).then_some(()))
        })?;
        site.kill_role(Role::Agent)?;
        site.kill_role(Role::Target)?;
    } else {
        site.stop_role(Role::Agent)?;
        site.stop_role(Role::Target)?;
    }
    fs::remove_dir_all(site.data())?;
    copy(&root.join("backup"), &site.data())?;
    site.start_role(Role::Target)?;
    site.start_role(Role::Agent)?;
    BOTH.into_iter().try_for_each(|role| tells(root, role))?;
    wait_until("the gap with its reason", WITHIN, || {
        let gaps = audited(root, Role::Agent, "gap")?;
        Ok(gaps.iter().any(|gap| gap["reason"] == "target-behind").then_some(()))
    })?;
    streaming(&site, "data")?;
    equal(&site, "data", &disk, SIZE)?;
    let points = site.points()?;
    ensure!(points.iter().any(|point| point.id == kept), "{points:?}");
    ensure!(points.iter().all(|point| point.id != lost), "{points:?}");
    end(site)
}

#[test]
fn a_target_restored_while_both_were_stopped_is_told_and_everything_is_read_again() -> Result<()> {
    keep_mounts_private()?;
    restore_between(false)
}

#[test]
fn a_target_restored_after_both_were_killed_is_told_and_everything_is_read_again() -> Result<()> {
    keep_mounts_private()?;
    restore_between(true)
}
