//! The task that owns one machine's session: it drives the session's state machine and passes on
//! what does not concern it. It never touches a disk, nor a lock that is held over one: all
//! machines' tasks share a thread.

use super::arrivals::Terms;
use super::connection::Link;
use super::journal::{Fence, Job};
use super::points::{PointRequest, send_page, send_point};
use super::protected::{MachineEnds, Protected, Said};
use super::{checks, report, verify};
use crate::store::{Admitted, DiskSpec, HelloAnswer, StoreError};
use crossbeam::channel::Sender;
use redoubt_engine::buffer::AlignedBuffer;
use redoubt_log::Sequence;
use redoubt_protocol::message::{Hello, KnownDisk, Refusal, RefusalCode, RequestId, Welcome};
use redoubt_protocol::target_session::{Admission, Continuity};
use redoubt_protocol::{
    AgentMessage, ConnectionId, TargetAction, TargetEvent, TargetMessage, TargetSession,
};
use redoubt_transport::DEFAULT_WINDOW_FRAMES;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// What happens to a machine.
pub(super) enum MachineEvent {
    /// A connection stands; it has said nothing yet.
    Arrived(ConnectionId, Link),
    /// Of its sessions.
    Session(TargetEvent<AlignedBuffer>),
    /// The store has answered an admission.
    Fenced(ConnectionId, Result<Box<Welcome>, Refusal>),
    /// Everything up to here is durable.
    Durable(Sequence),
    /// The replica disks hold everything up to here.
    Applied(Sequence),
    /// There is no room, or there is again.
    Full(Option<String>),
    /// The journal did not take a frame.
    Failed(String),
    /// An operator has something to say to the agent.
    Say(TargetMessage),
    /// The machine is removed: nobody asks it anything any more.
    End,
}

/// The task.
pub(super) struct MachineTask {
    machine: Arc<Protected>,
    events: mpsc::Receiver<MachineEvent>,
    journal: Sender<Job>,
    terms: Terms,
    session: TargetSession<AlignedBuffer>,
    /// The session's, the one that may follow it, and the one that has just come: the session
    /// closes all others.
    links: HashMap<ConnectionId, Link>,
    /// The one that hears its last word.
    closing: Option<AbortHandle>,
}

impl MachineTask {
    /// A machine as the store left it, with nobody connected.
    pub fn new(ends: MachineEnds, terms: Terms) -> Self {
        let MachineEnds { machine, past: (past, durable), events, journal } = ends;
        let session = TargetSession::new(machine.id, past, durable);
        Self { machine, events, journal, terms, session, links: HashMap::new(), closing: None }
    }

    /// Runs as long as anybody can tell it anything.
    pub async fn run(mut self) {
        while let Some(event) = self.events.recv().await {
            if matches!(event, MachineEvent::End) {
                return;
            }
            self.take(event);
        }
    }

    fn take(&mut self, event: MachineEvent) {
        match event {
            MachineEvent::Arrived(id, link) => {
                self.links.insert(id, link);
                self.handle(TargetEvent::Arrived(id));
            }
            MachineEvent::Session(event) => {
                let ended = match &event {
                    TargetEvent::Disconnected(id) => Some(*id),
                    _ => None,
                };
                self.handle(event);
                ended.map(|id| self.links.remove(&id));
            }
            MachineEvent::Fenced(id, Ok(welcome)) => self.handle(TargetEvent::Fenced(id, *welcome)),
            MachineEvent::Fenced(id, Err(no)) => self.handle(TargetEvent::NotFenced(id, no)),
            MachineEvent::Durable(sequence) => self.handle(TargetEvent::Durable(sequence)),
            MachineEvent::Applied(sequence) => self.say(TargetMessage::Applied { sequence }),
            MachineEvent::Full(Some(reason)) => self.say(TargetMessage::Full { reason }),
            MachineEvent::Full(None) => self.say(TargetMessage::Room),
            MachineEvent::Failed(text) => {
                let text = format!("the store does not take it: {text}");
                self.handle(TargetEvent::Refuse(Refusal { code: RefusalCode::NotReady, text }));
            }
            MachineEvent::Say(message) => self.say(message),
            // The loop has ended before.
            MachineEvent::End => {}
        }
    }

    fn say(&mut self, message: TargetMessage) {
        self.handle(TargetEvent::Say(message));
    }

    fn handle(&mut self, event: TargetEvent<AlignedBuffer>) {
        for action in self.session.handle(event) {
            match action {
                TargetAction::Fence(id, hello, admission) => self.fence(id, &hello, &admission),
                TargetAction::Send(id, message) => {
                    if let Some(link) = self.links.get(&id) {
                        if matches!(message, TargetMessage::Welcome(_)) {
                            link.handle.trust();
                        }
                        link.say(message);
                    }
                }
                TargetAction::Close(id, reason) => {
                    if let Some(link) = self.links.remove(&id) {
                        let machine = &self.machine.name;
                        tracing::info!(%machine, %reason, "closing a connection");
                        let closing = self.closing.replace(link.close(reason));
                        closing.inspect(AbortHandle::abort);
                    }
                }
                TargetAction::Append(_, entry) => {
                    // A journal's thread that has failed has said so already.
                    let _ = self.journal.send(Job::Append(entry));
                }
                TargetAction::Deliver(message) => self.deliver(message),
                TargetAction::Online(online) => self.online(online),
            }
        }
    }

    /// The store fences older runs, on the journal's thread, behind everything appended before.
    fn fence(&self, id: ConnectionId, hello: &Hello, admission: &Admission) {
        let resync = match &admission.continuity {
            Continuity::Lost(reason) => Some(reason.clone()),
            Continuity::First | Continuity::Goes(_) => None,
        };
        let fence = Fence {
            admitted: Admitted { incarnation: admission.incarnation, run: admission.run.0 },
            new_generation: matches!(admission.continuity, Continuity::Lost(_)),
            resync: resync.clone(),
            first: hello.generation.is_none() && hello.last_incarnation.is_none(),
            disks: disks_of(hello),
        };
        let (reply, answer) = tokio::sync::oneshot::channel();
        // A failed send gives the job back: dropped here, it ends the wait for its answer.
        drop(self.journal.send(Job::Fence(fence, reply)));
        let (machine, terms) = (self.machine.clone(), self.terms);
        tokio::spawn(async move {
            let answered = match answer.await {
                Ok(Ok(answer)) => Ok(Box::new(welcome(&machine, terms, answer, resync))),
                Ok(Err(error)) => Err(refusal_of(&error)),
                Err(_) => Err(Refusal {
                    code: RefusalCode::NotReady,
                    text: "the target is stopping".to_owned(),
                }),
            };
            // The task ends only with the process.
            let _ = machine.events.send(MachineEvent::Fenced(id, answered)).await;
        });
    }

    fn deliver(&mut self, message: AgentMessage) {
        match message {
            AgentMessage::Report(report) => {
                let said = Said { at: Instant::now(), report: report::bounded(report) };
                self.machine.live().said = Some(said);
            }
            AgentMessage::Marked { request, result } => {
                if let Some(reply) = self.machine.live().marks.remove(&request) {
                    // Who asked may have gone.
                    let _ = reply.send(result);
                }
            }
            AgentMessage::ListPoints { request, after } => self.list_points(request, after),
            AgentMessage::ReadPoint { request, disk, point } => {
                if let Some(link) = self.session.streaming().and_then(|id| self.links.get(&id)) {
                    let asked = PointRequest { request, disk, point };
                    tokio::spawn(send_point(
                        self.machine.clone(),
                        asked,
                        link.handle.clone(),
                        link.speaker(),
                    ));
                }
            }
            AgentMessage::Check { request, check } => {
                if let Some(link) = self.session.streaming().and_then(|id| self.links.get(&id)) {
                    let machine = self.machine.clone();
                    tokio::spawn(checks::answer(machine, request, check, link.speaker()));
                }
            }
            AgentMessage::VerifyProgress { request, done_bytes, total_bytes } => {
                let news = verify::News::Progress(done_bytes, total_bytes);
                verify::heard(&self.machine, request, news);
            }
            AgentMessage::Verified { request, result } => {
                verify::heard(&self.machine, request, verify::News::Ended(result));
            }
            AgentMessage::Goodbye { reason } => {
                tracing::info!(machine = %self.machine.name, %reason, "the agent says goodbye");
                self.machine.live().connected = None;
            }
            AgentMessage::Pause(word) => {
                if self.machine.pause_word.put(word) {
                    // A journal's thread that has failed has said so already.
                    let _ = self.journal.send(Job::Pause);
                }
            }
            // The session itself has dealt with these.
            AgentMessage::Hello(_) | AgentMessage::Confirmed => {}
        }
    }

    fn list_points(&mut self, request: RequestId, after: Sequence) {
        let Some(link) = self.session.streaming().and_then(|id| self.links.get(&id)) else {
            return;
        };
        if let Some(turn) = link.list_turn() {
            let (machine, say) = (self.machine.clone(), link.speaker());
            tokio::spawn(send_page(machine, request, after, say, turn));
            return;
        }
        let text = "a second list of points was asked for before the first was heard".to_owned();
        self.handle(TargetEvent::Refuse(Refusal { code: RefusalCode::Malformed, text }));
    }

    fn online(&mut self, online: bool) {
        let disks = self.machine.ended();
        if online && !disks.is_empty() {
            // Once more: what was said before the welcome was lost, and this changes nothing where
            // the welcome said it too.
            self.say(TargetMessage::Unprotect { disks });
        }
        let disks = self.machine.live().standstill.clone();
        if online && !disks.is_empty() {
            self.say(TargetMessage::Standstill { disks });
        }
        tracing::info!(machine = %self.machine.name, online, "session");
        let mut live = self.machine.live();
        live.connected = online.then(Instant::now);
        live.sessions += u64::from(online);
        live.told_pause = None;
        if !online {
            let gone = || Err("the agent's connection has ended".to_owned());
            live.marks.drain().for_each(|(_, reply)| drop(reply.send(gone())));
            let ended = |why| verify::News::Ended(Err(why));
            let gone = || "the agent's connection has ended: ask again once it is back".to_owned();
            live.verifies.drain().for_each(|(_, to)| drop(to.send(ended(gone()))));
        }
    }
}

fn disks_of(hello: &Hello) -> Vec<DiskSpec> {
    let spec = |disk: &redoubt_protocol::message::DiskDescription| DiskSpec {
        index: disk.index,
        name: disk.name.as_str().to_owned(),
        size: disk.size_bytes,
        logical_block_size: disk.logical_block_bytes,
    };
    hello.disks.iter().map(spec).collect()
}

fn welcome(
    machine: &Protected,
    terms: Terms,
    answer: HelloAnswer,
    resync: Option<String>,
) -> Welcome {
    let interval = terms.point_interval.as_millis();
    let known = |disk: &crate::store::DiskStatus| KnownDisk {
        index: disk.index,
        size_bytes: disk.size,
        has_data: disk.has_data,
        consistent: disk.consistent,
        ended: !disk.protection.is_active(),
    };
    Welcome {
        generation: answer.generation,
        incarnation: answer.incarnation,
        resume: answer.resume,
        role_epoch: answer.role_epoch,
        point_interval_milliseconds: u64::try_from(interval).unwrap_or(u64::MAX),
        window_frames: DEFAULT_WINDOW_FRAMES,
        disks: answer.disks.iter().map(known).collect(),
        resync,
        pause: answer.pause,
        full: machine.live().full.clone(),
    }
}

pub(super) fn refusal_of(error: &StoreError) -> Refusal {
    let code = if error.is_full() { RefusalCode::TargetFull } else { RefusalCode::NotReady };
    Refusal { code, text: error.to_string() }
}

#[cfg(test)]
mod tests;
