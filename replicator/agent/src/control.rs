//! What an operator asks of this agent over its socket. It answers for its own machine only, and
//! audits what it is told to do.

use crate::audit::Audit;
use crate::copy_out::{self, CopyOut};
use crate::marks::MarkRequest;
use crate::owner::{Command, Shared};
use crate::requests::Ask;
use crate::verify::{VerifyCommand, verify};
use crossbeam::channel::Sender;
use redoubt_control::request::{PointSelector, Request};
use redoubt_control::socket::{Handler, Peer, Responder};
use redoubt_control::status::{
    MachineStatus, PointKind, PointStatus, PositionStatus, Role, RoleStatus,
};
use redoubt_control::units::UtcTime;
use redoubt_control::{ExitStatus, Marked, Response};
use redoubt_log::{DiskIndex, Generation, Incarnation, MachineId, Name, PointId, Sequence};
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
    pub audit: Audit,
    /// A clone of it is held by each conversation, until its answer is out.
    pub conversations: Arc<()>,
}

impl Handler for Control {
    fn handle(&self, peer: Peer, request: Request, responder: &mut dyn Responder) {
        let _conversation = self.conversations.clone();
        let response = match self.check_machine(&request) {
            Err(failed) => failed,
            Ok(()) => self.answer(peer, request, responder),
        };
        if let Err(error) = responder.send(&response) {
            tracing::debug!(%error, "who asked has gone");
        }
    }
}

impl Control {
    fn answer(&self, peer: Peer, request: Request, responder: &mut dyn Responder) -> Response {
        match request {
            Request::Status => Response::Status { status: self.status() },
            Request::Mark { label, timeout, applied, .. } => {
                let label = label.unwrap_or_default();
                let response = self.mark(label, timeout.0, applied);
                self.audit(peer, "mark", self.name.as_str(), &response);
                response
            }
            Request::Points { .. } => match self.points() {
                Ok(points) => Response::Points { points },
                Err(why) => Response::failed(why),
            },
            Request::CopyOut { disk, point, to, force, .. } => {
                let response = self.copy_out(&disk, point, &to, force, responder);
                let object = format!("{disk} to {}", to.display());
                self.audit(peer, "copy-out", &object, &response);
                response
            }
            Request::Verify { disk, .. } => {
                let (machine, disks) = (&self.name, &self.disks);
                let command = VerifyCommand { machine, disks, disk: disk.as_ref() };
                let response = verify(&command, &self.owner, responder);
                let response = response.unwrap_or_else(Response::failed);
                let object = disk.as_ref().map_or(self.name.as_str(), Name::as_str);
                self.audit(peer, "verify", object, &response);
                response
            }
            Request::Pause { .. } => self.pause(peer, true),
            Request::Resume { .. } => self.pause(peer, false),
            Request::Unprotect { disk, delete_replica, .. } => {
                self.unprotect(peer, disk, delete_replica)
            }
            Request::Place { .. } => Response::failed(
                "replica disks lie at the target: ask it (--side target, on its machine)",
            ),
        }
    }

    fn check_machine(&self, request: &Request) -> Result<(), Response> {
        match request.machine() {
            Some(asked) if *asked != self.name => Err(Response::failed(format!(
                "this is the agent of {}: ask the target of {asked} (--side target)",
                self.name
            ))),
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
            rpo_seconds: (link.sessions > 0).then(|| snapshot.rpo(now).as_secs_f64()),
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
        let good = |(index, _): &&(DiskIndex, Name)| point.disks.contains(*index);
        PointStatus {
            id: point.point.into(),
            taken_at: UtcTime::from_nanoseconds(point.taken_at.0),
            kind: match point.application_consistent {
                true => PointKind::ApplicationConsistent,
                false => PointKind::CrashConsistent,
            },
            disks: self.disks.iter().filter(good).map(|(_, name)| name.clone()).collect(),
            label: (!point.label.is_empty()).then_some(point.label),
            sequence: point.sequence.0,
            complete: point.complete,
            proven: point.proven,
        }
    }

    fn copy_out(
        &self,
        disk: &Name,
        point: PointSelector,
        to: &Path,
        force: bool,
        responder: &mut dyn Responder,
    ) -> Response {
        let Some((index, _)) = self.disks.iter().find(|(_, name)| name == disk) else {
            let known: Vec<&str> = self.disks.iter().map(|(_, name)| name.as_str()).collect();
            let known = known.join(", ");
            return Response::failed(format!("{disk}: no such disk here; there are {known}"));
        };
        let point = match point {
            PointSelector::Latest => None,
            PointSelector::Id(id) => Some(PointId::from(id)),
        };
        let order = CopyOut { disk: *index, point, to, force };
        copy_out::run(&order, &self.asks, responder).unwrap_or_else(Response::failed)
    }

    pub fn audit(&self, peer: Peer, action: &str, object: &str, response: &Response) {
        let (outcome, reason) = match response {
            Response::Failed { message, .. } => ("failed", Some(message.clone())),
            Response::Verified { report } => (report.verdict(), Some(report.summary())),
            Response::Told { message } => ("done", Some(message.clone())),
            _ => ("done", None),
        };
        self.audit.write(Some(peer.uid), action, object, outcome, reason);
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
