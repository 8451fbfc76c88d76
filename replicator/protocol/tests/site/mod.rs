//! A site of one agent and one target around the two session machines, all on one queue of events.
//! It checks after every event that nothing is acknowledged that is not durable.

mod network;

use network::{Delivery, Network};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redoubt_log::{Generation, MachineId, RoleEpoch, Sequence};
use redoubt_protocol::message::{RunId, Welcome};
use redoubt_protocol::{
    AgentAction, AgentEvent, AgentPast, AgentSelf, AgentSession, ConnectionId, Continuity,
    FramePlace, NotTaken, PauseWord, TargetAction, TargetEvent, TargetPast, TargetSession,
    WindowLimits,
};
use std::time::{Duration, Instant};

const FAULTS_END: Duration = Duration::from_secs(20);
/// Past the longest retry after the last fault, so that the last run seals something.
const SEALING_ENDS: Duration = Duration::from_secs(36);
const END: Duration = Duration::from_secs(90);
const MACHINE: MachineId = MachineId([7; 16]);

/// What may go wrong.
#[derive(Clone, Copy, Default)]
pub struct Story {
    pub cuts: bool,
    pub agent_restarts: bool,
    pub target_restarts: bool,
    pub restore: bool,
}

/// A frame: the place, and a number that no other has.
type Sealed = (FramePlace, u64);

pub enum Event {
    AgentTick { run: u64 },
    Network(Delivery),
    Fenced { boot: u64, link: u64, welcome: Welcome },
    Synced { boot: u64, appended: usize },
    Seal,
    Fault,
}

struct Agent {
    run: u64,
    session: AgentSession<u64>,
    stored: AgentPast,
    /// Terms under which it seals now.
    terms: Option<Welcome>,
    /// What this run sealed under the present generation and incarnation.
    sealed: Vec<Sealed>,
    resyncs: u32,
}

struct Target {
    boot: u64,
    session: TargetSession<u64>,
    stored: TargetPast,
    /// The journal; `durable` of its frames survive a cut.
    journal: Vec<Sealed>,
    durable: usize,
    restored: bool,
}

pub struct Site {
    random: StdRng,
    story: Story,
    network: Network,
    start: Instant,
    agent: Agent,
    target: Target,
    frames: u64,
}

fn new_session(run: u64, stored: AgentPast, seed: u64, now: Instant) -> AgentSession<u64> {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&run.to_le_bytes());
    let me = AgentSelf {
        machine: MACHINE,
        run: RunId(id),
        agent_version: "test".into(),
        host_name: "test".into(),
        disks: Vec::new(),
    };
    AgentSession::new(me, stored, WindowLimits { bytes: 4000, frames: 40 }, seed, now)
}

impl Site {
    pub fn new(seed: u64, story: Story) -> Self {
        let start = Instant::now();
        let stored = AgentPast::default();
        let session = new_session(1, stored, seed, start);
        let agent = Agent { run: 1, session, stored, terms: None, sealed: vec![], resyncs: 0 };
        let past = TargetPast::default();
        let session = TargetSession::new(MACHINE, past, Sequence(0));
        let journal = Vec::new();
        let target =
            Target { boot: 1, session, stored: past, journal, durable: 0, restored: false };
        let random = StdRng::seed_from_u64(seed);
        let network = Network::default();
        let mut site = Self { random, story, network, start, agent, target, frames: 0 };
        site.network.later(Duration::ZERO, Event::AgentTick { run: 1 });
        site.network.later(Duration::ZERO, Event::Seal);
        site.network.later(Duration::from_millis(500), Event::Fault);
        site
    }

    /// Runs to the end; how many frames the target has.
    pub fn run(mut self) -> usize {
        while let Some(event) = self.network.next().filter(|_| self.network.now() < END) {
            self.step(event);
            self.check_always();
        }
        self.check_end();
        self.target.durable
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::AgentTick { run } if run == self.agent.run => self.agent(AgentEvent::Tick),
            Event::AgentTick { .. } => {}
            Event::Network(delivery) => self.delivered(delivery),
            Event::Fenced { boot, link, welcome } if boot == self.target.boot => {
                self.target(TargetEvent::Fenced(ConnectionId(link), welcome));
            }
            Event::Synced { boot, appended } if boot == self.target.boot => self.synced(appended),
            Event::Fenced { .. } | Event::Synced { .. } => {}
            Event::Seal => self.seal(),
            Event::Fault => self.fault(),
        }
    }

    fn delivered(&mut self, delivery: Delivery) {
        if !self.network.arrives(&delivery) {
            return;
        }
        match delivery {
            Delivery::Opened { link } => {
                let (run, connection) = self.network.agent_end(link);
                self.target(TargetEvent::Arrived(ConnectionId(link)));
                if run == self.agent.run {
                    self.agent(AgentEvent::Connected(connection));
                }
            }
            Delivery::ToAgent { link, message } => {
                let (run, connection) = self.network.agent_end(link);
                if run == self.agent.run {
                    self.agent(AgentEvent::Received(connection, message));
                }
            }
            Delivery::AgentEnd { link } => {
                let (run, connection) = self.network.agent_end(link);
                if run == self.agent.run {
                    self.agent(AgentEvent::Disconnected(connection));
                }
            }
            Delivery::ToTarget { link, message } => {
                self.target(TargetEvent::Received(ConnectionId(link), message));
            }
            Delivery::Frame { link, place, frame, .. } => {
                self.target(TargetEvent::Frame(ConnectionId(link), place, frame));
            }
            Delivery::TargetEnd { link } => {
                self.target(TargetEvent::Disconnected(ConnectionId(link)));
            }
        }
    }

    fn agent(&mut self, event: AgentEvent) {
        let now = self.start + self.network.now();
        let actions = self.agent.session.handle(event, now);
        self.agent_acts(actions);
    }

    fn agent_acts(&mut self, actions: Vec<AgentAction<u64>>) {
        self.agent.stored = self.agent.session.past();
        let run = self.agent.run;
        for action in actions {
            match action {
                AgentAction::Connect(connection) => {
                    self.network.open(&mut self.random, run, connection);
                }
                AgentAction::Close(connection, _) => {
                    self.network.agent_closes(&mut self.random, run, connection);
                }
                AgentAction::SendMessage(connection, message) => {
                    self.network.say_to_target(&mut self.random, run, connection, message);
                }
                AgentAction::SendFrame { connection, stream, place, frame } => {
                    let sent = (stream, place, frame);
                    self.network.frame(&mut self.random, run, connection, sent);
                }
                AgentAction::Started { welcome, resumed } => self.started(welcome, resumed),
                AgentAction::ResyncNeeded(_) => {
                    self.agent.resyncs += 1;
                    self.agent.terms = None;
                }
                AgentAction::WakeAt(at) => {
                    self.network.later(at - self.start, Event::AgentTick { run });
                }
                AgentAction::Ended(refusal) => panic!("the only agent was ended: {refusal}"),
                AgentAction::Refused(_) | AgentAction::Release(_) | AgentAction::Deliver(_) => {}
            }
        }
    }

    fn started(&mut self, welcome: Welcome, resumed: bool) {
        if !resumed {
            self.agent.sealed.clear();
        }
        self.agent.terms = Some(welcome);
    }

    fn seal(&mut self) {
        if self.network.now() < SEALING_ENDS {
            let wait = Duration::from_micros(self.random.random_range(100..60_000));
            self.network.later(self.network.now() + wait, Event::Seal);
        }
        let Some(terms) = &self.agent.terms else { return };
        let previous = self.agent.session.end();
        let first = previous.next();
        let place = FramePlace {
            machine: MACHINE,
            generation: terms.generation,
            incarnation: terms.incarnation,
            role_epoch: terms.role_epoch,
            first,
            last: Sequence(first.0 + self.random.random_range(0..5)),
            previous,
            bytes: self.random.random_range(1..300),
        };
        let frame = self.frames + 1;
        match self.agent.session.push(place, frame) {
            Ok(actions) => {
                self.frames = frame;
                self.agent.sealed.push((place, frame));
                self.agent_acts(actions);
            }
            Err(NotTaken::Full(_)) => {}
            Err(NotTaken::Stale(_)) => panic!("sealed under terms that do not hold"),
        }
    }

    fn target(&mut self, event: TargetEvent<u64>) {
        let actions = self.target.session.handle(event);
        for action in actions {
            match action {
                TargetAction::Fence(connection, _, admission) => self.fence(connection, admission),
                TargetAction::Send(connection, message) => {
                    self.network.say_to_agent(&mut self.random, connection.0, message);
                }
                TargetAction::Close(connection, _) => {
                    self.network.target_closes(&mut self.random, connection.0);
                }
                TargetAction::Append(place, frame) => self.append(place, frame),
                TargetAction::Deliver(_) | TargetAction::Online(_) => {}
            }
        }
    }

    fn fence(&mut self, connection: ConnectionId, admission: redoubt_protocol::Admission) {
        // What was appended settles now: some of it turns durable, the rest never will.
        self.settle_journal();
        let (generation, resync) = match admission.continuity {
            Continuity::Goes(generation) => (generation, None),
            Continuity::First => (Generation(self.random.random()), None),
            Continuity::Lost(reason) => {
                assert!(self.target.restored, "nothing was restored, yet: {reason}");
                (Generation(self.random.random()), Some(reason))
            }
        };
        self.target.stored = TargetPast {
            generation: Some(generation),
            incarnation: Some(admission.incarnation),
            run: Some(admission.run),
            role_epoch: RoleEpoch(0),
        };
        let welcome = Welcome {
            generation,
            incarnation: admission.incarnation,
            resume: self.end_of_journal(),
            role_epoch: RoleEpoch(0),
            point_interval_milliseconds: 0,
            window_frames: 8,
            disks: Vec::new(),
            resync,
            pause: PauseWord::default(),
            full: None,
        };
        let at = self.network.now() + Duration::from_millis(self.random.random_range(0..30));
        let (boot, link) = (self.target.boot, connection.0);
        self.network.later(at, Event::Fenced { boot, link, welcome });
    }

    fn end_of_journal(&self) -> Sequence {
        self.target.journal.last().map_or(Sequence(0), |(place, _)| place.last)
    }

    fn settle_journal(&mut self) {
        let undurable = self.target.journal.len() - self.target.durable;
        self.target.durable += self.random.random_range(0..=undurable);
        self.target.journal.truncate(self.target.durable);
    }

    fn append(&mut self, place: FramePlace, frame: u64) {
        assert_eq!(place.previous, self.end_of_journal(), "the journal has no hole");
        self.target.journal.push((place, frame));
        let at = self.network.now() + Duration::from_micros(self.random.random_range(0..20_000));
        let appended = self.target.journal.len();
        self.network.later(at, Event::Synced { boot: self.target.boot, appended });
    }

    fn synced(&mut self, appended: usize) {
        // A sync that was under way when the journal was settled says nothing any more.
        if appended <= self.target.durable || appended > self.target.journal.len() {
            return;
        }
        self.target.durable = appended;
        let sequence = self.target.journal[appended - 1].0.last;
        self.target(TargetEvent::Durable(sequence));
    }

    fn fault(&mut self) {
        if self.network.now() >= FAULTS_END {
            return;
        }
        let wait = Duration::from_millis(self.random.random_range(10..2500));
        self.network.later(self.network.now() + wait, Event::Fault);
        match self.random.random_range(0..4) {
            0 | 1 if self.story.cuts => self.network.cut_all(&mut self.random),
            2 if self.story.agent_restarts => self.restart_agent(),
            3 if self.story.target_restarts => self.restart_target(),
            3 if self.story.restore && !self.target.restored => {
                self.target.restored = true;
                let kept = self.random.random_range(0..=self.target.durable);
                self.target.durable = kept;
                self.target.journal.truncate(kept);
                self.restart_target();
            }
            _ => {}
        }
    }

    fn restart_agent(&mut self) {
        let run = self.agent.run + 1;
        let now = self.start + self.network.now();
        self.agent.session = new_session(run, self.agent.stored, self.random.random(), now);
        self.agent.run = run;
        self.agent.terms = None;
        self.agent.sealed.clear();
        self.network.cut_all(&mut self.random);
        self.network.later(self.network.now(), Event::AgentTick { run });
    }

    fn restart_target(&mut self) {
        self.settle_journal();
        self.target.boot += 1;
        let durable = self.end_of_journal();
        self.target.session = TargetSession::new(MACHINE, self.target.stored, durable);
        self.network.cut_all(&mut self.random);
        self.network.forget_at_target();
    }

    /// What was acknowledged is durable, unless the target was restored and the agent not told yet.
    fn check_always(&self) {
        let same = self.agent.stored.generation == self.target.stored.generation;
        if same && (!self.target.restored || self.agent.resyncs > 0) {
            let durable = self.target.durable.checked_sub(1).map(|at| self.target.journal[at].0);
            let end = durable.map_or(Sequence(0), |place| place.last);
            assert!(self.agent.stored.acknowledged <= end, "acknowledged, but not durable");
        }
    }

    /// After the faults, all that the agent sealed is there, in order, once.
    fn check_end(&self) {
        assert_eq!(self.agent.session.window_bytes(), 0, "everything was acknowledged");
        assert!(self.agent.session.is_streaming(), "the session stands again");
        let journal = &self.target.journal;
        assert_eq!(self.target.durable, journal.len());
        assert!(journal.windows(2).all(|pair| pair[0].0.last == pair[1].0.previous), "a chain");
        assert!(journal.windows(2).all(|pair| pair[0].1 < pair[1].1), "in the order of sealing");
        let sealed = &self.agent.sealed;
        assert!(!sealed.is_empty(), "the last run sealed something");
        assert!(journal.ends_with(sealed), "the last run's frames are the journal's end");
    }
}
