//! What the agent's end does where the target, or the line, does not behave.

use super::*;
use crate::pause::PauseWord;

const LOG: Generation = Generation([2; 16]);
const MACHINE: MachineId = MachineId([1; 16]);

struct Node {
    session: AgentSession<u32>,
    now: Instant,
    connection: ConnectionId,
}

impl Node {
    fn new(past: AgentPast) -> Self {
        let me = AgentSelf {
            machine: MACHINE,
            run: RunId([3; 16]),
            agent_version: String::new(),
            host_name: String::new(),
            disks: Vec::new(),
        };
        let limits = WindowLimits { bytes: 1000, frames: 4 };
        let now = Instant::now();
        let session = AgentSession::new(me, past, limits, 1, now);
        Self { session, now, connection: ConnectionId(0) }
    }

    fn handle(&mut self, event: AgentEvent) -> Vec<AgentAction<u32>> {
        self.session.handle(event, self.now)
    }

    fn hear(&mut self, message: TargetMessage) -> Vec<AgentAction<u32>> {
        self.handle(AgentEvent::Received(self.connection, message))
    }

    /// Connects after the longest wait; the hello.
    fn greet(&mut self) -> Hello {
        self.now += crate::RETRY_LONGEST;
        let [AgentAction::Connect(connection)] = self.handle(AgentEvent::Tick)[..] else {
            panic!("it does not connect");
        };
        self.connection = connection;
        let said = self.handle(AgentEvent::Connected(connection)).swap_remove(0);
        let AgentAction::SendMessage(_, AgentMessage::Hello(hello)) = said else {
            panic!("it does not say hello");
        };
        *hello
    }

    fn welcome(&mut self, resume: u64) -> Vec<AgentAction<u32>> {
        self.hear(TargetMessage::Welcome(Welcome {
            generation: LOG,
            incarnation: Incarnation(1),
            resume: Sequence(resume),
            role_epoch: RoleEpoch(0),
            point_interval_milliseconds: 0,
            window_frames: 2,
            disks: Vec::new(),
            resync: None,
            pause: PauseWord::default(),
            full: None,
        }))
    }

    /// Seals a frame of one record; what went out.
    fn seal(&mut self) -> Vec<u64> {
        let previous = self.session.end();
        let place = FramePlace {
            machine: MACHINE,
            generation: LOG,
            incarnation: Incarnation(1),
            role_epoch: RoleEpoch(0),
            first: previous.next(),
            last: previous.next(),
            previous,
            bytes: 10,
        };
        sent(&self.session.push(place, 0).unwrap())
    }
}

fn sent(actions: &[AgentAction<u32>]) -> Vec<u64> {
    let lasts = actions.iter().filter_map(|action| match action {
        AgentAction::SendFrame { place, .. } => Some(place.last.0),
        _ => None,
    });
    lasts.collect()
}

#[test]
fn sends_within_the_window_and_again_from_where_the_target_is() {
    let mut node = Node::new(AgentPast::default());
    assert_eq!(node.greet().held, None);
    node.welcome(0);
    assert_eq!([node.seal(), node.seal(), node.seal()].concat(), [1, 2]);
    assert_eq!(sent(&node.hear(TargetMessage::Durable { sequence: Sequence(1) })), [3]);
    node.handle(AgentEvent::Disconnected(node.connection));
    assert_eq!(node.seal(), [], "sealing goes on without a line");
    let hello = node.greet();
    assert_eq!((hello.held, hello.acknowledged), (Some(Incarnation(1)), Sequence(1)));
    assert_eq!(sent(&node.welcome(2)), [3, 4]);
}

#[test]
fn a_full_window_gives_the_frame_back() {
    let mut node = Node::new(AgentPast::default());
    node.greet();
    node.welcome(0);
    for _ in 0..4 {
        node.seal();
    }
    assert!(!node.session.has_room(10));
    node.hear(TargetMessage::Durable { sequence: Sequence(1) });
    assert!(node.session.has_room(10));
    assert!(!node.session.has_room(971), "bytes are bounded too");
}

#[test]
fn a_target_behind_its_acknowledgement_makes_a_resync() {
    let generation = Some(LOG);
    let acknowledged = Sequence(50);
    let past = AgentPast { generation, acknowledged, ..AgentPast::default() };
    let mut node = Node::new(past);
    assert_eq!(node.greet().acknowledged, acknowledged);
    let actions = node.welcome(49);
    assert!(matches!(actions[0], AgentAction::ResyncNeeded(_)), "{actions:?}");
    assert!(!node.session.has_room(1));
    let hello = node.greet();
    assert!(hello.generation.is_none() && hello.resync.is_some(), "it asks for a new log");
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_ends_the_session() {
    let mut node = Node::new(AgentPast::default());
    node.greet();
    node.welcome(0);
    let actions = node.hear(TargetMessage::Durable { sequence: Sequence(9) });
    assert!(matches!(actions[0], AgentAction::Close(..)));
    assert_eq!(node.session.past().acknowledged, Sequence(0));
}

#[test]
fn a_silent_target_is_left_and_tried_again() {
    let mut node = Node::new(AgentPast::default());
    node.greet();
    node.now += WELCOME_TIMEOUT;
    assert!(matches!(node.handle(AgentEvent::Tick)[0], AgentAction::Close(..)));
    node.greet();
}

#[test]
fn a_refusal_is_tried_again_but_a_newer_run_is_the_end() {
    let refusal = |code| TargetMessage::Refused(Refusal { code, text: String::new() });
    let mut node = Node::new(AgentPast::default());
    node.greet();
    let actions = node.hear(refusal(RefusalCode::Unprotected));
    assert!(matches!(actions[0], AgentAction::Refused(_)));
    node.greet();
    node.welcome(0);
    let actions = node.hear(refusal(RefusalCode::NewerIncarnation));
    assert!(matches!(actions[0], AgentAction::Ended(_)));
    node.now += crate::RETRY_LONGEST;
    assert!(node.handle(AgentEvent::Tick).is_empty());
}

#[test]
fn a_name_that_is_anothers_is_the_end_before_any_welcome() {
    let mut node = Node::new(AgentPast::default());
    node.greet();
    let refusal = Refusal { code: RefusalCode::NameTaken, text: String::new() };
    let actions = node.hear(TargetMessage::Refused(refusal));
    assert!(matches!(actions[..], [AgentAction::Ended(_)]));
    node.now += crate::RETRY_LONGEST;
    assert!(node.handle(AgentEvent::Tick).is_empty());
}
