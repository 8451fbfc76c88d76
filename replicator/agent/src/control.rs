//! What an operator asks of this agent over its socket. It answers for its own machine only, and
//! audits what it is told to do.

use crate::copy_out::{self, CopyOut};
use crate::marks::MarkRequest;
use crate::owner::{Command, Shared};
use crate::requests::Ask;
use crate::verify::{VerifyCommand, verify};
use crossbeam::channel::Sender;
use redoubt_control::audit::AuditLog;
use redoubt_control::request::{PointSelector, Request};
use redoubt_control::socket::{Handler, Peer, Responder};
use redoubt_control::status::{
    MachineStatus, PointKind, PointState, PointStatus, PositionStatus, Role, RoleStatus,
};
use redoubt_control::units::UtcTime;
use redoubt_control::{ExitStatus, Marked, Response};
use redoubt_log::{
    DiskIndex, DiskSet, Generation, Incarnation, MachineId, Name, PointId, Sequence,
};
use redoubt_protocol::AgentPast;
use redoubt_protocol::message::{MarkedPoint, PointSummary};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::mpsc as async_mpsc;

/// How often a wait for an acknowledgement looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long the target may take to list its points.
const POINTS_PATIENCE: Duration = Duration::from_secs(30);

/// The agent's end of its socket.
pub(crate) struct Control {
    pub machine: MachineId,
    pub name: Name,
    pub disks: Vec<(DiskIndex, Name)>,
    pub shared: Shared,
    pub past: Arc<std::sync::Mutex<AgentPast>>,
    pub owner: Sender<Command>,
    pub asks: async_mpsc::Sender<Ask>,
    pub audit: AuditLog,
    /// A clone of it is held by each conversation, until its answer is out.
    pub conversations: Arc<()>,
}

impl Handler for Control {
    fn handle(&self, peer: Peer, request: Request, responder: &mut dyn Responder) {
        let _conversation = self.conversations.clone();
        let response = self.answer(peer, request, responder);
        if let Err(error) = responder.send(&response) {
            tracing::debug!(%error, "who asked has gone");
        }
    }
}

impl Control {
    fn answer(&self, peer: Peer, request: Request, responder: &mut dyn Responder) -> Response {
        match &request {
            Request::Status => Response::Status { status: self.status() },
            Request::Points { .. } => {
                let points = self.check(&request).and_then(|()| self.points());
                points.map_or_else(Response::failed, |points| Response::Points { points })
            }
            _ => self.order(peer, request, responder),
        }
    }

    /// Carries an order out, or refuses it; the audit log has it either way.
    fn order(&self, peer: Peer, request: Request, responder: &mut dyn Responder) -> Response {
        let (actor, action) = (Some(peer.uid), request.action());
        let object = request.object(request.machine().unwrap_or(&self.name).as_str());
        let response = match self.check(&request) {
            Err(why) => Response::failed(why),
            Ok(()) => {
                if request.is_noted_before() {
                    self.audit.note(actor, action, &object, "begun", None);
                }
                self.carry_out(request, responder).unwrap_or_else(Response::failed)
            }
        };
        self.audit.note_answer(actor, action, &object, &response);
        response
    }

    fn carry_out(
        &self,
        request: Request,
        responder: &mut dyn Responder,
    ) -> Result<Response, String> {
        match request {
            Request::Mark { label, timeout, applied, .. } => {
                Ok(self.mark(label.unwrap_or_default(), timeout.0, applied))
            }
            Request::CopyOut { disk, point, to, force, .. } => {
                self.copy_out(&disk, point, &to, force, responder)
            }
            Request::Verify { disk, .. } => {
                let (machine, disks) = (&self.name, &self.disks);
                let command = VerifyCommand { machine, disks, disk: disk.as_ref() };
                verify(&command, &self.owner, responder)
            }
            Request::Pause { .. } => self.pause(true),
            Request::Resume { .. } => self.pause(false),
            Request::Unprotect { disk, .. } => self.unprotect(disk),
            Request::Status | Request::Points { .. } | Request::Place { .. } => {
                Err(format!("an agent has no order to {}", request.action()))
            }
        }
    }

    /// Whether the request is one for this agent.
    fn check(&self, request: &Request) -> Result<(), String> {
        match request {
            Request::Place { .. } => {
                Err("replica disks lie at the target: ask it (--side target, on its machine)"
                    .to_owned())
            }
            _ if request.machine().is_some_and(|asked| *asked != self.name) => {
                let asked = request.machine().unwrap_or(&self.name);
                let name = &self.name;
                Err(format!(
                    "this is the agent of {name}: ask the target of {asked} (--side target)"
                ))
            }
            // Else whoever has broken into this machine could delete what it is to be restored
            // from.
            Request::Unprotect { delete_replica: true, .. } => {
                Err("replicas and points are deleted at the target only, so that a machine cannot \
                 delete its own: redoubt unprotect --delete-replica on the target's machine"
                    .to_owned())
            }
            _ => Ok(()),
        }
    }

    fn status(&self) -> RoleStatus {
        let link = self.shared.link.get();
        let acknowledged = self.shared.acknowledged.load(Ordering::Acquire);
        let snapshot = self.shared.snapshot.lock().clone();
        let now = Instant::now();
        let position = self.position(snapshot.sealed.0.max(acknowledged), acknowledged);
        let machine = MachineStatus {
            id: self.machine.into(),
            name: self.name.clone(),
            connected: link.connected,
            reason: None,
            rpo_seconds: (link.sessions > 0 && !link.removed)
                .then(|| snapshot.rpo(now).as_secs_f64()),
            disks: snapshot.shown(&link, position, now),
        };
        RoleStatus { role: Role::Agent, machines: vec![machine], placements: vec![] }
    }

    fn position(&self, sequence: u64, acknowledged: u64) -> Option<PositionStatus> {
        let past = *self.past.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Some(PositionStatus {
            generation: past.generation?.into(),
            incarnation: past.incarnation?.0,
            sequence,
            acknowledged,
        })
    }

    fn mark(&self, label: String, timeout: Duration, applied: bool) -> Response {
        let deadline = Instant::now() + timeout;
        let (reply, answer) = mpsc::channel();
        let reply = Box::new(move |result| {
            // Who asked may have gone.
            let _ = reply.send(result);
        });
        let kind = redoubt_log::PointKind::CrashConsistent;
        let request = MarkRequest { label, kind, deadline, reply };
        if self.owner.send(Command::Mark(request)).is_err() {
            return Response::failed("the agent is stopping");
        }
        let late = |what: &str| Response::Failed {
            status: ExitStatus::TimedOut,
            message: format!("the point is not {what} yet: `redoubt status` says why"),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let marked: MarkedPoint = match answer.recv_timeout(left) {
            Ok(Ok(marked)) => marked,
            Ok(Err(why)) if Instant::now() >= deadline => {
                return Response::Failed { status: ExitStatus::TimedOut, message: why };
            }
            Ok(Err(why)) => return Response::failed(why),
            Err(_) => return late("taken"),
        };
        let log = self.log_now();
        if !reached(&self.shared.acknowledged, marked.sequence, deadline) {
            return late("durable at the target");
        }
        if self.log_now() != log {
            return Response::failed("the log began anew before the point was durable: ask again");
        }
        if applied && !reached(&self.shared.applied, marked.sequence, deadline) {
            return late("applied to the replica disks");
        }
        let lacks = |(index, _): &&(DiskIndex, Name)| marked.lacking.contains(*index);
        let lacking = self.disks.iter().filter(lacks).map(|(_, name)| name.clone()).collect();
        let (point, proven) = (marked.point.into(), marked.proven);
        Response::Marked { marked: Marked { point, lacking, proven } }
    }

    /// Which log, and which run of it, numbers belong to.
    fn log_now(&self) -> (Option<Generation>, Option<Incarnation>) {
        let past = self.past.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        (past.generation, past.incarnation)
    }

    fn points(&self) -> Result<Vec<PointStatus>, String> {
        let (reply, answer) = mpsc::channel();
        let stopping = |_| "the agent is stopping".to_owned();
        self.asks.blocking_send(Ask::Points { reply }).map_err(stopping)?;
        let points = answer
            .recv_timeout(POINTS_PATIENCE)
            .map_err(|_| "the target did not list its points in time".to_owned())??;
        Ok(points.into_iter().map(|point| self.shown(point)).collect())
    }

    fn shown(&self, point: PointSummary) -> PointStatus {
        let named = |set: DiskSet| {
            let named = self.disks.iter().filter(|(index, _)| set.contains(*index));
            named.map(|(_, name)| name.clone()).collect()
        };
        PointStatus {
            id: point.point.into(),
            taken_at: UtcTime::from_nanoseconds(point.taken_at.0),
            kind: match point.application_consistent {
                true => PointKind::ApplicationConsistent,
                false => PointKind::CrashConsistent,
            },
            disks: named(point.disks),
            label: (!point.label.is_empty()).then_some(point.label),
            sequence: point.sequence.0,
            complete: point.complete,
            proven: point.proven,
            harmed_disks: named(point.harmed),
            state: if point.waits { PointState::Waiting } else { PointState::Applied },
            suspect: point.suspect,
        }
    }

    fn copy_out(
        &self,
        disk: &Name,
        point: PointSelector,
        to: &Path,
        force: bool,
        responder: &mut dyn Responder,
    ) -> Result<Response, String> {
        let Some((index, _)) = self.disks.iter().find(|(_, name)| name == disk) else {
            let known: Vec<&str> = self.disks.iter().map(|(_, name)| name.as_str()).collect();
            let known = known.join(", ");
            return Err(format!("{disk}: no such disk here; there are {known}"));
        };
        let point = match point {
            PointSelector::Latest => None,
            PointSelector::Id(id) => Some(PointId::from(id)),
        };
        let order = CopyOut { disk: *index, point, to, force };
        copy_out::run(&order, &self.asks, responder)
    }
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
