//! Drives the session's state machine: its events come from the connection, the sealer and the
//! operator, its actions go to them. It must never wait for the network or a disk; the owner of the
//! tracker, in a thread of its own, keeps it waiting only with a full queue of commands.

use crate::error::AgentError;
use crate::link::{EVENTS_WAITING, Link, LinkEvent, dial};
use crate::marks::MarkRequest;
use crate::owner::{Command, Shared};
use crate::pause::PauseOrder;
use crate::requests::{Ask, Pending};
use crate::sealer::Sealed;
use crate::unprotect::Which;
use crate::verify::{VerifyEvent, VerifyRequest};
use bytes::Bytes;
use crossbeam::channel::Sender;
use redoubt_control::audit::AuditLog;
use redoubt_log::{DiskIndex, PointKind, Sequence};
use redoubt_protocol::message::{DiskDescription, MarkedPoint, Refusal, RefusalCode, RequestId};
use redoubt_protocol::{
    AgentAction, AgentEvent, AgentMessage, AgentPast, AgentSession, ConnectionId, NotTaken,
    TargetMessage,
};
use redoubt_transport::{AgentIdentity, TransportError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

/// How long a last word takes to leave this machine.
const LAST_WORD: Duration = Duration::from_millis(50);

/// How often the target is told how the agent stands.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// How long a mark that the target asks for may wait for disks to settle; the operator's own
/// time-out ends earlier.
const MARK_PATIENCE: Duration = Duration::from_secs(600);

/// What the owner of the tracker has for the session. Its channel is unbounded: it holds what
/// operators ordered.
pub(crate) enum Note {
    /// To be said to the target; lost where there is no session.
    Say(AgentMessage),
    /// What the next hello tells of the disks.
    Disks(Vec<DiskDescription>),
}

/// A mark that the target asked for has been answered by the owner.
struct TargetMark {
    request: RequestId,
    result: Result<MarkedPoint, String>,
}

/// Everything that the driver listens to.
pub(crate) struct Inputs {
    pub sealed: mpsc::Receiver<Sealed>,
    pub asks: mpsc::Receiver<Ask>,
    pub notes: UnboundedReceiver<Note>,
    pub stop: tokio::sync::oneshot::Receiver<()>,
    /// Ends with the owner of the tracker: without it there is nothing to ship.
    pub owner_failed: tokio::sync::oneshot::Receiver<()>,
}

/// The session of this run.
pub(crate) struct Driver {
    session: AgentSession<Bytes>,
    identity: AgentIdentity,
    owner: Sender<Command>,
    shared: Shared,
    link: Option<Link>,
    dialling: Option<tokio::task::JoinHandle<()>>,
    /// A sealed frame for which the window had no room.
    waiting: Option<Sealed>,
    wake: Option<Instant>,
    pending: Pending,
    events: (mpsc::Sender<LinkEvent>, mpsc::Receiver<LinkEvent>),
    marks: (UnboundedSender<TargetMark>, UnboundedReceiver<TargetMark>),
    /// What a verify that the target asks for tells it; two messages a second at most.
    verified: (UnboundedSender<AgentMessage>, UnboundedReceiver<AgentMessage>),
    /// Verifies that the target waits for; set when it does so no longer.
    verifies: HashMap<RequestId, Arc<AtomicBool>>,
    ended: Option<AgentError>,
    audit: AuditLog,
    /// What the session remembers, for the status.
    known_past: Arc<Mutex<AgentPast>>,
}

impl Driver {
    /// A session that connects as soon as it runs.
    pub fn new(
        session: AgentSession<Bytes>,
        identity: AgentIdentity,
        owner: Sender<Command>,
        shared: Shared,
        known_past: Arc<Mutex<AgentPast>>,
        audit: AuditLog,
    ) -> Self {
        Self {
            audit,
            known_past,
            session,
            identity,
            owner,
            shared,
            link: None,
            dialling: None,
            waiting: None,
            wake: Some(Instant::now()),
            pending: Pending::default(),
            events: mpsc::channel(EVENTS_WAITING),
            marks: mpsc::unbounded_channel(),
            verified: mpsc::unbounded_channel(),
            verifies: HashMap::new(),
            ended: None,
        }
    }

    /// Runs until it is told to stop, or another run of the agent has taken this one's place.
    pub async fn run(mut self, mut inputs: Inputs) -> Result<(), AgentError> {
        let mut report = interval(REPORT_EVERY);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.ended.is_none() {
            let wake = self.wake.unwrap_or_else(|| Instant::now() + REPORT_EVERY);
            tokio::select! {
                _ = &mut inputs.stop => break,
                _ = &mut inputs.owner_failed => break,
                Some(event) = self.events.1.recv() => self.heard(event),
                Some(mark) = self.marks.1.recv() => {
                    let TargetMark { request, result } = mark;
                    self.handle(AgentEvent::Say(AgentMessage::Marked { request, result }));
                }
                Some(message) = self.verified.1.recv() => {
                    if let AgentMessage::Verified { request, .. } = &message {
                        self.verifies.remove(request);
                    }
                    self.handle(AgentEvent::Say(message));
                }
                Some(sealed) = inputs.sealed.recv(), if self.waiting.is_none() => self.push(sealed),
                Some(ask) = inputs.asks.recv() => self.asked(ask),
                Some(note) = inputs.notes.recv() => match note {
                    Note::Say(message) => self.handle(AgentEvent::Say(message)),
                    Note::Disks(disks) => self.session.set_disks(disks),
                },
                _ = report.tick() => self.report(),
                () = sleep_until(wake.into()) => {
                    self.wake = None;
                    self.handle(AgentEvent::Tick);
                }
            }
        }
        let goodbye = AgentMessage::Goodbye { reason: "the agent stops".to_owned() };
        self.handle(AgentEvent::Say(goodbye));
        // The runtime ends with this: the last word is given time to go out.
        tokio::time::sleep(LAST_WORD).await;
        if let Some(link) = self.link.take() {
            link.close("the agent stops");
            tokio::time::sleep(LAST_WORD).await;
        }
        self.ended.map_or(Ok(()), Err)
    }

    fn heard(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Connected(id, connection) => {
                self.link = Some(Link::new(id, *connection, &self.events.0));
                self.handle(AgentEvent::Connected(id));
            }
            LinkEvent::Received(id, message) => self.handle(AgentEvent::Received(id, message)),
            LinkEvent::Point(point) => self.pending.point_stream(point),
            LinkEvent::Disconnected(id, TransportError::Removed(text)) => {
                self.take_link(id);
                let refusal = Refusal { code: RefusalCode::Unprotected, text };
                let message = TargetMessage::Refused(refusal);
                self.handle(AgentEvent::Received(id, message));
            }
            LinkEvent::Disconnected(id, error) => {
                if self.take_link(id).is_some() {
                    tracing::warn!(%error, "the connection to the target has ended");
                } else {
                    tracing::info!(%error, "no connection to the target yet");
                }
                self.handle(AgentEvent::Disconnected(id));
            }
        }
    }

    fn handle(&mut self, event: AgentEvent) {
        let actions = self.session.handle(event, Instant::now());
        self.act(actions);
    }

    fn push(&mut self, sealed: Sealed) {
        match self.session.push(sealed.place, sealed.bytes.clone()) {
            Ok(actions) => self.act(actions),
            Err(NotTaken::Full(_)) => self.waiting = Some(sealed),
            Err(NotTaken::Stale(_)) => {}
        }
    }

    fn act(&mut self, actions: Vec<AgentAction<Bytes>>) {
        for action in actions {
            match action {
                AgentAction::Connect(id) => {
                    let (identity, events) = (self.identity.clone(), self.events.0.clone());
                    self.dialling = Some(dial(id, identity, events));
                }
                AgentAction::Close(id, reason) => {
                    if let Some(link) = self.take_link(id) {
                        link.close(&reason);
                    }
                }
                AgentAction::SendMessage(id, message) => {
                    if let Some(link) = self.link.as_ref().filter(|link| link.id() == id) {
                        link.say(message);
                    }
                }
                AgentAction::SendFrame { connection, stream, frame, .. } => {
                    if let Some(link) = self.link.as_ref().filter(|link| link.id() == connection) {
                        link.send_frame(stream, frame);
                    }
                }
                AgentAction::Release(sequence) => self.release(sequence),
                AgentAction::Started { welcome, resumed } => {
                    tracing::info!(
                        generation = %welcome.generation,
                        incarnation = %welcome.incarnation,
                        resume = %welcome.resume,
                        resumed,
                        "session with the target"
                    );
                    // Before the owner hears of the new terms: an older log's acknowledgement must
                    // not drop an epoch.
                    self.shared.acknowledged.store(welcome.resume.0, Ordering::Release);
                    self.shared.link.started(welcome.full.clone());
                    let (welcome, past) = (Box::new(welcome), self.session.past());
                    *self.known_past.lock().unwrap_or_else(PoisonError::into_inner) = past;
                    self.tell(Command::Started { welcome, past, resumed });
                }
                AgentAction::ResyncNeeded(reason) => {
                    tracing::warn!(%reason, "the log begins anew");
                    let machine = self.identity.name.as_str();
                    self.audit.note(None, "resync", machine, "begun", Some(reason));
                    self.waiting = None;
                    self.tell(Command::Resync);
                }
                AgentAction::Refused(refusal) => self.refused(&refusal),
                AgentAction::Ended(refusal) => self.ended = Some(AgentError::Refused(refusal)),
                AgentAction::Deliver(message) => self.deliver(message),
                AgentAction::WakeAt(at) => {
                    self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
                }
            }
        }
    }

    fn refused(&mut self, refusal: &Refusal) {
        tracing::warn!(%refusal, "refused");
        self.shared.link.refused(refusal.to_string());
        if refusal.code == RefusalCode::Unprotected && self.shared.link.removed() {
            tracing::error!(
                "the target protects this machine no more: `redoubt unprotect` removes the \
                 tracker, and a new token of `redoubt invite` with a new state directory protects \
                 it again"
            );
            let machine = self.identity.name.as_str();
            self.audit.note(None, "unprotect", machine, "done", Some(refusal.to_string()));
        }
    }

    fn release(&mut self, sequence: Sequence) {
        self.shared.acknowledged.store(sequence.0, Ordering::Release);
        if let Some(sealed) = self.waiting.take() {
            self.push(sealed);
        }
    }

    fn deliver(&mut self, message: TargetMessage) {
        match message {
            TargetMessage::Mark { request, label, application_consistent } => {
                let answers = self.marks.0.clone();
                let kind = match application_consistent {
                    true => PointKind::ApplicationConsistent,
                    false => PointKind::CrashConsistent,
                };
                let reply = Box::new(move |result| {
                    // The driver has gone only when the agent ends.
                    let _ = answers.send(TargetMark { request, result });
                });
                let deadline = Instant::now() + MARK_PATIENCE;
                self.tell(Command::Mark(MarkRequest { label, kind, deadline, reply }));
            }
            TargetMessage::Pause(word) => {
                self.tell(Command::Pause(PauseOrder::Heard(word), Box::new(|_| {})));
            }
            TargetMessage::Unprotect { disks } => {
                self.tell(Command::Unprotect(Which::Told(disks), Box::new(|_| {})));
            }
            TargetMessage::Full { reason } => self.shared.link.full(Some(reason)),
            TargetMessage::Room => self.shared.link.full(None),
            TargetMessage::Standstill { disks } => {
                for still in &disks {
                    let (disk, reason) = (still.index, &still.reason);
                    tracing::warn!(%disk, %reason, "the target's replica stands still");
                }
                self.shared.link.standstill(disks);
            }
            TargetMessage::Applied { sequence } => {
                self.shared.applied.store(sequence.0, Ordering::Release);
            }
            TargetMessage::Points { request, points, more } => {
                let next = self.pending.points(request, points, more);
                next.into_iter().for_each(|message| self.handle(AgentEvent::Say(message)));
            }
            TargetMessage::PointOpened { request, result } => {
                self.pending.opened(request, result);
            }
            TargetMessage::Checked { request, result } => self.pending.checked(request, result),
            TargetMessage::Verify { request, disk } => self.verify(request, disk),
            TargetMessage::GiveUpVerify { request } => {
                if let Some(given_up) = self.verifies.remove(&request) {
                    given_up.store(true, Ordering::Release);
                }
            }
            // The session itself has dealt with these.
            TargetMessage::Welcome(_)
            | TargetMessage::Refused(_)
            | TargetMessage::Durable { .. }
            | TargetMessage::Confirm => {}
        }
    }

    fn verify(&mut self, request: RequestId, disk: Option<DiskIndex>) {
        let answers = self.verified.0.clone();
        let tell = Box::new(move |event| {
            let message = match event {
                VerifyEvent::Progress(done_bytes, total_bytes) => {
                    AgentMessage::VerifyProgress { request, done_bytes, total_bytes }
                }
                VerifyEvent::Ended(result) => AgentMessage::Verified { request, result },
            };
            // The driver has gone only when the agent ends.
            let _ = answers.send(message);
        });
        let given_up = Arc::new(AtomicBool::new(false));
        self.verifies.insert(request, given_up.clone());
        self.tell(Command::Verify(VerifyRequest { disk, tell, given_up }));
    }

    fn asked(&mut self, ask: Ask) {
        if !self.session.is_streaming() {
            ask.fail("the target cannot be reached now: `redoubt status` says why");
            return;
        }
        if let Some(message) = self.pending.ask(ask) {
            self.handle(AgentEvent::Say(message));
        }
    }

    fn report(&mut self) {
        self.pending.forget_given_up();
        if self.session.is_streaming() {
            let acknowledged = Sequence(self.shared.acknowledged.load(Ordering::Acquire));
            let link = self.shared.link.get();
            let report = self.shared.snapshot.lock().report(acknowledged, &link, Instant::now());
            self.handle(AgentEvent::Say(AgentMessage::Report(report)));
        }
    }

    /// The connection, if it is the present one: it counts no more, and nothing is answered over
    /// it.
    fn take_link(&mut self, id: ConnectionId) -> Option<Link> {
        let link = self.link.take_if(|link| link.id() == id)?;
        self.shared.link.ended();
        self.pending.fail_all("the connection to the target has ended");
        self.verifies.drain().for_each(|(_, given_up)| given_up.store(true, Ordering::Release));
        Some(link)
    }

    fn tell(&self, command: Command) {
        // The owner has gone only when the agent ends.
        let _ = self.owner.send(command);
    }
}
