//! A site's life, and what its two audit logs say of it: every order, and every change that the
//! status shows, also where the log finds no room for a while.

use anyhow::{Context, Result, ensure};
use redoubt_e2e::command::{output, wait_until};
use redoubt_e2e::disk::{Filesystem, LoopDisk, Mounted, keep_mounts_private, scratch};
use redoubt_e2e::orders::{
    BOTH, MIB, WITHIN, fill, half_full, host, invite, ordered, place, refused, streaming, wait_for,
};
use redoubt_e2e::site::{Plan, Role, Site};
use serde_json::Value;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

/// Who asked: an operator, or nobody.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Operator,
    Itself,
}

/// An entry that must be there: side, who, action, object below the machine, outcome, and what the
/// reason says.
type Expected = (Role, By, &'static str, &'static str, &'static str, &'static str);

const AGENT: Role = Role::Agent;
const TARGET: Role = Role::Target;

/// A site whose audit logs are read step by step.
struct Audited<'a> {
    site: Site,
    root: &'a Path,
    machine: String,
    /// Lines of the agent's and of the target's log that were there before the step.
    before: [usize; 2],
}

impl Audited<'_> {
    fn entries(&self, role: Role) -> Result<Vec<Value>> {
        let Ok(log) = self.site.audited(role) else { return Ok(Vec::new()) };
        // The last line may be on its way.
        let lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        lines.map(|line| serde_json::from_str(line).context(line.to_owned())).collect()
    }

    /// What a step does, and the entries that it must leave, each behind those of the step before.
    fn step(
        &mut self,
        what: &str,
        act: impl FnOnce(&mut Site) -> Result<()>,
        expected: &[Expected],
    ) -> Result<()> {
        self.before = [self.entries(AGENT)?.len(), self.entries(TARGET)?.len()];
        act(&mut self.site).context(what.to_owned())?;
        for wanted in expected {
            let mut last = Vec::new();
            let found = wait_until("an entry", WITHIN, || {
                let entries = self.entries(wanted.0)?;
                last = entries[self.before[usize::from(wanted.0 == TARGET)]..].to_vec();
                Ok(last.iter().any(|entry| self.is(entry, wanted)).then_some(()))
            });
            let (role, _, action, object, outcome, reason) = wanted;
            found.with_context(|| {
                format!(
                    "{what}: no `{action} {object} {outcome} {reason}` at the {role:?}: {last:?}"
                )
            })?;
        }
        Ok(())
    }

    fn is(&self, entry: &Value, wanted: &Expected) -> bool {
        let (_, by, action, object, outcome, reason) = wanted;
        let object = match *object {
            "" => self.machine.clone(),
            // The verify of an agent names disks alone; and some orders name no machine here.
            disk if disk.starts_with('=') => disk[1..].to_owned(),
            disk => format!("{}/{disk}", self.machine),
        };
        let is_by = match by {
            By::Operator => entry["actor"] == 0,
            By::Itself => entry["actor"].is_null(),
        };
        is_by
            && entry["action"] == *action
            && entry["object"] == object.as_str()
            && entry["outcome"] == *outcome
            && entry["reason"].as_str().unwrap_or_default().contains(reason)
    }

    fn both(&self, disk: &str, state: &str, reason: &str) -> Result<()> {
        BOTH.into_iter()
            .try_for_each(|role| wait_for(&self.site, role, disk, state, reason).map(drop))
    }
}

#[test]
fn every_order_and_every_change_has_its_entry() -> Result<()> {
    use By::Itself;
    keep_mounts_private()?;
    let scratch = scratch()?;
    let root = scratch.path();
    let room = LoopDisk::create(&root.join("room.img"), 1024 * MIB)?;
    Filesystem::Ext4.make(&room)?;
    fs::create_dir(root.join("data"))?;
    let mounted = Mounted::new(Filesystem::Ext4, &room, &root.join("data"))?;
    let disk = half_full(&root.join("disk.img"), 64 * MIB)?;
    let more = half_full(&root.join("more.img"), 16 * MIB)?;
    let replica = LoopDisk::create(&root.join("replica.img"), 24 * MIB)?;
    let disks = vec![("data", disk.device.as_path())];
    let plan = Plan { disks, point_interval: "1s" };
    let site = Site::prepare(root, &plan, &[])?;
    let mut site = Audited { site, root, machine: host()?, before: [0; 2] };

    site.step(
        "a machine joins",
        |site| {
            site.start_role(AGENT)?;
            streaming(site, "data")
        },
        &[
            (TARGET, Itself, "join", "", "done", "127.0.0.1"),
            (TARGET, Itself, "session", "", "online", ""),
            (TARGET, Itself, "state", "data", "streaming", ""),
            (TARGET, Itself, "mode", "data", "data", ""),
            (AGENT, Itself, "session", "", "online", ""),
            (AGENT, Itself, "gap", "data", "1 in this run", "first-sync"),
            (AGENT, Itself, "state", "data", "streaming", ""),
            (AGENT, Itself, "mode", "data", "data", ""),
        ],
    )?;
    of_orders(&mut site)?;
    of_lost_roles(&mut site)?;
    of_no_room(&mut site, &disk)?;
    of_more_disks(&mut site, [&disk, &more, &replica])?;
    let Audited { site, .. } = site;
    site.end()?;
    mounted.unmount()
}

fn of_orders(site: &mut Audited<'_>) -> Result<()> {
    use By::{Itself, Operator};
    let root = site.root;
    site.step(
        "a pause",
        |site| ordered(site, TARGET, &["pause"]).map(drop),
        &[
            (TARGET, Operator, "pause", "", "begun", ""),
            (TARGET, Operator, "pause", "", "done", ""),
            (AGENT, Itself, "pause", "", "done", "ordered at the target"),
            (AGENT, Itself, "state", "data", "paused", "by-operator"),
            (AGENT, Itself, "mode", "data", "bitmap", ""),
            (TARGET, Itself, "state", "data", "paused", "by-operator"),
            (TARGET, Itself, "mode", "data", "bitmap", ""),
        ],
    )?;
    site.step(
        "its end",
        |site| ordered(site, AGENT, &["resume"]).map(drop),
        &[
            (AGENT, Operator, "resume", "", "done", ""),
            (TARGET, Itself, "resume", "", "done", "ordered at the agent"),
            (AGENT, Itself, "gap", "data", "2 in this run", "paused"),
            (AGENT, Itself, "state", "data", "streaming", ""),
            (AGENT, Itself, "mode", "data", "data", ""),
            (TARGET, Itself, "state", "data", "streaming", ""),
            (TARGET, Itself, "mode", "data", "data", ""),
        ],
    )?;
    site.step(
        "points, verifies and copies",
        |it| {
            let id = it.mark("here", true)?;
            it.copy_out("data", &id, &root.join("copy.img"))?;
            for role in BOTH {
                ensure!(it.verify(role)?.equal);
            }
            Ok(())
        },
        &[
            (TARGET, Operator, "mark", "", "done", ""),
            (TARGET, Operator, "verify", "", "begun", ""),
            (TARGET, Operator, "verify", "", "equal", ""),
            (AGENT, Itself, "verify", "=data", "begun", ""),
            (AGENT, Itself, "verify", "=data", "ended", ""),
            (AGENT, Operator, "verify", "", "begun", ""),
            (AGENT, Operator, "verify", "", "equal", ""),
        ],
    )?;
    site.step(
        "orders that are refused before they are looked at",
        |it| {
            for role in BOTH {
                refused(it, role, &["mark", "--machine", "nobody"], 1)?;
            }
            refused(it, AGENT, &["unprotect", "--delete-replica", "--disk", "data"], 1)?;
            refused(it, TARGET, &["unprotect", "--delete-replica"], 2).map(drop)
        },
        &[
            (TARGET, Operator, "mark", "=nobody", "failed", "no such machine"),
            (AGENT, Operator, "mark", "=nobody", "failed", "ask the target of nobody"),
            (AGENT, Operator, "delete-replica", "data", "failed", "at the target only"),
            (TARGET, Operator, "delete-replica", "=unnamed", "failed", "give --machine"),
        ],
    )
}

fn of_lost_roles(site: &mut Audited<'_>) -> Result<()> {
    use By::Itself;
    site.step(
        "the agent dies",
        |site| site.kill_role(AGENT),
        &[
            (TARGET, Itself, "session", "", "offline", ""),
            (TARGET, Itself, "state", "data", "paused", "agent-silent"),
        ],
    )?;
    comes_back(site, AGENT, &[(AGENT, Itself, "gap", "data", "1 in this run", "agent-restarted")])?;
    site.step(
        "the target goes",
        |site| site.stop_role(TARGET),
        &[
            (AGENT, Itself, "session", "", "offline", ""),
            (AGENT, Itself, "state", "data", "paused", "target-unreachable"),
        ],
    )?;
    comes_back(site, TARGET, &[])
}

/// A role comes back, and both sides write down that the disk streams again, and `more`.
fn comes_back(site: &mut Audited<'_>, role: Role, more: &[Expected]) -> Result<()> {
    let both =
        |action, object, outcome| BOTH.map(|it| (it, By::Itself, action, object, outcome, ""));
    let expected = [&both("session", "", "online")[..], &both("state", "data", "streaming"), more];
    site.step(
        &format!("the {role:?} comes back"),
        |site| {
            site.start_role(role)?;
            streaming(site, "data")
        },
        &expected.concat(),
    )
}

/// Not a byte is left for the target, its audit log included.
fn of_no_room(site: &mut Audited<'_>, disk: &LoopDisk) -> Result<()> {
    use By::Itself;
    let hog = site.root.join("data/hog");
    site.step(
        "no room at the target",
        |it| {
            let mut file = OpenOptions::new().create(true).append(true).open(&hog)?;
            let piece = vec![1; 1 << 20];
            for length in [piece.len(), 4096, 1] {
                while file.write_all(&piece[..length]).is_ok() {}
            }
            // The journal's open segment takes some more.
            let mut seed = 1;
            wait_until("a full target", WITHIN, || {
                seed += 1;
                fill(disk, 0, 32 * MIB, seed)?;
                let disks = it.status()?;
                Ok(disks.iter().any(|disk| disk.reason == "target-full").then_some(()))
            })
        },
        &[(AGENT, Itself, "state", "data", "paused", "target-full")],
    )?;
    site.both("data", "paused", "target-full")?;
    site.step(
        "room again",
        |site| {
            fs::remove_file(&hog)?;
            streaming(site, "data")
        },
        &[
            (AGENT, Itself, "state", "data", "streaming", ""),
            (TARGET, Itself, "state", "data", "streaming", ""),
        ],
    )?;
    let told = site.entries(TARGET)?;
    let full = ("state", "paused", "target-full");
    let is_full = |entry: &Value| {
        (entry["action"] == full.0, entry["outcome"] == full.1, entry["reason"] == full.2)
            == (true, true, true)
    };
    ensure!(told.iter().any(is_full), "what found no room was not written later: {told:?}");
    Ok(())
}

fn of_more_disks(site: &mut Audited<'_>, [disk, more, replica]: [&LoopDisk; 3]) -> Result<()> {
    use By::{Itself, Operator};
    let machine = site.machine.clone();
    let on = format!("more on {}", replica.device.display());
    let on: &'static str = on.leak();
    site.step(
        "a device waits for a disk",
        |site| place(site, &machine, "more", &replica.device).map(drop),
        &[
            (TARGET, Operator, "place", on, "begun", ""),
            (TARGET, Operator, "place", on, "done", "once its agent announces it"),
        ],
    )?;
    site.step(
        "and has it",
        |site| {
            site.stop_role(AGENT)?;
            site.set_disks(&[("data", &disk.device), ("more", &more.device)]);
            site.start_role(AGENT)?;
            streaming(site, "more")
        },
        &[
            (TARGET, Itself, "place", on, "done", "announced"),
            (TARGET, Itself, "state", "more", "streaming", ""),
            (AGENT, Itself, "state", "more", "streaming", ""),
        ],
    )?;
    site.step(
        "a disk is let go",
        |site| ordered(site, AGENT, &["unprotect", "--disk", "more"]).map(drop),
        &[
            (AGENT, Operator, "unprotect", "more", "begun", ""),
            (AGENT, Operator, "unprotect", "more", "done", ""),
            (TARGET, Itself, "unprotect", "more", "done", "the agent has let it go"),
            (TARGET, Itself, "state", "more", "paused", "unprotected-by-agent"),
        ],
    )?;
    site.step(
        "a machine is deleted",
        |it| {
            invite(it, it.data().parent().context("no root")?, "web-02")?;
            let words = ["unprotect", "--machine", &machine, "--delete-replica"];
            ordered(it, TARGET, &words)?;
            it.wait_for_end(AGENT)?;
            let left = output(it.command(TARGET).args(["status", "--json"]))?;
            ensure!(left.status.success());
            Ok(())
        },
        &[
            (TARGET, Operator, "delete-replica", "", "begun", ""),
            (TARGET, Operator, "delete-replica", "", "done", "forgotten"),
            (AGENT, Itself, "unprotect", "data", "done", "ordered at the target"),
        ],
    )?;
    let entries = site.entries(TARGET)?;
    let invited = entries.iter().filter(|it| it["action"] == "invite" && it["actor"] == 0);
    ensure!(invited.count() == 2, "{entries:?}");
    let copied = entries.iter().filter(|it| it["action"] == "copy-out" && it["outcome"] == "done");
    ensure!(copied.count() == 1, "{entries:?}");
    Ok(())
}
