//! How a machine joins a site, or does not: the agent says why, ends with 1 and leaves both sides
//! as they were; while nobody answers it waits, and hears a signal.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redoubt_e2e::command::{finish, output, text, wait_until};
use redoubt_e2e::disk::{LoopDisk, keep_mounts_private, scratch};
use redoubt_e2e::site::{Plan, Role, Site, binary};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Runs what follows, but not for ever: a refusal takes a start and two round trips.
const BOUNDED: &[&str] = &["timeout", "--kill-after=5", "60"];

/// Runs what follows in its own place, and ends it with the thread that has started it.
const BOUND_TO_US: &[&str] = &["setpriv", "--pdeathsig", "KILL"];

/// A dial ends by itself after ten seconds: what is heard sooner was heard in its middle.
const HEARD_WITHIN: Duration = Duration::from_secs(8);

/// A second machine that comes to join.
struct Second<'a> {
    root: &'a Path,
    disk: LoopDisk,
}

impl<'a> Second<'a> {
    fn new(root: &'a Path) -> Result<Self> {
        Ok(Self { root, disk: LoopDisk::create(&root.join("second.img"), 16 << 20)? })
    }

    fn state(&self) -> PathBuf {
        self.root.join("second")
    }

    /// Its agent, run by another command.
    fn agent(&self, by: &[&str], token: &str) -> Result<Command> {
        fs::write(self.root.join("second.token"), token)?;
        let mut command = Command::new(by[0]);
        command.args(&by[1..]).arg(binary()?);
        command.env("REDOUBT_RUNTIME_DIR", self.root.join("run-second"));
        command.arg("agent").arg("--state").arg(self.state());
        command.arg("--token-file").arg(self.root.join("second.token"));
        command.arg("--disk").arg(&self.disk.device);
        Ok(command)
    }

    /// Runs its agent, which must be refused; what it says.
    fn refused(&self, token: &str) -> Result<String> {
        let output = output(&mut self.agent(BOUNDED, token)?)?;
        let said = text(&output.stderr);
        ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
        ensure!(output.stdout.is_empty(), "a result: {}", text(&output.stdout));
        ensure!(!self.state().exists(), "it has left something of its state: {said}");
        ensure!(!self.root.join("run-second").exists(), "it has left its socket's place: {said}");
        Ok(said)
    }
}

impl Drop for Second<'_> {
    fn drop(&mut self) {
        // Nothing is left where the test has passed.
        let detach = binary().and_then(|binary| {
            let mut detach = Command::new(binary);
            finish(detach.args(["agent", "--detach", "--state"]).arg(self.state()))
        });
        if let Err(error) = detach {
            eprintln!("cannot detach the second machine: {error:#}");
        }
    }
}

fn invite(site: &Site, more: &[&str]) -> Result<String> {
    let mut command = site.command(Role::Target);
    let printed = finish(command.args(["invite", "--data"]).arg(site.data()).args(more))?;
    Ok(printed.lines().last().context("invite printed no token")?.to_owned())
}

/// All that the target knows of who has joined and who is invited.
fn known(site: &Site) -> Result<Vec<PathBuf>> {
    let mut known = Vec::new();
    for part in ["site/tokens", "site/machines", "machines"] {
        for entry in fs::read_dir(site.data().join(part))? {
            known.push(entry?.path());
        }
    }
    known.sort();
    Ok(known)
}

#[test]
fn who_may_not_join_is_told_why_and_changes_nothing() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = LoopDisk::create(&scratch.path().join("disk.img"), 16 << 20)?;
    let disks = vec![("data", disk.device.as_path())];
    let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "1s" })?;
    let second = Second::new(scratch.path())?;
    let status = finish(site.command(Role::Agent).args(["status", "--json"]))?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let name = status["machines"][0]["name"].as_str().context("no name")?;

    let (namesake, expired) = (invite(&site, &[])?, invite(&site, &["--expires", "1s"])?);
    let used = fs::read_to_string(scratch.path().join("token"))?;
    let before = known(&site)?;
    let said = second.refused(&namesake)?;
    ensure!(said.contains(&format!("called {name};")), "{said}");
    ensure!(said.contains("redoubt invite --machine OTHER"), "{said}");
    // Until its second is over it is refused for the name, too.
    let said = wait_until("the end of a token", Duration::from_secs(60), || {
        let said = second.refused(&expired)?;
        Ok((!said.contains(&format!("called {name};"))).then_some(said))
    })?;
    ensure!(said.contains("expired") && said.contains("redoubt invite"), "{said}");
    let said = second.refused(&used)?;
    ensure!(said.contains("used by another machine") && said.contains("redoubt invite"), "{said}");
    let mut mistyped = namesake.clone();
    mistyped.pop();
    let said = second.refused(&mistyped)?;
    ensure!(said.contains("mistyped"), "{said}");
    ensure!(known(&site)? == before, "the target has changed: {:?}", known(&site)?);

    let mut again = site.command(Role::Target);
    again.args(["invite", "--machine", name, "--data"]).arg(site.data());
    let again = output(&mut again)?;
    ensure!(again.status.code() == Some(1) && again.stdout.is_empty(), "{again:?}");
    ensure!(text(&again.stderr).contains("redoubt invite --machine OTHER"), "{again:?}");
    ensure!(known(&site)? == before, "an invitation was made all the same");
    site.stop_role(Role::Agent)?;
    site.stop_role(Role::Target)
}

/// A process that is killed with its owner.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("cannot kill the second machine's agent: {error}");
        }
    }
}

#[test]
fn who_reaches_nobody_waits_and_hears_a_signal() -> Result<()> {
    keep_mounts_private()?;
    let scratch = scratch()?;
    let disk = LoopDisk::create(&scratch.path().join("disk.img"), 16 << 20)?;
    let disks = vec![("data", disk.device.as_path())];
    let mut site = Site::start(scratch.path(), &Plan { disks, point_interval: "1s" })?;
    let second = Second::new(scratch.path())?;
    let token = invite(&site, &["--machine", "second"])?;
    site.stop_role(Role::Agent)?;
    site.stop_role(Role::Target)?;
    let mut command = second.agent(BOUND_TO_US, &token)?;
    let mut agent = Killed(command.stdin(Stdio::null()).spawn()?);
    let pending = second.state().join("pending.key.pem");
    wait_until("the attempt to join", Duration::from_secs(60), || {
        Ok(pending.exists().then_some(()))
    })?;
    let signalled = Instant::now();
    kill(Pid::from_raw(i32::try_from(agent.0.id())?), Signal::SIGTERM)?;
    let status = agent.0.wait()?;
    ensure!(signalled.elapsed() < HEARD_WITHIN, "it took {:?}", signalled.elapsed());
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}
