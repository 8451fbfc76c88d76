//! The JSON of a whole site: what the built command prints of a real disk through all that happens
//! to it, from both sides, follows the schemas of docs/interface line by line.

mod interface;

use anyhow::{Context, Result, ensure};
use interface::{Schema, refused};
use redoubt_e2e::command::{output, text, wait_until};
use redoubt_e2e::disk::{keep_mounts_private, scratch};
use redoubt_e2e::orders::{BOTH, MIB, WITHIN, fill, half_full};
use redoubt_e2e::site::{Plan, Role, Site};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

/// A site of which each status that is seen is checked.
struct Watched {
    site: Site,
    status: Schema,
    seen: BTreeSet<String>,
}

impl Watched {
    /// Asks a role that may not be there; the first disk, where there is one.
    fn look(&mut self, role: Role) -> Result<Option<Value>> {
        let printed = output(self.site.command(role).args(["status", "--json"]))?;
        ensure!(printed.status.success() || printed.stdout.is_empty(), "{printed:?}");
        let lines = self.status.check_lines(&text(&printed.stdout))?;
        let Some(status) = lines.into_iter().next() else { return Ok(None) };
        let Some(disk) = status["machines"][0]["disks"].get(0) else { return Ok(None) };
        let state = disk["state"].as_str().context("no state")?;
        let reason = disk["reason"].as_str().unwrap_or_default();
        let side = status["role"].as_str().context("no role")?;
        self.seen.insert(format!("{side} {state} {reason}"));
        Ok(Some(disk.clone()))
    }

    /// Looks at both sides until one of them shows this.
    fn until(&mut self, role: Role, state: &str, reason: &str) -> Result<Value> {
        let what = format!("{state} {reason} at the {role:?}");
        let waited = wait_until(&what, WITHIN, || {
            let mut shown = None;
            for side in BOTH {
                let disk = self.look(side)?;
                shown = if side == role { disk } else { shown };
            }
            let is_it = |disk: &Value| {
                disk["state"] == state && disk["reason"].as_str().unwrap_or_default() == reason
            };
            Ok(shown.filter(is_it))
        });
        waited.with_context(|| format!("seen: {:?}", self.seen))
    }

    /// Runs a command at a role; what it prints by its schema.
    fn run(&self, role: Role, schema: &str, words: &[&str], status: i32) -> Result<Value> {
        Schema::load(schema)?.printed(self.site.command(role).args(words), status)
    }
}

#[test]
fn everything_that_a_site_prints_follows_its_schema() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = half_full(&scratch.path().join("disk.img"), 64 * MIB)?;
    let place = half_full(&scratch.path().join("place.img"), 16 * MIB)?;
    let disks = vec![("data", disk.device.as_path())];
    let plan = Plan { disks, point_interval: "1s" };
    let mut site = Site::prepare(scratch.path(), &plan, &[])?;
    site.start_role(Role::Agent)?;
    let mut watched = Watched { site, status: Schema::load("status")?, seen: BTreeSet::new() };
    for role in BOTH {
        watched.until(role, "streaming", "")?;
    }
    points_and_files(&watched, scratch.path())?;
    answers(&mut watched)?;
    orders(&mut watched, &disk, &place.device.to_string_lossy())?;
    machine(&watched, &disk.device.to_string_lossy())?;
    for role in BOTH {
        let audit = Schema::load("audit")?.check_lines(&watched.site.audited(role)?)?;
        ensure!(audit.iter().any(|entry| entry["action"] == "pause"), "{audit:?}");
    }
    watched.site.end()
}

fn points_and_files(watched: &Watched, scratch: &std::path::Path) -> Result<()> {
    let marked = watched.run(Role::Target, "mark", &["mark", "--label", "one", "--applied"], 0)?;
    let image = scratch.join("copy.img");
    let image = image.to_string_lossy();
    for role in BOTH {
        let points = watched.run(role, "points", &["points"], 0)?;
        let points = points.as_array().context("no array")?;
        let point = points.iter().find(|point| point["id"] == marked["point"]);
        ensure!(point.context("the point is gone")?["label"] == "one");
        let words = ["copy-out", "--disk", "data", "--force", "--to", &image];
        let copied = watched.run(role, "copy-out", &words, 0)?;
        ensure!(copied["bytes"] == 64 * MIB && copied["to"] == *image, "{copied:#}");
        refused(watched.site.command(role).args(["mark", "--timeout", "0s"]), 4)?;
    }
    let directory = watched.site.data();
    let inspect = ["inspect", &directory.to_string_lossy()];
    let said = watched.run(Role::Target, "inspect", &inspect, 0)?;
    ensure!(said["machines"][0]["points"].as_array().is_some_and(|points| !points.is_empty()));
    Ok(())
}

/// A verify that finds nothing, and one that finds what was garbled.
fn answers(watched: &mut Watched) -> Result<()> {
    for role in BOTH {
        let equal = watched.run(role, "verify", &["verify"], 0)?;
        ensure!(equal["equal"] == true && equal["compared_bytes"] == 64 * MIB, "{equal:#}");
    }
    let shown = watched.until(Role::Target, "streaming", "")?;
    let replica = shown["replica_path"].as_str().context("no replica")?;
    let replica = OpenOptions::new().write(true).open(replica)?;
    replica.write_all_at(&[0xa5; 4096], 8 * MIB)?;
    replica.sync_all()?;
    let differs = watched.run(Role::Target, "verify", &["verify", "--disk", "data"], 3)?;
    ensure!(differs["differences"][0]["disk"] == "data", "{differs:#}");
    watched.until(Role::Target, "streaming", "").map(drop)
}

/// What both sides show while operators order and roles go away.
fn orders(watched: &mut Watched, disk: &redoubt_e2e::disk::LoopDisk, device: &str) -> Result<()> {
    watched.run(Role::Target, "order", &["pause"], 0)?;
    for role in BOTH {
        watched.until(role, "paused", "by-operator")?;
    }
    refused(watched.site.command(Role::Target).arg("mark"), 1)?;
    fill(disk, 40 * MIB, 16 * MIB, 5)?;
    watched.run(Role::Agent, "order", &["resume"], 0)?;
    for role in BOTH {
        watched.until(role, "streaming", "")?;
    }
    watched.site.stop_role(Role::Target)?;
    watched.until(Role::Agent, "paused", "target-unreachable")?;
    watched.site.start_role(Role::Target)?;
    watched.until(Role::Agent, "streaming", "")?;
    watched.site.kill_role(Role::Agent)?;
    watched.until(Role::Target, "paused", "agent-silent")?;
    watched.site.start_role(Role::Agent)?;
    watched.until(Role::Target, "streaming", "")?;

    let mut invite = watched.site.command(Role::Target);
    let data = watched.site.data();
    invite.args(["invite", "--machine", "web-02", "--data"]).arg(data);
    Schema::load("invite")?.printed(&mut invite, 0)?;
    let words = ["place", "--machine", "web-02", "--disk", "other", "--on", device];
    watched.run(Role::Target, "order", &words, 0)?;
    let status = watched.run(Role::Target, "status", &["status"], 0)?;
    ensure!(status["placements"][0]["machine"] == "web-02", "{status:#}");

    // An initial sync and a catch-up of such a disk may be over between two looks.
    println!("seen: {:#?}", watched.seen);
    Ok(())
}

/// This machine's disks, one of them protected.
fn machine(watched: &Watched, device: &str) -> Result<()> {
    let disks = watched.run(Role::Agent, "disks", &["disks"], 0)?;
    let disks = disks.as_array().context("no array")?;
    ensure!(disks.iter().any(|disk| disk["device"] == device), "{disks:#?}");
    // Its agent has it; once that has let it go, it may be protected again.
    let check = ["agent", "--check", "--disk", device];
    watched.run(Role::Agent, "check", &check, 3)?;
    watched.run(Role::Agent, "order", &["unprotect", "--disk", "data"], 0)?;
    let check = watched.run(Role::Agent, "check", &check, 0)?;
    ensure!(check["disks"][0]["mode"] == "data", "{check:#}");
    watched.run(Role::Target, "points", &["points"], 0).map(drop)
}
