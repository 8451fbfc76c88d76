//! A site under measurement: the product's own processes, asked over their sockets in this process,
//! for starting a command each time would cost what is measured. It must never ask for what an
//! operator could not see.

use crate::stop;
use anyhow::{Context, Result, bail};
use redoubt_control::status::{DiskState, DiskStatus, MachineStatus};
use redoubt_control::{Client, ExitStatus, Request, Response, Role, RuntimeDirectory, Span};
use redoubt_e2e::command::wait_until;
use redoubt_e2e::site::{self, Plan, Site};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two looks at a state: the agent itself looks every 250 ms.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// A role answers at once; one that does not hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// For the line that would be read in vain, beyond the time that the role was given.
const EXTRA_PATIENCE: Duration = Duration::from_secs(5);

/// One attempt at a mark that must come; an interrupted run waits as long.
const MARK_WITHIN: Duration = Duration::from_secs(30);

/// Between two looks at the target's status: it hears from the agent every second.
pub const STATUS_INTERVAL: Duration = Duration::from_millis(100);

/// The name of the one disk.
const DISK: &str = "disk";

/// Where a role's socket stands; can be asked from any thread.
#[derive(Clone, Debug)]
pub struct Socket {
    role: Role,
    directory: RuntimeDirectory,
}

/// A master target, and an agent with one disk.
pub struct Watched {
    site: Site,
    /// The agent's socket.
    pub agent: Socket,
    /// The target's socket.
    pub target: Socket,
}

impl Watched {
    /// A target that serves; the agent is not started yet. Both run below `launcher`.
    pub fn prepare(
        root: &Path,
        device: &Path,
        point_interval: &str,
        launcher: &[OsString],
    ) -> Result<Self> {
        let plan = Plan { disks: vec![(DISK, device)], point_interval };
        let site = Site::prepare(root, &plan, launcher)?;
        let socket = |role, of| Socket { role, directory: RuntimeDirectory::new(site.runtime(of)) };
        let agent = socket(Role::Agent, site::Role::Agent);
        let target = socket(Role::Target, site::Role::Target);
        Ok(Self { site, agent, target })
    }

    /// Starts the agent, which must not run.
    pub fn start_agent(&mut self) -> Result<()> {
        self.site.start_role(site::Role::Agent)
    }

    /// Stops the agent in order; what it has in the kernel goes on marking.
    pub fn stop_agent(&mut self) -> Result<()> {
        self.site.stop_role(site::Role::Agent)
    }

    /// Takes the tracker out of the kernel; the agent must not run.
    pub fn detach(&self) -> Result<()> {
        self.site.detach()
    }

    /// The processes of agent and target.
    pub fn processes(&mut self) -> Result<[i32; 2]> {
        let agent = self.site.process_id(site::Role::Agent)?;
        let target = self.site.process_id(site::Role::Target)?;
        Ok([i32::try_from(agent)?, i32::try_from(target)?])
    }

    /// Waits until the agent says that the disk streams.
    pub fn wait_for_streaming(&mut self, within: Duration) -> Result<()> {
        let end = Instant::now() + within;
        loop {
            stop::check()?;
            self.processes()?;
            // An agent that has just started knows of no disk yet.
            let disk = self.agent.machine()?.disks.into_iter().next();
            if disk.as_ref().is_some_and(|disk| disk.state == DiskState::Streaming) {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("not streaming within {within:?}: {disk:?}");
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Waits until the replica disk holds everything written before the call; the replica.
    pub fn wait_for_replica(&mut self, within: Duration) -> Result<PathBuf> {
        let end = Instant::now() + within;
        while !self.target.mark(true, MARK_WITHIN)? {
            stop::check()?;
            if Instant::now() > end {
                bail!("the replica is not complete within {within:?}");
            }
        }
        stop::check()?;
        self.target.disk()?.replica_path.context("the target names no replica")
    }

    /// Ends both roles in order and takes the tracker away.
    pub fn end(self) -> Result<()> {
        self.site.end()
    }
}

impl Socket {
    /// The only machine, as the role sees it.
    pub fn machine(&self) -> Result<MachineStatus> {
        match self.ask(&Request::Status, PATIENCE)? {
            Response::Status { mut status } if status.machines.len() == 1 => {
                Ok(status.machines.remove(0))
            }
            other => bail!("no status of one machine: {other:?}"),
        }
    }

    /// The only disk, as the role sees it.
    pub fn disk(&self) -> Result<DiskStatus> {
        self.machine()?.disks.into_iter().next().context("the machine has no disk")
    }

    /// Asks for a point, as `redoubt mark` does; whether it was durable (and applied) in time.
    pub fn mark(&self, applied: bool, timeout: Duration) -> Result<bool> {
        let timeout = Span(timeout);
        let request = Request::Mark { machine: None, label: None, timeout, applied };
        match self.ask(&request, timeout.0 + EXTRA_PATIENCE)? {
            Response::Marked { .. } => Ok(true),
            Response::Failed { status: ExitStatus::TimedOut, .. } => Ok(false),
            other => bail!("no point: {other:?}"),
        }
    }

    fn ask(&self, request: &Request, patience: Duration) -> Result<Response> {
        let client = Client::connect(&self.directory, self.role)?;
        Ok(client.call(request, patience, &mut |_| {})?)
    }
}

/// What the looks at the target's status saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// The RPO at each look, in seconds.
    pub shown: Vec<f64>,
    /// Part of the looks at which the disk streamed.
    pub streaming: f64,
}

/// Looks at the target's status in a thread of its own: a probe that waits must not hide it.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Seen>>,
}

impl Watch {
    /// Looks from now on.
    pub fn start(target: Socket) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || watch(&target, &stop)
        });
        Self { stop, thread }
    }

    /// What was seen.
    pub fn finish(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the watch has failed"))?
    }
}

fn watch(target: &Socket, stop: &AtomicBool) -> Result<Seen> {
    let (mut shown, mut streamed) = (Vec::new(), 0_u32);
    while !stop.load(Ordering::Relaxed) {
        let machine = target.machine()?;
        shown.extend(machine.rpo_seconds);
        let streams = machine.disks.iter().all(|disk| disk.state == DiskState::Streaming);
        streamed += u32::from(streams);
        std::thread::sleep(STATUS_INTERVAL);
    }
    let looks = shown.len().max(1) as f64;
    Ok(Seen { shown, streaming: f64::from(streamed) / looks })
}

/// Waits until a condition holds, or the run is interrupted.
pub fn wait_for(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> Result<bool>,
) -> Result<()> {
    wait_until(what, within, || {
        stop::check()?;
        Ok(look()?.then_some(()))
    })
}
