//! The agent's end of the session: connects for ever, resumes where the target is, sends each frame
//! until it is durable there. Pure: events and `now` in, actions out; it never opens a socket or
//! reads a clock.
//!
//! One run of the agent has one incarnation, which the target hands out at the first welcome. A
//! reconnect of the same run shows its [`RunId`] and the incarnation it holds, and gets the same
//! one again, so that frames sealed before the cut stay valid. The end of the run is the end of its
//! unacknowledged frames.

use crate::backoff::Backoff;
use crate::frame_place::{ConnectionId, FramePlace};
use crate::message::{
    AgentMessage, DiskDescription, Hello, PROTOCOL_VERSION, Refusal, RefusalCode, RunId,
    TargetMessage, Welcome,
};
use crate::window::{Window, WindowLimits};
use redoubt_log::{Generation, Incarnation, MachineId, RoleEpoch, Sequence};
use std::time::{Duration, Instant};

/// Streams that frames are spread over: the loss of a packet holds up one of them, and more buy
/// nothing.
pub const FRAME_STREAMS: usize = 3;

/// How long a target may take to answer a hello: it syncs its journal and a small file.
pub const WELCOME_TIMEOUT: Duration = Duration::from_secs(30);

/// What does not change during a run but for the disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSelf {
    /// The machine of the certificate.
    pub machine: MachineId,
    /// This run.
    pub run: RunId,
    /// The agent's build.
    pub agent_version: String,
    /// The machine's host name.
    pub host_name: String,
    /// The disks to protect.
    pub disks: Vec<DiskDescription>,
}

/// What the agent remembers from run to run. It must be stored before anything rests on it: a new
/// one before the first frame under it is sealed, `acknowledged` before an epoch up to it is
/// dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentPast {
    /// The log.
    pub generation: Option<Generation>,
    /// The newest incarnation that was given to this agent.
    pub incarnation: Option<Incarnation>,
    /// Its side.
    pub role_epoch: RoleEpoch,
    /// The newest position of the generation that was durable.
    pub acknowledged: Sequence,
}

/// What happens to the agent's session.
#[derive(Debug)]
pub enum AgentEvent {
    /// Time has passed; due at each [`AgentAction::WakeAt`], harmless at any other time.
    Tick,
    /// The connection stands.
    Connected(ConnectionId),
    /// The target said something.
    Received(ConnectionId, TargetMessage),
    /// The connection ended or never stood.
    Disconnected(ConnectionId),
    /// The agent wants to say something; lost where there is no session.
    Say(AgentMessage),
    /// Disks were added or taken away; the session starts again to say so.
    DisksChanged(Vec<DiskDescription>),
}

/// What is to be done for the agent's session, in this order.
#[derive(Debug)]
pub enum AgentAction<F> {
    /// Open a connection; answered by `Connected` or `Disconnected`.
    Connect(ConnectionId),
    /// Close the connection; `Disconnected` need not follow.
    Close(ConnectionId, String),
    /// Put a message on the control stream.
    SendMessage(ConnectionId, AgentMessage),
    /// Put a frame on a frame stream (below [`FRAME_STREAMS`]).
    SendFrame {
        /// The connection.
        connection: ConnectionId,
        /// Which stream.
        stream: usize,
        /// Where it stands.
        place: FramePlace,
        /// The frame.
        frame: F,
    },
    /// Everything up to here is durable at the target.
    Release(Sequence),
    /// The session stands: store the past, then seal frames with these terms, the first one's
    /// `previous` being the end of the log: the sealed end if `resumed`, else `welcome.resume`.
    Started {
        /// The terms.
        welcome: Welcome,
        /// Whether the frames sealed earlier in this run are still on their way. If not, they are
        /// gone, and what lies after `welcome.resume` is to be sent anew from the bitmap.
        resumed: bool,
    },
    /// Continuity is lost: seal nothing until `Started`, and send every disk anew, by hash where it
    /// pays.
    ResyncNeeded(String),
    /// The target takes nothing from us; it is asked again later.
    Refused(Refusal),
    /// The session is over for good: another run of the agent has taken its place, or the machine's
    /// name is another's. The process ends.
    Ended(Refusal),
    /// What the target said that does not concern the session.
    Deliver(TargetMessage),
    /// Tick then.
    WakeAt(Instant),
}

/// A frame that was not taken, given back.
#[derive(Debug, PartialEq, Eq)]
pub enum NotTaken<F> {
    /// The window is full: seal no more until `Release`.
    Full(F),
    /// The frame belongs to a log or run that is over: drop it.
    Stale(F),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting { until: Instant },
    Connecting { connection: ConnectionId },
    Greeting { connection: ConnectionId, until: Instant },
    Streaming { connection: ConnectionId, most: usize, stream: usize },
    Ended,
}

/// The agent's end of the session.
pub struct AgentSession<F> {
    me: AgentSelf,
    past: AgentPast,
    /// Whether `past.incarnation` was given to this run.
    held: bool,
    /// Why a new generation is asked for.
    wanted: Option<String>,
    window: Window<F>,
    backoff: Backoff,
    connections: u64,
    state: State,
}

type Actions<F> = Vec<AgentAction<F>>;

impl<F: Clone> AgentSession<F> {
    /// A session that connects at the first tick. The seed only spreads retries.
    pub fn new(
        me: AgentSelf,
        past: AgentPast,
        limits: WindowLimits,
        seed: u64,
        now: Instant,
    ) -> Self {
        let window = Window::new(limits);
        let backoff = Backoff::new(seed);
        let state = State::Waiting { until: now };
        Self { me, past, held: false, wanted: None, window, backoff, connections: 0, state }
    }

    /// What the next hello tells of the disks; a session that stands goes on.
    pub fn set_disks(&mut self, disks: Vec<DiskDescription>) {
        self.me.disks = disks;
    }

    /// What is to be stored; compare after each call, see [`AgentPast`].
    pub fn past(&self) -> AgentPast {
        self.past
    }

    /// The last sealed record.
    pub fn end(&self) -> Sequence {
        self.window.end()
    }

    /// Bytes of sealed frames that are not durable.
    pub fn window_bytes(&self) -> usize {
        self.window.bytes()
    }

    /// Whether frames go out now.
    pub fn is_streaming(&self) -> bool {
        matches!(self.state, State::Streaming { .. })
    }

    /// Whether a frame of this size would be taken.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.held && self.wanted.is_none() && self.window.has_room(bytes)
    }

    /// Takes a sealed frame, which continues the log, and sends it as soon as it can be.
    pub fn push(&mut self, place: FramePlace, frame: F) -> Result<Actions<F>, NotTaken<F>> {
        let present = self.held
            && self.wanted.is_none()
            && self.past.generation == Some(place.generation)
            && self.past.incarnation == Some(place.incarnation)
            && self.past.role_epoch == place.role_epoch;
        if !present {
            return Err(NotTaken::Stale(frame));
        }
        if !self.window.has_room(place.bytes) {
            return Err(NotTaken::Full(frame));
        }
        self.window.push(place, frame);
        let mut actions = Vec::new();
        self.send_frames(&mut actions);
        Ok(actions)
    }

    /// Takes an event.
    pub fn handle(&mut self, event: AgentEvent, now: Instant) -> Actions<F> {
        let mut actions = Vec::new();
        match event {
            AgentEvent::Tick => self.tick(now, &mut actions),
            AgentEvent::Connected(connection) => self.connected(connection, now, &mut actions),
            AgentEvent::Received(connection, message) => {
                if self.connection() == Some(connection) {
                    self.received(connection, message, now, &mut actions);
                }
            }
            AgentEvent::Disconnected(connection) => {
                if self.connection() == Some(connection) {
                    self.wait(now, &mut actions);
                }
            }
            AgentEvent::Say(message) => {
                if let State::Streaming { connection, .. } = self.state {
                    actions.push(AgentAction::SendMessage(connection, message));
                }
            }
            AgentEvent::DisksChanged(disks) => {
                self.me.disks = disks;
                self.start_again("the disks changed", now, &mut actions);
            }
        }
        actions
    }

    fn connection(&self) -> Option<ConnectionId> {
        match self.state {
            State::Connecting { connection }
            | State::Greeting { connection, .. }
            | State::Streaming { connection, .. } => Some(connection),
            State::Waiting { .. } | State::Ended => None,
        }
    }

    fn tick(&mut self, now: Instant, actions: &mut Actions<F>) {
        match self.state {
            State::Waiting { until } if until <= now => {
                self.connections += 1;
                let connection = ConnectionId(self.connections);
                self.state = State::Connecting { connection };
                actions.push(AgentAction::Connect(connection));
            }
            State::Greeting { connection, until } if until <= now => {
                self.close(connection, "the target did not answer the hello", actions);
                self.wait(now, actions);
            }
            State::Waiting { until } | State::Greeting { until, .. } => {
                actions.push(AgentAction::WakeAt(until));
            }
            State::Connecting { .. } | State::Streaming { .. } | State::Ended => {}
        }
    }

    fn connected(&mut self, connection: ConnectionId, now: Instant, actions: &mut Actions<F>) {
        if self.state != (State::Connecting { connection }) {
            self.close(connection, "not the connection that is wanted", actions);
            return;
        }
        let until = now + WELCOME_TIMEOUT;
        self.state = State::Greeting { connection, until };
        actions.push(AgentAction::SendMessage(connection, self.hello()));
        actions.push(AgentAction::WakeAt(until));
    }

    fn hello(&self) -> AgentMessage {
        let continued = self.past.generation.filter(|_| self.wanted.is_none());
        AgentMessage::Hello(Box::new(Hello {
            protocol_version: PROTOCOL_VERSION,
            machine: self.me.machine,
            generation: continued,
            run: self.me.run,
            held: self.past.incarnation.filter(|_| self.held),
            last_incarnation: self.past.incarnation,
            role_epoch: self.past.role_epoch,
            acknowledged: continued.map_or(Sequence(0), |_| self.past.acknowledged),
            resync: self.wanted.clone(),
            disks: self.me.disks.clone(),
            agent_version: self.me.agent_version.clone(),
            host_name: self.me.host_name.clone(),
        }))
    }

    fn received(
        &mut self,
        connection: ConnectionId,
        message: TargetMessage,
        now: Instant,
        actions: &mut Actions<F>,
    ) {
        match (self.state, message) {
            (_, TargetMessage::Refused(refusal)) => self.refused(refusal, now, actions),
            (State::Greeting { .. }, TargetMessage::Confirm) => {
                actions.push(AgentAction::SendMessage(connection, AgentMessage::Confirmed));
            }
            (State::Greeting { .. }, TargetMessage::Welcome(welcome)) => {
                self.welcomed(connection, welcome, now, actions);
            }
            (State::Streaming { .. }, TargetMessage::Durable { sequence }) => {
                self.durable(sequence, now, actions);
            }
            (State::Streaming { .. }, TargetMessage::Welcome(_) | TargetMessage::Confirm) => {
                self.start_again("the target spoke out of turn", now, actions);
            }
            (State::Streaming { .. }, message) => actions.push(AgentAction::Deliver(message)),
            _ => self.start_again("the target spoke out of turn", now, actions),
        }
    }

    fn refused(&mut self, refusal: Refusal, now: Instant, actions: &mut Actions<F>) {
        let is_for_good = match refusal.code {
            RefusalCode::NewerIncarnation => self.held,
            // Only an operator can give it another.
            RefusalCode::NameTaken => true,
            _ => false,
        };
        if is_for_good {
            self.state = State::Ended;
            self.held = false;
            actions.push(AgentAction::Ended(refusal));
            return;
        }
        if !matches!(refusal.code, RefusalCode::NotReady) {
            self.backoff.give_time();
        }
        actions.push(AgentAction::Refused(refusal));
        self.wait(now, actions);
    }

    fn welcomed(
        &mut self,
        connection: ConnectionId,
        welcome: Welcome,
        now: Instant,
        actions: &mut Actions<F>,
    ) {
        let continued = self.wanted.is_none() && self.past.generation == Some(welcome.generation);
        let resumed = continued && self.held && self.past.incarnation == Some(welcome.incarnation);
        if continued && let Some(reason) = self.discontinuity(&welcome, resumed) {
            self.wanted = Some(reason.clone());
            self.window.restart(Sequence(0));
            actions.push(AgentAction::ResyncNeeded(reason.clone()));
            self.start_again(&reason, now, actions);
            return;
        }
        let first = self.past.generation.is_none() && self.wanted.is_none();
        if !continued && (!first || welcome.resync.is_some()) {
            let reason = welcome.resync.clone().or(self.wanted.take());
            let reason = reason.unwrap_or_else(|| "the target began a new log".to_owned());
            actions.push(AgentAction::ResyncNeeded(reason));
        }
        self.wanted = None;
        self.held = true;
        self.past = AgentPast {
            generation: Some(welcome.generation),
            incarnation: Some(welcome.incarnation),
            role_epoch: welcome.role_epoch,
            acknowledged: welcome.resume,
        };
        if resumed {
            self.window.release(welcome.resume);
            self.window.rewind();
        } else {
            self.window.restart(welcome.resume);
        }
        self.backoff.reset();
        // A window of no frames would never move: one is the least that makes a session.
        let most = (welcome.window_frames as usize).max(1);
        self.state = State::Streaming { connection, most, stream: 0 };
        let resume = welcome.resume;
        actions.push(AgentAction::Started { welcome, resumed });
        actions.push(AgentAction::Release(resume));
        self.send_frames(actions);
    }

    /// Why the log cannot go on from where the target says it is, if it cannot.
    fn discontinuity(&self, welcome: &Welcome, resumed: bool) -> Option<String> {
        let (resume, acknowledged) = (welcome.resume, self.past.acknowledged);
        if resume < acknowledged {
            return Some(format!(
                "the target has the log up to {resume}, but had acknowledged {acknowledged}: \
                 it was restored or rolled back"
            ));
        }
        if resumed && !self.window.can_follow(resume) {
            return Some(format!(
                "the target has the log up to {resume}, where none of our frames ends"
            ));
        }
        None
    }

    fn durable(&mut self, sequence: Sequence, now: Instant, actions: &mut Actions<F>) {
        if sequence > self.window.end() {
            self.start_again("the target acknowledged what was never sent", now, actions);
            return;
        }
        if sequence > self.past.acknowledged {
            self.past.acknowledged = sequence;
            self.window.release(sequence);
            actions.push(AgentAction::Release(sequence));
            self.send_frames(actions);
        }
    }

    fn send_frames(&mut self, actions: &mut Actions<F>) {
        let State::Streaming { connection, most, stream } = &mut self.state else { return };
        while let Some((place, frame)) = self.window.send_next(*most) {
            let (connection, chosen) = (*connection, *stream);
            actions.push(AgentAction::SendFrame { connection, stream: chosen, place, frame });
            *stream = (chosen + 1) % FRAME_STREAMS;
        }
    }

    /// Gives the present connection up, if there is one, and connects anew after a wait.
    fn start_again(&mut self, reason: &str, now: Instant, actions: &mut Actions<F>) {
        if let Some(connection) = self.connection() {
            self.close(connection, reason, actions);
            self.wait(now, actions);
        }
    }

    fn close(&self, connection: ConnectionId, reason: &str, actions: &mut Actions<F>) {
        actions.push(AgentAction::Close(connection, reason.to_owned()));
    }

    fn wait(&mut self, now: Instant, actions: &mut Actions<F>) {
        let until = now + self.backoff.next();
        self.state = State::Waiting { until };
        actions.push(AgentAction::WakeAt(until));
    }
}

#[cfg(test)]
mod tests;
