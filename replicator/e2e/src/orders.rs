//! A site under an operator's orders: commands that must do or refuse, what both sides show then,
//! and what their audit logs say. It never waits for time, only for what is shown.

use crate::command::{finish, output, run, text, wait_until};
use crate::disk::LoopDisk;
use crate::report::DiskStatus;
use crate::site::{Role, Site};
use anyhow::{Context, Result, ensure};
use nix::unistd::gethostname;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// How long anything may take.
pub const WITHIN: Duration = Duration::from_secs(120);
/// Both sides.
pub const BOTH: [Role; 2] = [Role::Agent, Role::Target];
/// Bytes.
pub const MIB: u64 = 1 << 20;

/// A disk with data over its first half, zeros behind.
pub fn half_full(path: &Path, size_bytes: u64) -> Result<LoopDisk> {
    let disk = LoopDisk::create(path, size_bytes)?;
    fill(&disk, 0, size_bytes / 2, 1)?;
    Ok(disk)
}

/// Writes bytes that the seed makes different.
pub fn fill(disk: &LoopDisk, from: u64, bytes: u64, seed: u32) -> Result<()> {
    let piece: Vec<u8> = (0..1u32 << 18).flat_map(|at| (at ^ seed).to_le_bytes()).collect();
    for offset in (from..from + bytes).step_by(piece.len()) {
        disk.write_at(&piece, offset)?;
    }
    disk.flush()
}

/// Runs a command that must do what it is told; what it says.
pub fn ordered(site: &Site, role: Role, words: &[&str]) -> Result<String> {
    finish(site.command(role).args(words))
}

/// Runs a command that must fail with this status; what it says.
pub fn refused(site: &Site, role: Role, words: &[&str], status: i32) -> Result<String> {
    let output = output(site.command(role).args(words))?;
    ensure!(output.status.code() == Some(status), "{words:?}: {output:?}");
    Ok(text(&output.stderr))
}

/// Whether a text says what it should.
pub fn said(text: &str, expected: &str) -> Result<()> {
    ensure!(text.contains(expected), "{text:?} does not say {expected:?}");
    Ok(())
}

/// Waits until a disk is in a state for a reason, as one side sees it.
pub fn wait_for(
    site: &Site,
    role: Role,
    disk: &str,
    state: &str,
    reason: &str,
) -> Result<DiskStatus> {
    let mut last = String::new();
    let what = format!("{disk} {state} {reason} at the {role:?}");
    let waited = wait_until(&what, WITHIN, || {
        let disks = site.status_of(role)?;
        last = format!("{disks:?}");
        let found = disks.into_iter().find(|known| known.name == disk);
        Ok(found.filter(|found| (found.state.as_str(), found.reason.as_str()) == (state, reason)))
    });
    waited.with_context(|| format!("last seen: {last}"))
}

/// Waits until a disk streams, as both sides see it.
pub fn streaming(site: &Site, disk: &str) -> Result<()> {
    BOTH.into_iter().try_for_each(|role| wait_for(site, role, disk, "streaming", "").map(drop))
}

/// The replica of a disk holds what the disk holds; nobody may write to it.
pub fn equal(site: &Site, disk: &str, device: &LoopDisk, size: u64) -> Result<()> {
    site.mark("compare", true)?;
    let status = site.status()?;
    let status = status.iter().find(|known| known.name == disk).context("no such disk")?;
    let replica = status.replica_path.as_ref().context("no replica")?;
    device.flush()?;
    let bytes = size.to_string();
    let words = ["-n".as_ref(), bytes.as_ref(), device.device.as_os_str(), replica.as_os_str()];
    run("cmp", &words).map(drop)
}

/// The entries of a side's audit log: actor, action, object, outcome, reason.
pub fn audited(root: &Path, role: Role, action: &str) -> Result<Vec<serde_json::Value>> {
    let directory = if role == Role::Agent { "state" } else { "data" };
    let log = fs::read_to_string(root.join(directory).join("audit.jsonl"))?;
    let entries: Result<Vec<serde_json::Value>, _> =
        log.lines().map(serde_json::from_str).collect();
    Ok(entries?.into_iter().filter(|entry| entry["action"] == action).collect())
}

/// The same without what was written before an order was carried out.
pub fn audited_ends(root: &Path, role: Role, action: &str) -> Result<Vec<serde_json::Value>> {
    let entries = audited(root, role, action)?;
    Ok(entries.into_iter().filter(|entry| entry["outcome"] != "begun").collect())
}

/// The name of the machine that a token without a name invites.
pub fn host() -> Result<String> {
    Ok(gethostname()?.to_string_lossy().split('.').next().unwrap_or_default().to_lowercase())
}

/// Ends both roles in order.
pub fn end(mut site: Site) -> Result<()> {
    site.stop_role(Role::Agent)?;
    site.stop_role(Role::Target)
}

/// Why the target shows a disk as ended that was let go at a side.
pub fn end_reason(side: Role) -> &'static str {
    match side {
        Role::Agent => "unprotected-by-agent",
        Role::Target => "unprotected",
    }
}

/// The last disk was let go at a side and its agent has ended: it is protected anew, beside what is
/// kept of it. Ends the site.
pub fn protected_anew(mut site: Site, side: Role, device: &LoopDisk, size: u64) -> Result<()> {
    site.start_role(Role::Agent)?;
    streaming(&site, "data")?;
    equal(&site, "data", device, size)?;
    wait_for(&site, Role::Target, "data.ended-0", "paused", end_reason(side))?;
    end(site)
}

/// Invites a machine by name.
pub fn invite(site: &Site, root: &Path, name: &str) -> Result<()> {
    let mut invite = site.command(Role::Target);
    let token = finish(invite.args(["invite", "--machine", name, "--data"]).arg(site.data()))?;
    Ok(fs::write(root.join("token"), token.lines().last().context("no token")?)?)
}

/// Places a replica on a device; what the command says.
pub fn place(site: &Site, machine: &str, disk: &str, on: &Path) -> Result<String> {
    let on = on.to_string_lossy();
    ordered(site, Role::Target, &["place", "--machine", machine, "--disk", disk, "--on", &on])
}

/// Places a replica where that must be refused; what the command says.
pub fn not_placed(site: &Site, machine: &str, disk: &str, on: &Path) -> Result<String> {
    let on = on.to_string_lossy();
    let words = ["place", "--machine", machine, "--disk", disk, "--on", &on];
    refused(site, Role::Target, &words, 1)
}
