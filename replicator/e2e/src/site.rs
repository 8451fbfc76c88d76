//! A whole site from the built binary: a master target and an agent in directories of their own.
//! It must never touch processes or pins of others, and leaves none of its own.

use crate::command::{finish, output, text, wait_until};
use crate::report::{self, DiskStatus, Point, Verified};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// From the start of a role to its first answer; a debug build on a busy machine.
const START_WITHIN: Duration = Duration::from_secs(60);
/// From SIGTERM to the end of a role.
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// Lines of a role's log that a failed test shows.
const LOG_LINES_SHOWN: usize = 40;

/// One of the two processes of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `redoubt agent`.
    Agent,
    /// `redoubt master-target`.
    Target,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Target => "target",
        }
    }
}

/// What a site is made of.
pub struct Plan<'a> {
    /// Name and device of each protected disk.
    pub disks: Vec<(&'a str, &'a Path)>,
    /// Between two recovery points, as the command line takes it.
    pub point_interval: &'a str,
}

/// A running site; it ends with its owner.
pub struct Site {
    binary: PathBuf,
    root: PathBuf,
    disks: Vec<(String, PathBuf)>,
    point_interval: String,
    launcher: Vec<OsString>,
    // Of the target; once it has listened, the one to which it comes back.
    address: String,
    agent: Option<Child>,
    target: Option<Child>,
    has_ended_well: bool,
}

/// The binary under test: `REDOUBT_BIN`, or the one of the same build, beside a program's own or,
/// for a test, one directory above.
pub fn binary() -> Result<PathBuf> {
    let found = match std::env::var_os("REDOUBT_BIN") {
        Some(named) => PathBuf::from(named),
        None => {
            let own = std::env::current_exe()?;
            let mut directory = own.parent().context("no build directory")?;
            if directory.ends_with("deps") {
                directory = directory.parent().context("no build directory")?;
            }
            directory.join("redoubt")
        }
    };
    anyhow::ensure!(
        found.is_file(),
        "{} is missing: cargo build -p redoubt-cli (with --release where this is a release), or \
         set REDOUBT_BIN",
        found.display()
    );
    Ok(found)
}

impl Site {
    /// Starts the target, invites the machine, starts its agent. The directory is the caller's.
    pub fn start(root: &Path, plan: &Plan<'_>) -> Result<Self> {
        let mut site = Self::prepare(root, plan, &[])?;
        site.start_role(Role::Agent)?;
        Ok(site)
    }

    /// Starts the target and invites the machine, whose agent is the caller's to start. The roles
    /// run below `launcher`: words before a command that end in becoming it.
    pub fn prepare(root: &Path, plan: &Plan<'_>, launcher: &[OsString]) -> Result<Self> {
        Self::prepare_at(root, plan, launcher, "127.0.0.1:0")
    }

    /// The same with the address that the target listens on. Where `data` stands below the
    /// directory already, it is the target's.
    pub fn prepare_at(
        root: &Path,
        plan: &Plan<'_>,
        launcher: &[OsString],
        address: &str,
    ) -> Result<Self> {
        let disks = plan.disks.iter();
        let mut site = Self {
            binary: binary()?,
            root: root.to_path_buf(),
            disks: disks.map(|(name, device)| ((*name).to_owned(), device.to_path_buf())).collect(),
            point_interval: plan.point_interval.to_owned(),
            launcher: launcher.to_vec(),
            address: address.to_owned(),
            agent: None,
            target: None,
            has_ended_well: false,
        };
        for directory in ["data", "state", "run-agent", "run-target"] {
            // One may be a file system of the caller's.
            fs::create_dir_all(site.root.join(directory))?;
        }
        site.start_role(Role::Target)?;
        fs::write(site.root.join("token"), site.invite(&[])?)?;
        Ok(site)
    }

    /// The token of an invitation.
    pub fn invite(&self, options: &[&str]) -> Result<String> {
        let mut command = self.command(Role::Target);
        let printed = finish(command.args(["invite", "--data"]).arg(self.data()).args(options))?;
        Ok(printed.lines().last().context("invite printed no token")?.to_owned())
    }

    /// Lets the agent be started with other disks from now on.
    pub fn set_disks(&mut self, disks: &[(&str, &Path)]) {
        let disks = disks.iter().map(|(name, device)| ((*name).to_owned(), device.to_path_buf()));
        self.disks = disks.collect();
    }

    /// Waits until a role has ended by itself, which it must do in order.
    pub fn wait_for_end(&mut self, role: Role) -> Result<()> {
        let mut child = self.child(role).take().with_context(|| format!("no {role:?} runs"))?;
        let ended = wait_until("the end of a role", STOP_WITHIN, || Ok(child.try_wait()?));
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        anyhow::ensure!(ended?.success(), "the {role:?} failed at its end");
        Ok(())
    }

    /// The target's data directory.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Starts a role that does not run, and waits until it answers.
    pub fn start_role(&mut self, role: Role) -> Result<()> {
        anyhow::ensure!(self.child(role).is_none(), "the {role:?} runs already");
        match role {
            Role::Agent => self.start_agent(),
            Role::Target => self.start_target(),
        }
    }

    fn start_target(&mut self) -> Result<()> {
        let address = self.address.clone();
        let data = self.data();
        let mut command = self.role_command(Role::Target)?;
        command.arg("master-target").arg("--data").arg(data).args(["--listen", &address]);
        command.args(["--point-interval", &self.point_interval, "--keep", "1h"]);
        let printed = self.root.join("target.out");
        command.stdout(File::create(&printed)?);
        self.target = Some(command.spawn()?);
        let listening = wait_until("`listening on` of the target", START_WITHIN, || {
            self.fail_if_ended(Role::Target)?;
            let printed = fs::read_to_string(&printed)?;
            let lines: Vec<&str> = printed.split_inclusive('\n').collect();
            let line = lines.iter().find_map(|line| line.strip_prefix("listening on "));
            Ok(line.filter(|line| line.ends_with('\n')).map(|line| line.trim_end().to_owned()))
        })?;
        self.address = listening;
        Ok(())
    }

    fn start_agent(&mut self) -> Result<()> {
        let mut command = self.role_command(Role::Agent)?;
        command.arg("agent").arg("--state").arg(self.root.join("state"));
        command.arg("--token-file").arg(self.root.join("token")).stdout(Stdio::null());
        for (name, device) in &self.disks {
            command.arg("--disk").arg(format!("{}={name}", device.display()));
        }
        self.agent = Some(command.spawn()?);
        wait_until("the agent's first answer", START_WITHIN, || {
            self.fail_if_ended(Role::Agent)?;
            let status = output(self.command(Role::Agent).args(["status", "--json"]))?;
            Ok(status.status.success().then_some(()))
        })
    }

    /// kill -9, and nothing else.
    pub fn kill_role(&mut self, role: Role) -> Result<()> {
        let mut child = self.child(role).take().with_context(|| format!("no {role:?} to kill"))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM; the role must end in order.
    pub fn stop_role(&mut self, role: Role) -> Result<()> {
        let mut child = self.child(role).take().with_context(|| format!("no {role:?} to stop"))?;
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
        let ended = wait_until("the end after SIGTERM", STOP_WITHIN, || Ok(child.try_wait()?));
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        anyhow::ensure!(ended?.success(), "the {role:?} failed at SIGTERM");
        Ok(())
    }

    /// Takes away what an agent that does not run has left in the kernel.
    pub fn detach(&self) -> Result<()> {
        let mut detach = self.command(Role::Agent);
        detach.args(["agent", "--detach", "--state"]).arg(self.root.join("state"));
        finish(&mut detach).map(drop)
    }

    /// Ends what runs in order; only a failure shows the logs.
    pub fn end(mut self) -> Result<()> {
        for role in [Role::Agent, Role::Target] {
            if self.child(role).is_some() {
                self.stop_role(role)?;
            }
        }
        self.has_ended_well = true;
        Ok(())
    }

    /// The process of a role.
    pub fn process_id(&mut self, role: Role) -> Result<u32> {
        self.fail_if_ended(role)?;
        Ok(self.child(role).as_ref().with_context(|| format!("no {role:?} runs"))?.id())
    }

    /// The disks, as the target reports them.
    pub fn status(&self) -> Result<Vec<DiskStatus>> {
        self.status_of(Role::Target)
    }

    /// The machine, as one of the roles reports it: the JSON interface itself.
    pub fn machine_of(&self, role: Role) -> Result<serde_json::Value> {
        report::machine(&finish(self.command(role).args(["status", "--json"]))?)
    }

    /// The disks, as one of the roles reports them.
    pub fn status_of(&self, role: Role) -> Result<Vec<DiskStatus>> {
        report::disks(&finish(self.command(role).args(["status", "--json"]))?)
    }

    /// Waits until the target reports the disks as they shall be.
    pub fn wait_for_status(
        &mut self,
        what: &str,
        at_most: Duration,
        is_it: impl Fn(&[DiskStatus]) -> bool,
    ) -> Result<()> {
        let mut last = String::new();
        let waited = wait_until(what, at_most, || {
            self.fail_if_ended(Role::Agent)?;
            self.fail_if_ended(Role::Target)?;
            let disks = self.status()?;
            last = format!("{disks:?}");
            Ok(is_it(&disks).then_some(()))
        });
        waited.with_context(|| format!("last seen: {last}"))
    }

    /// What a role has logged so far.
    pub fn log_of(&self, role: Role) -> Result<String> {
        Ok(text(&fs::read(self.log(role))?))
    }

    /// Waits until every disk streams: what initial sync or catch-up had to bring is there.
    pub fn wait_for_streaming(&mut self, at_most: Duration) -> Result<()> {
        let expected = self.disks.len();
        self.wait_for_status("streaming of every disk", at_most, |disks| {
            disks.len() == expected && disks.iter().all(|disk| disk.state == "streaming")
        })
    }

    /// A recovery point of everything written before the call; its id.
    pub fn mark(&self, label: &str, is_applied: bool) -> Result<String> {
        let mut command = self.command(Role::Target);
        command.args(["mark", "--label", label, "--timeout", "600s"]);
        if is_applied {
            command.arg("--applied");
        }
        Self::point_id(&finish(&mut command)?)
    }

    /// An applied point that lacks a disk, as the command must say at either side; the last id.
    pub fn mark_without(&self, disk: &str) -> Result<String> {
        let mut id = String::new();
        for role in [Role::Agent, Role::Target] {
            let output =
                output(self.command(role).args(["mark", "--timeout", "600s", "--applied"]))?;
            let told = text(&output.stderr);
            anyhow::ensure!(output.status.code() == Some(3), "{}: {told}", output.status);
            anyhow::ensure!(told.contains(&format!("lacks {disk},")), "{told}");
            id = Self::point_id(&text(&output.stdout))?;
        }
        Ok(id)
    }

    fn point_id(printed: &str) -> Result<String> {
        let id = printed.trim().to_owned();
        anyhow::ensure!(!id.is_empty() && !id.contains(char::is_whitespace), "mark printed {id:?}");
        Ok(id)
    }

    /// The recovery points that can be gone back to, oldest first: the applied ones.
    pub fn points(&self) -> Result<Vec<Point>> {
        report::points(&finish(self.command(Role::Target).args(["points", "--json"]))?)
    }

    /// Writes a disk as it was at a point to a file.
    pub fn copy_out(&self, disk: &str, point: &str, to: &Path) -> Result<()> {
        let mut command = self.command(Role::Target);
        command.args(["copy-out", "--disk", disk, "--point", point, "--to"]).arg(to);
        finish(&mut command).map(drop)
    }

    /// Compares all disks with their replicas by hash, asked at one of the roles. How the command
    /// ends must fit what it prints.
    pub fn verify(&self, role: Role) -> Result<Verified> {
        let output = output(self.command(role).args(["verify", "--json"]))?;
        let told = || format!("{}{}", text(&output.stdout), text(&output.stderr));
        let verified = report::verified(&text(&output.stdout)).with_context(told)?;
        let expected = match (verified.equal, verified.differences.is_empty()) {
            (true, _) => 0,
            (false, false) => 3,
            (false, true) => 4,
        };
        anyhow::ensure!(output.status.code() == Some(expected), "{}: {}", output.status, told());
        Ok(verified)
    }

    /// Compares every replica with its disk, byte by byte. Nobody may write to the disks, nor have
    /// them mounted.
    pub fn expect_equal_replicas(&self) -> Result<()> {
        self.mark("compare", true)?;
        for disk in self.status()? {
            let (_, device) =
                self.disks.iter().find(|(name, _)| *name == disk.name).context("disk")?;
            let replica =
                disk.replica_path.with_context(|| format!("{}: no replica", disk.name))?;
            finish(Command::new("blockdev").arg("--flushbufs").arg(device))?;
            finish(Command::new("cmp").arg(device).arg(replica))
                .with_context(|| format!("the replica of {} differs", disk.name))?;
        }
        Ok(())
    }

    /// The `redoubt` command, pointed at one of the roles.
    pub fn command(&self, role: Role) -> Command {
        let mut command = Command::new(&self.binary);
        command.env("REDOUBT_RUNTIME_DIR", self.runtime(role));
        command
    }

    /// Where the socket of a role stands.
    pub fn runtime(&self, role: Role) -> PathBuf {
        self.root.join(format!("run-{}", role.name()))
    }

    /// A role in the foreground, its log in a file; the kernel kills it with the thread that
    /// started it.
    fn role_command(&self, role: Role) -> Result<Command> {
        let log = OpenOptions::new().create(true).append(true).open(self.log(role))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(&self.launcher).arg(&self.binary);
        command.stdin(Stdio::null()).stderr(log);
        command.env("REDOUBT_RUNTIME_DIR", self.runtime(role));
        Ok(command)
    }

    /// The audit log of a role.
    pub fn audited(&self, role: Role) -> Result<String> {
        let directory = if role == Role::Agent { self.root.join("state") } else { self.data() };
        Ok(fs::read_to_string(directory.join("audit.jsonl"))?)
    }

    /// What a role has logged so far.
    pub fn logged(&self, role: Role) -> Result<String> {
        Ok(text(&fs::read(self.log(role))?))
    }

    fn log(&self, role: Role) -> PathBuf {
        self.root.join(format!("{}.log", role.name()))
    }

    fn child(&mut self, role: Role) -> &mut Option<Child> {
        match role {
            Role::Agent => &mut self.agent,
            Role::Target => &mut self.target,
        }
    }

    fn fail_if_ended(&mut self, role: Role) -> Result<()> {
        if let Some(child) = self.child(role)
            && let Some(status) = child.try_wait()?
        {
            bail!("the {role:?} has ended by itself: {status}");
        }
        Ok(())
    }

    fn show_log(&self, role: Role) {
        let log = fs::read(self.log(role)).unwrap_or_default();
        let log = text(&log);
        let lines: Vec<&str> = log.lines().collect();
        let shown = lines.len().saturating_sub(LOG_LINES_SHOWN);
        eprintln!("--- the end of the {role:?}'s log\n{}", lines[shown..].join("\n"));
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for role in [Role::Agent, Role::Target] {
            if let Some(mut child) = self.child(role).take()
                && let Err(error) = child.kill().and_then(|()| child.wait())
            {
                eprintln!("cannot kill the {role:?}: {error}");
            }
            // Shown for every test: the runner prints it only where that has failed.
            if !self.has_ended_well {
                self.show_log(role);
            }
        }
        if let Err(error) = self.detach() {
            eprintln!("cannot detach: {error:#}");
        }
    }
}
