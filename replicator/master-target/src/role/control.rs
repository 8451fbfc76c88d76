//! What an operator asks of this target over its socket, and the audit of what it is told to do.

use super::machine::MachineEvent;
use super::operator::{Ending, check_named};
use super::protected::{Protected, Registry};
use super::{points, status, unopened, verify};
use crate::store::{PointChoice, copy_out};
use redoubt_control::audit::AuditLog;
use redoubt_control::request::{PointSelector, Request};
use redoubt_control::socket::{Handler, Peer, Responder};
use redoubt_control::status::{MachineStatus, Role, RoleStatus};
use redoubt_control::{ExitStatus, Marked, Response};
use redoubt_engine::directory::DirectoryStorage;
use redoubt_engine::storage::{Open, Storage};
use redoubt_log::{Generation, Incarnation, Name, PointId, Sequence};
use redoubt_protocol::TargetMessage;
use redoubt_transport::Site;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// How often a wait for a position looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How often a copy tells how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// The target's end of its socket.
pub(super) struct Control {
    pub registry: Registry,
    pub site: Arc<Site>,
    pub audit: AuditLog,
    pub data: PathBuf,
}

impl Handler for Control {
    fn handle(&self, peer: Peer, request: Request, responder: &mut dyn Responder) {
        let response = self.answer(peer, &request, responder);
        if let Err(error) = responder.send(&response) {
            tracing::debug!(%error, "who asked has gone");
        }
    }
}

/// An answer, or the response that says why there is none.
pub(super) type Answer<T> = Result<T, Response>;

impl Control {
    fn answer(&self, peer: Peer, request: &Request, responder: &mut dyn Responder) -> Response {
        let answer = match request {
            Request::Status => Ok(Response::Status { status: self.status() }),
            Request::Points { machine } => self
                .machine(machine.as_ref())
                .map(|machine| Response::Points { points: status::points_of(&machine) }),
            Request::Mark { label, timeout, applied, .. } => {
                let label = label.clone().unwrap_or_default();
                self.order(peer, request, |it| self.mark(it, label, timeout.0, *applied))
            }
            Request::CopyOut { disk, point, to, force, .. } => {
                self.order(peer, request, |it| copy(it, disk, *point, to, *force, responder))
            }
            Request::Verify { disk, .. } => self.order(peer, request, |it| {
                verify::run(&self.registry, it, disk.as_ref(), responder)
            }),
            Request::Pause { .. } => self.order(peer, request, |it| self.pause(it, true)),
            Request::Resume { .. } => self.order(peer, request, |it| self.pause(it, false)),
            Request::Unprotect { disk, delete_replica, .. } => {
                let ending = Ending { disk: disk.as_ref(), delete_replica: *delete_replica };
                self.order(peer, request, |it| self.unprotect(it, &ending))
            }
            Request::Place { machine, disk, on } => {
                let place = || self.place(machine, disk, on);
                self.audited(peer, request, machine.as_str(), place)
            }
        };
        answer.unwrap_or_else(|failed| failed)
    }

    /// Carries out what is ordered of a machine; where that is refused for there is no such one,
    /// the audit log has the refusal.
    fn order(
        &self,
        peer: Peer,
        request: &Request,
        act: impl FnOnce(&Protected) -> Answer<Response>,
    ) -> Answer<Response> {
        match check_named(request).and_then(|()| self.machine(request.machine())) {
            Ok(machine) => self.audited(peer, request, machine.name.as_str(), || act(&machine)),
            Err(refused) => {
                let object = request.object(request.machine().map_or("unnamed", Name::as_str));
                self.audit.note_answer(Some(peer.uid), request.action(), &object, &refused);
                Err(refused)
            }
        }
    }

    /// Carries an order out; the audit log has it, and how it ended.
    fn audited(
        &self,
        peer: Peer,
        request: &Request,
        machine: &str,
        act: impl FnOnce() -> Answer<Response>,
    ) -> Answer<Response> {
        let (actor, action, object) = (Some(peer.uid), request.action(), request.object(machine));
        if request.is_noted_before() {
            self.audit.note(actor, action, &object, "begun", None);
        }
        let response = act().unwrap_or_else(|failed| failed);
        self.audit.note_answer(actor, action, &object, &response);
        Ok(response)
    }

    fn status(&self) -> RoleStatus {
        let machines = self.registry.all();
        let opened = machines.iter().map(|machine| status::of(machine, &self.data));
        let machines = opened.chain(self.unopened()).collect();
        let waiting = self.registry.store().waiting();
        let placements = waiting.iter().map(status::placement).collect();
        RoleStatus { role: Role::Target, machines, placements }
    }

    fn unopened(&self) -> Vec<MachineStatus> {
        unopened::shown(&self.registry, &self.site, &self.data)
    }

    fn machine(&self, asked: Option<&Name>) -> Answer<Arc<Protected>> {
        let mut all = self.registry.all();
        let unopened = self.unopened();
        let names = all.iter().map(|machine| &machine.name);
        let names = names.chain(unopened.iter().map(|machine| &machine.name));
        let names: Vec<String> = names.map(Name::to_string).collect();
        let meant = |machine: &&MachineStatus| match asked {
            Some(asked) => machine.name == *asked,
            None => names.len() == 1,
        };
        let is_opened = |name: &Name| all.iter().any(|machine| machine.name == *name);
        let harmed = unopened.iter().filter(|machine| !is_opened(&machine.name));
        if let Some(machine) = harmed.into_iter().find(meant) {
            let why = machine.reason.as_deref().unwrap_or_default();
            return Err(Response::failed(format!("{}: {why}", machine.name)));
        }
        let Some(asked) = asked else {
            return match names.len() {
                0 => {
                    Err(Response::failed("no machine is protected here yet: see `redoubt invite`"))
                }
                1 => Ok(all.remove(0)),
                _ => Err(Response::failed(format!(
                    "several machines are protected here: give --machine, one of {}",
                    names.join(", ")
                ))),
            };
        };
        let found = all.into_iter().find(|machine| machine.name == *asked);
        found.ok_or_else(|| {
            let names = names.join(", ");
            Response::failed(format!("{asked}: no such machine here; there are: {names}"))
        })
    }

    fn mark(
        &self,
        machine: &Protected,
        label: String,
        timeout: Duration,
        applied: bool,
    ) -> Answer<Response> {
        let deadline = Instant::now() + timeout;
        let late = |what: &str| Response::Failed {
            status: ExitStatus::TimedOut,
            message: format!("the point is not {what} yet: `redoubt status` says why"),
        };
        let request = self.registry.next_request();
        let (reply, answer) = mpsc::channel();
        {
            let mut live = machine.live();
            if live.connected.is_none() {
                let why = "the agent is not connected: `redoubt status` says since when";
                return Err(Response::failed(format!("{}: {why}", machine.name)));
            }
            live.marks.insert(request, reply);
        }
        let message = TargetMessage::Mark { request, label, application_consistent: false };
        // The task ends only with the process.
        let _ = machine.events.blocking_send(MachineEvent::Say(message));
        let left = deadline.saturating_duration_since(Instant::now());
        let answered = answer.recv_timeout(left);
        machine.live().marks.remove(&request);
        let marked = match answered {
            Ok(marked) => marked.map_err(Response::failed)?,
            Err(_) => return Err(late("taken")),
        };
        let log = log_of(machine);
        if !reached(&machine.durable, marked.sequence, deadline) {
            return Err(late("durable"));
        }
        // Another run of the agent numbers its records above those of one that died.
        if log_of(machine) != log {
            let why = "the log began anew before the point was durable: ask again";
            return Err(Response::failed(why));
        }
        if applied && !reached(&machine.applied, marked.sequence, deadline) {
            return Err(late("applied"));
        }
        // Under its number where it was never announced: none that is lacking goes untold.
        let name = |index| {
            let known = machine.store.disk_name(index);
            status::name_of(&known.unwrap_or_else(|| format!("disk-{index}")))
        };
        let lacking = marked.lacking.iter().map(name).collect();
        let (point, proven) = (marked.point.into(), marked.proven);
        Ok(Response::Marked { marked: Marked { point, lacking, proven } })
    }
}

/// Which log, and which run of it, numbers belong to.
fn log_of(machine: &Protected) -> (Generation, Incarnation) {
    let status = machine.store.status();
    (status.generation, status.incarnation)
}

fn reached(counter: &AtomicU64, sequence: Sequence, deadline: Instant) -> bool {
    while counter.load(Ordering::Acquire) < sequence.0 {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    true
}

/// Writes a disk as it was at a point into a file.
fn copy(
    machine: &Protected,
    disk: &Name,
    point: PointSelector,
    to: &Path,
    force: bool,
    responder: &mut dyn Responder,
) -> Answer<Response> {
    let disks = machine.store.status().disks;
    let Some(found) = disks.iter().find(|known| known.name == disk.as_str()) else {
        let known: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
        let known = known.join(", ");
        return Err(Response::failed(format!("{disk}: no such disk; there are: {known}")));
    };
    let choice = match point {
        PointSelector::Latest => PointChoice::Latest,
        PointSelector::Id(id) => PointChoice::Id(PointId::from(id)),
    };
    let view = points::open(machine, found.index, choice).map_err(Response::failed)?;
    if to.exists() && !to.is_file() {
        let to = to.display();
        return Err(Response::failed(format!("{to}: not a regular file: give the path of a file")));
    }
    if to.exists() && !force {
        let to = to.display();
        return Err(Response::failed(format!("{to}: it exists; give --force to overwrite it")));
    }
    let failed =
        |error: &dyn std::fmt::Display| Response::failed(format!("{}: {error}", to.display()));
    let (Some(parent), Some(name)) = (to.parent(), to.file_name()) else {
        return Err(failed(&"give the path of a file"));
    };
    // Written beside: what stands at the goal is touched only when the copy is whole.
    let mut partial = name.to_owned();
    partial.push(".partial");
    let beside = to.with_file_name(&partial);
    if beside.exists() {
        fs::remove_file(&beside).map_err(|error| failed(&error))?;
    }
    let file = DirectoryStorage::new(parent)
        .open(Path::new(&partial), Open::CreateSparse(view.size()))
        .map_err(Response::failed)?;
    let total_bytes = view.size();
    let mut told = Instant::now();
    let mut progress = |done_bytes: u64| {
        if told.elapsed() < PROGRESS_EVERY {
            return true;
        }
        told = Instant::now();
        responder.send(&Response::Progress { done_bytes, total_bytes }).is_ok()
    };
    match copy_out(&view, &*file, &mut progress) {
        Ok(true) => {
            fs::rename(&beside, to).map_err(|error| failed(&error))?;
            Ok(Response::CopiedOut { point: view.point().id.into(), bytes: total_bytes })
        }
        unfinished => {
            // A copy that was not finished does not stay; the first error is the one to tell.
            let _ = fs::remove_file(&beside);
            Err(unfinished.map_or_else(Response::failed, |_| failed(&"the copy was given up")))
        }
    }
}

/// An invitation was made.
pub(super) fn audit_invite(data: &Path, machine: Option<&Name>) {
    let object = machine.map_or("any machine", Name::as_str);
    let actor = Some(nix::unistd::getuid().as_raw());
    AuditLog::new(data).note_answer(actor, "invite", object, &Response::Done);
}
