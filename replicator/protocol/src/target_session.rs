//! The target's end of one machine's sessions: admits one connection, fences all older runs, puts
//! frames in order. Pure: events in, actions out; it never opens a socket, a file, or a frame.
//!
//! Order of an admission: hello → confirm → confirmed (the sender lives: a dead run's hello fences
//! nobody) → `Fence` (the driver stores the new incarnation, and sees to it that nothing appended
//! earlier becomes durable any more) → `Fenced` with the durable position → welcome.

mod admission;
mod reorder;

pub use admission::{Admission, Continuity, TargetPast};

use crate::frame_place::{ConnectionId, FramePlace};
use crate::message::{AgentMessage, Hello, Refusal, RefusalCode, TargetMessage, Welcome};
use redoubt_log::{MachineId, Sequence};
use reorder::{Placed, Reorder};

/// What happens to a machine's sessions.
#[derive(Debug)]
pub enum TargetEvent<F> {
    /// A connection of an agent whose certificate is this machine's stands; it has said nothing
    /// yet.
    Arrived(ConnectionId),
    /// The agent of a connection said something.
    Received(ConnectionId, AgentMessage),
    /// A frame came whole, its checksum and MAC right.
    Frame(ConnectionId, FramePlace, F),
    /// Bytes came on a frame stream that are no frame of this machine; the text says what is wrong.
    BadFrame(ConnectionId, String),
    /// Answer to `Fence`: the admission is stored, everything appended before is durable up to
    /// `welcome.resume` or will never be.
    Fenced(ConnectionId, Welcome),
    /// Answer to `Fence` where the machine cannot be admitted (unprotected, no space).
    NotFenced(ConnectionId, Refusal),
    /// Everything appended up to here is durable.
    Durable(Sequence),
    /// To be said to the agent; lost where there is no session (a welcome states what lasts).
    Say(TargetMessage),
    /// The machine may not be connected any more (unprotected, failed over).
    Refuse(Refusal),
    /// The connection ended.
    Disconnected(ConnectionId),
}

/// What is to be done for a machine's sessions, in this order.
#[derive(Debug)]
pub enum TargetAction<F> {
    /// Store what is admitted, then answer `Fenced` or `NotFenced`.
    Fence(ConnectionId, Box<Hello>, Admission),
    /// Put a message on the control stream.
    Send(ConnectionId, TargetMessage),
    /// Close the connection once what was sent to it has gone out.
    Close(ConnectionId, String),
    /// Append the frame to the journal: it continues the log.
    Append(FramePlace, F),
    /// What the agent said that does not concern the session.
    Deliver(AgentMessage),
    /// The agent is connected, or no longer.
    Online(bool),
}

enum State {
    Offline,
    Fencing { connection: ConnectionId },
    Streaming { connection: ConnectionId, order: Reorder },
}

/// The target's end of one machine's sessions.
pub struct TargetSession<F> {
    machine: MachineId,
    past: TargetPast,
    durable: Sequence,
    state: State,
    /// Who came last and has said nothing yet.
    newcomer: Option<ConnectionId>,
    /// Who said hello last and has not confirmed it; the present session goes on meanwhile.
    candidate: Option<(ConnectionId, Box<Hello>)>,
    waiting: reorder::Waiting<F>,
}

type Actions<F> = Vec<TargetAction<F>>;

impl<F> TargetSession<F> {
    /// A machine as the store left it, with nobody connected.
    pub fn new(machine: MachineId, past: TargetPast, durable: Sequence) -> Self {
        let waiting = reorder::Waiting::default();
        let state = State::Offline;
        Self { machine, past, durable, state, newcomer: None, candidate: None, waiting }
    }

    /// The connection whose frames are taken, if there is one.
    pub fn streaming(&self) -> Option<ConnectionId> {
        match self.state {
            State::Streaming { connection, .. } => Some(connection),
            _ => None,
        }
    }

    /// The newest admission.
    pub fn past(&self) -> TargetPast {
        self.past
    }

    /// The side that may write has changed, e.g. by a failover: what the old side sends is refused
    /// from here on.
    pub fn set_role_epoch(&mut self, role_epoch: redoubt_log::RoleEpoch) {
        self.past.role_epoch = role_epoch;
    }

    /// Takes an event.
    pub fn handle(&mut self, event: TargetEvent<F>) -> Actions<F> {
        let mut actions = Vec::new();
        match event {
            TargetEvent::Arrived(connection) => {
                if let Some(former) = self.newcomer.replace(connection) {
                    close_for_newer(former, &mut actions);
                }
            }
            TargetEvent::Received(connection, message) => {
                self.received(connection, message, &mut actions);
            }
            TargetEvent::Frame(connection, place, frame) => {
                self.frame(connection, place, frame, &mut actions);
            }
            TargetEvent::BadFrame(connection, text) => {
                if self.connection() == Some(connection) {
                    self.drop_session(RefusalCode::Malformed, text, &mut actions);
                }
            }
            TargetEvent::Fenced(connection, welcome) => {
                self.fenced(connection, welcome, &mut actions);
            }
            TargetEvent::NotFenced(connection, refusal) => {
                if matches!(self.state, State::Fencing { connection: ours } if ours == connection) {
                    self.drop_session(refusal.code, refusal.text, &mut actions);
                }
            }
            TargetEvent::Durable(sequence) => self.became_durable(sequence, &mut actions),
            TargetEvent::Say(message) => {
                if let State::Streaming { connection, .. } = self.state {
                    actions.push(TargetAction::Send(connection, message));
                }
            }
            TargetEvent::Refuse(refusal) => {
                self.drop_session(refusal.code, refusal.text, &mut actions);
            }
            TargetEvent::Disconnected(connection) => {
                self.newcomer.take_if(|theirs| *theirs == connection);
                self.candidate.take_if(|(theirs, _)| *theirs == connection);
                if self.connection() == Some(connection) {
                    self.go_offline(&mut actions);
                }
            }
        }
        actions
    }

    fn connection(&self) -> Option<ConnectionId> {
        match self.state {
            State::Offline => None,
            State::Fencing { connection } | State::Streaming { connection, .. } => Some(connection),
        }
    }

    fn received(
        &mut self,
        connection: ConnectionId,
        message: AgentMessage,
        actions: &mut Actions<F>,
    ) {
        let ours = self.connection() == Some(connection);
        match message {
            AgentMessage::Hello(hello) if !ours => self.hello(connection, hello, actions),
            AgentMessage::Hello(_) => {
                let text = "a second hello on one connection".to_owned();
                self.drop_session(RefusalCode::Malformed, text, actions);
            }
            AgentMessage::Confirmed if !ours => self.confirmed(connection, actions),
            // A connection that was replaced has nothing to say any more.
            _ if !ours => {}
            message if self.streaming().is_some() => actions.push(TargetAction::Deliver(message)),
            _ => {
                let text = "a message before the welcome".to_owned();
                self.drop_session(RefusalCode::Malformed, text, actions);
            }
        }
    }

    fn hello(&mut self, connection: ConnectionId, hello: Box<Hello>, actions: &mut Actions<F>) {
        // A connection that a newer one has replaced has nothing to say any more.
        if self.newcomer.take_if(|theirs| *theirs == connection).is_none() {
            return;
        }
        match self.past.admit(self.machine, &hello, self.durable) {
            Ok(_) => {
                if let Some((former, _)) = self.candidate.replace((connection, hello)) {
                    close_for_newer(former, actions);
                }
                actions.push(TargetAction::Send(connection, TargetMessage::Confirm));
            }
            Err(refusal) => refuse(connection, refusal, actions),
        }
    }

    fn confirmed(&mut self, connection: ConnectionId, actions: &mut Actions<F>) {
        let Some((_, hello)) = self.candidate.take_if(|(theirs, _)| *theirs == connection) else {
            return;
        };
        // Another may have been admitted since the hello.
        let admission = match self.past.admit(self.machine, &hello, self.durable) {
            Ok(admission) => admission,
            Err(refusal) => {
                refuse(connection, refusal, actions);
                return;
            }
        };
        if self.connection().is_some() {
            let (code, text) = match self.past.run == Some(admission.run) {
                true => (RefusalCode::NotReady, "this run has connected anew"),
                false => (RefusalCode::NewerIncarnation, "a later run of the agent has connected"),
            };
            self.drop_session(code, text.to_owned(), actions);
        }
        self.past.incarnation = Some(admission.incarnation);
        self.past.run = Some(admission.run);
        self.state = State::Fencing { connection };
        actions.push(TargetAction::Fence(connection, hello, admission));
    }

    fn fenced(&mut self, connection: ConnectionId, welcome: Welcome, actions: &mut Actions<F>) {
        // A connection that ended or was replaced meanwhile is not welcomed; what was stored stays
        // right.
        if !matches!(self.state, State::Fencing { connection: ours } if ours == connection) {
            return;
        }
        assert_eq!(
            Some(welcome.incarnation),
            self.past.incarnation,
            "what was admitted is welcomed"
        );
        self.past.generation = Some(welcome.generation);
        self.past.role_epoch = welcome.role_epoch;
        self.durable = welcome.resume;
        let order = Reorder::new(welcome.resume, welcome.window_frames);
        self.state = State::Streaming { connection, order };
        actions.push(TargetAction::Send(connection, TargetMessage::Welcome(welcome)));
        actions.push(TargetAction::Online(true));
    }

    fn frame(
        &mut self,
        connection: ConnectionId,
        place: FramePlace,
        frame: F,
        actions: &mut Actions<F>,
    ) {
        if self.connection() != Some(connection) {
            return;
        }
        if let Err(refusal) = self.past.check_place(self.machine, &place) {
            self.drop_session(refusal.code, refusal.text, actions);
            return;
        }
        let State::Streaming { order, .. } = &mut self.state else {
            let text = "a frame before the welcome".to_owned();
            self.drop_session(RefusalCode::Malformed, text, actions);
            return;
        };
        match order.place(&place, &self.waiting) {
            Ok(Placed::Seen) => {}
            Ok(Placed::Early) => self.waiting.keep(place, frame),
            Ok(Placed::Next) => {
                order.advance(place.last);
                actions.push(TargetAction::Append(place, frame));
                while let Some((place, frame)) = self.waiting.take(order.end()) {
                    order.advance(place.last);
                    actions.push(TargetAction::Append(place, frame));
                }
            }
            Err(text) => self.drop_session(RefusalCode::Malformed, text, actions),
        }
    }

    fn became_durable(&mut self, sequence: Sequence, actions: &mut Actions<F>) {
        if sequence <= self.durable {
            return;
        }
        self.durable = sequence;
        if let State::Streaming { connection, order } = &mut self.state {
            order.release(sequence);
            actions.push(TargetAction::Send(*connection, TargetMessage::Durable { sequence }));
        }
    }

    /// Tells the present connection why, closes it, and is offline.
    fn drop_session(&mut self, code: RefusalCode, text: String, actions: &mut Actions<F>) {
        if let Some(connection) = self.connection() {
            refuse(connection, Refusal { code, text }, actions);
            self.go_offline(actions);
        }
    }

    fn go_offline(&mut self, actions: &mut Actions<F>) {
        if self.streaming().is_some() {
            actions.push(TargetAction::Online(false));
        }
        // What waits for its predecessor comes again with the next session.
        self.waiting = reorder::Waiting::default();
        self.state = State::Offline;
    }
}

/// A machine has no more connections than a session, one that may become it, and one that has just
/// come: whatever each of them may hold, it is bounded.
fn close_for_newer<F>(former: ConnectionId, actions: &mut Actions<F>) {
    actions.push(TargetAction::Close(former, "a newer connection has come".to_owned()));
}

fn refuse<F>(connection: ConnectionId, refusal: Refusal, actions: &mut Actions<F>) {
    let text = refusal.to_string();
    actions.push(TargetAction::Send(connection, TargetMessage::Refused(refusal)));
    actions.push(TargetAction::Close(connection, text));
}

#[cfg(test)]
mod tests;
