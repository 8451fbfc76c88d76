//! The Unified Agent: tracks, reads, seals and ships a machine's changes to the master target.
//! Three threads carry the data: the owner of the tracker, the sealer, the session. It must never
//! stall the machine that it protects.

mod acknowledged;
mod audit;
mod check;
mod claim;
mod control;
mod copy_out;
mod coverage;
mod disks;
mod error;
mod frame_log;
mod link;
mod locks;
mod marks;
mod operator;
mod own_state;
mod owner;
mod pace;
mod pause;
mod presence;
mod privileges;
mod reader;
mod requests;
mod resize;
mod sealer;
mod session;
mod snapshot;
mod state;
mod suspects;
mod unprotect;
mod verify;

pub use check::{check, devices};
pub use error::AgentError;

use bytes::Bytes;
use claim::Claim;
use control::Control;
use crossbeam::channel;
use disks::ProtectedDisks;
use locks::StateLock;
use owner::{Command, Owner, Parts, Shared};
use redoubt_control::audit::AuditLog;
use redoubt_control::service::{StopSignals, notify_ready};
use redoubt_control::socket::Server;
use redoubt_control::status::Role;
use redoubt_control::{AgentOptions, options};
use redoubt_log::MachineId;
use redoubt_protocol::message::RunId;
use redoubt_protocol::{AgentSelf, AgentSession, WINDOW_FRAMES, WindowLimits};
use redoubt_tracker::probe::{Attached, Probe, ProbeOptions};
use redoubt_transport::{AgentIdentity, Token, TransportError, enrol};
use session::{Driver, Inputs};
use snapshot::{SharedLink, SharedSnapshot};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::{self, Runtime};
use tokio::sync::{mpsc, oneshot};
use verify::Verify;

/// Commands to the owner that may wait: an operator's few.
const COMMANDS_WAITING: usize = 64;

/// Questions to the target that may wait.
const ASKS_WAITING: usize = 16;

/// Between two attempts to join a site that cannot be reached.
const ENROL_RETRY: Duration = Duration::from_secs(2);

/// Runs the agent until SIGTERM or SIGINT, or until another run takes its place.
pub fn run(options: AgentOptions) -> Result<(), AgentError> {
    let signals = StopSignals::block().map_err(signals_failed)?;
    let mut claim = Claim::take(&options)?;
    let prepared = prepare(&options, signals).inspect_err(|error| claim.failed(error))?;
    claim.keep();
    let Some(Prepared { disks, identity, runtime, stop }) = prepared else { return Ok(()) };
    disks.keep()?;
    disks.warn_of_own_state();
    let ring_bytes = u32::try_from(options.ring_bytes).unwrap_or(u32::MAX);
    let source = Probe::attach(&pin_directory(&options.state), ProbeOptions { ring_bytes })?;
    privileges::lock_memory();
    privileges::drop_to_needed()?;
    protect(&options, identity, disks, source, runtime, stop)
}

/// What a run is made of before anything of it is remembered.
struct Prepared {
    disks: ProtectedDisks,
    identity: AgentIdentity,
    runtime: Runtime,
    stop: oneshot::Receiver<()>,
}

/// Takes the disks and joins the site, where that is yet to be done. `None` when told to stop.
fn prepare(options: &AgentOptions, signals: StopSignals) -> Result<Option<Prepared>, AgentError> {
    let disks = ProtectedDisks::open(&options.state, &options.disks);
    if matches!(disks, Err(AgentError::NoDisk)) {
        finish_last_end(&options.state)?;
    }
    let disks = disks?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| AgentError::Start { what: "the network's runtime", source })?;
    let (told, stop) = oneshot::channel();
    signals.call(move || drop(told)).map_err(signals_failed)?;
    let joined = runtime.block_on(join_site(options, stop))?;
    Ok(joined.map(|(identity, stop)| Prepared { disks, identity, runtime, stop }))
}

/// With no disk left no tracker is attached that would let go what the end of the last one, cut in
/// the middle, has left in the kernel.
fn finish_last_end(state: &Path) -> Result<(), AgentError> {
    let pins = pin_directory(state);
    if pins.exists() {
        Probe::detach(&pins)?;
        tracing::warn!(
            "the end of the last disk's protection was cut: nothing is tracked any more; where the \
             target shows the disk as protected, `redoubt unprotect` there tells it"
        );
    }
    Ok(())
}

/// Ships what the tracker sees, with the owner and the sealer in threads of their own, until told
/// to stop; the three end in the order in which they feed each other.
fn protect(
    options: &AgentOptions,
    identity: AgentIdentity,
    disks: ProtectedDisks,
    source: Attached,
    runtime: Runtime,
    stop: oneshot::Receiver<()>,
) -> Result<(), AgentError> {
    let machine = identity.machine;
    let name = identity.name.clone();
    tracing::info!(%name, %machine, "protecting");
    let shared = shared();
    let names: Vec<_> = disks.names().into_iter().map(|(index, name, _)| (index, name)).collect();
    let known_past = Arc::new(Mutex::new(disks.past()));
    let session = new_session(machine, &disks, window_limits(options));
    let sealer = sealer::start(identity.frame_key.clone())
        .map_err(|source| AgentError::Start { what: "the sealer", source })?;
    let (commands, obeyed) = channel::bounded(COMMANDS_WAITING);
    let (notes, noted) = mpsc::unbounded_channel();
    let (audit, conversations) = (AuditLog::new(&options.state), Arc::new(()));
    let (asks, asked) = mpsc::channel(ASKS_WAITING);
    let verify = Verify::new(asks.clone(), shared.link.clone(), audit.clone(), names.clone());
    let parts = Parts {
        source,
        machine,
        disks,
        commands: obeyed,
        frames: sealer.input,
        shared: shared.clone(),
        name: name.clone(),
        audit: audit.clone(),
        verify,
        notes,
        conversations: Arc::downgrade(&conversations),
    };
    let (owner, owner_failed) = start_owner(parts)?;
    let control = Control {
        machine,
        name,
        disks: names,
        shared: shared.clone(),
        past: known_past.clone(),
        owner: commands.clone(),
        asks,
        audit: audit.clone(),
        conversations,
    };
    let server = Server::start(&options.runtime, Role::Agent, Arc::new(control))?;
    let chronicler = audit::follow(audit.clone(), identity.name.clone(), &shared)?;
    notify_ready();
    let driver = Driver::new(session, identity, commands.clone(), shared, known_past, audit);
    let inputs = Inputs { sealed: sealer.output, asks: asked, notes: noted, stop, owner_failed };
    let result = runtime.block_on(driver.run(inputs));
    drop((server, chronicler));
    // An owner that has failed hears nothing any more; its own error is told below.
    let _ = commands.send(Command::Stop);
    drop(commands);
    let owned = owner.join().map_err(|_| AgentError::Failed { what: "tracker" })?;
    drop(runtime);
    sealer.thread.join().map_err(|_| AgentError::Failed { what: "sealer" })?;
    owned.and(result)
}

/// The session of this run; that it is another one than the last, its random number says.
fn new_session(
    machine: MachineId,
    disks: &ProtectedDisks,
    limits: WindowLimits,
) -> AgentSession<Bytes> {
    let run = RunId(uuid::Uuid::new_v4().into_bytes());
    let me = AgentSelf {
        machine,
        run,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        host_name: host_name(),
        disks: disks.descriptions(),
    };
    let seed = u64::from_le_bytes(run.0[..8].try_into().expect("eight of sixteen"));
    AgentSession::new(me, disks.past(), limits, seed, Instant::now())
}

/// Removes what an agent with this state directory left in the kernel, if none runs there now.
pub fn detach(state: &Path) -> Result<(), AgentError> {
    let pins = pin_directory(state);
    if !pins.exists() {
        // No error, for nothing is to be removed; but a mistyped directory leaves tracking on.
        tracing::warn!(
            "nothing in the kernel belongs to the state directory {}: is it the right --state?",
            state.display()
        );
    }
    if !state.exists() {
        return Ok(Probe::detach(&pins)?);
    }
    claim::expect_own(state)?;
    let _lock = StateLock::take(state)?;
    let detached = Probe::detach(&pins);
    let outcome = if detached.is_ok() { "done" } else { "failed" };
    let reason = detached.as_ref().err().map(ToString::to_string);
    let actor = Some(nix::unistd::getuid().as_raw());
    AuditLog::new(state).note(actor, "detach", &pins.display().to_string(), outcome, reason);
    Ok(detached?)
}

/// Where the kernel side of a state directory is pinned: a name derived from its path.
fn pin_directory(state: &Path) -> PathBuf {
    let path = std::path::absolute(state).unwrap_or_else(|_| state.to_owned());
    let path = path.canonicalize().unwrap_or(path);
    let name = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, path.as_os_str().as_encoded_bytes());
    Path::new("/sys/fs/bpf").join(format!("redoubt-{}", name.simple()))
}

fn shared() -> Shared {
    Shared {
        acknowledged: Arc::new(AtomicU64::new(0)),
        applied: Arc::new(AtomicU64::new(0)),
        snapshot: SharedSnapshot::new(),
        link: SharedLink::default(),
    }
}

fn window_limits(options: &AgentOptions) -> WindowLimits {
    let bytes = usize::try_from(options.window_bytes).unwrap_or(usize::MAX);
    WindowLimits { bytes, frames: WINDOW_FRAMES }
}

type OwnerThread = (JoinHandle<Result<(), AgentError>>, oneshot::Receiver<()>);

/// Starts the owner; the receiver hears when it ends, whatever the reason.
fn start_owner(parts: Parts) -> Result<OwnerThread, AgentError> {
    let (ended, hears) = oneshot::channel();
    let owner = Owner::new(parts)?;
    let run = move || {
        let result = owner.run();
        drop(ended);
        result
    };
    let thread = std::thread::Builder::new().name("tracker".to_owned()).spawn(run);
    Ok((thread.map_err(|source| AgentError::Start { what: "the tracker", source })?, hears))
}

/// The identity of this machine: the one it has, or the one that the token earns. `None` when told
/// to stop.
async fn join_site(
    options: &AgentOptions,
    mut stop: oneshot::Receiver<()>,
) -> Result<Option<(AgentIdentity, oneshot::Receiver<()>)>, AgentError> {
    if let Some(identity) = AgentIdentity::load(&options.state)? {
        return Ok(Some((identity, stop)));
    }
    let no_token = || AgentError::NoToken { directory: options.state.clone() };
    let token = options.token.as_ref().map(options::Token::expose).ok_or_else(no_token)?;
    let token: Token = token.parse()?;
    loop {
        // Cut in the middle it can be repeated, as after a crash.
        let host_name = host_name();
        let joined = tokio::select! {
            _ = &mut stop => return Ok(None),
            joined = enrol(&options.state, &token, &host_name) => joined,
        };
        match joined {
            Ok(identity) => return Ok(Some((identity, stop))),
            // A target that closes is stopping: it comes back.
            Err(
                error @ (TransportError::Unreachable { .. }
                | TransportError::Lost(_)
                | TransportError::Closed(_)),
            ) => {
                tracing::warn!(%error, "not joined yet, trying again");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            _ = &mut stop => return Ok(None),
            () = tokio::time::sleep(ENROL_RETRY) => {}
        }
    }
}

fn host_name() -> String {
    nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned()
}

fn signals_failed(source: std::io::Error) -> AgentError {
    AgentError::Start { what: "signal handling", source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redoubt_control::audit::AuditEntry;

    #[test]
    fn a_detach_is_written_down() {
        let state = tempfile::tempdir().unwrap();
        let outcome = if detach(state.path()).is_ok() { "done" } else { "failed" };
        let written = std::fs::read_to_string(state.path().join("audit.jsonl")).unwrap();
        let entry: AuditEntry = serde_json::from_str(&written).unwrap();
        assert_eq!((entry.action.as_str(), entry.outcome.as_str()), ("detach", outcome));
        assert_eq!(entry.actor, Some(nix::unistd::getuid().as_raw()));
        // Where there is no agent's state, none is made.
        let nowhere = state.path().join("nowhere");
        let _ = detach(&nowhere);
        assert!(!nowhere.exists());
    }
}
