//! What a machine's task does with an agent that misbehaves, over real connections and with a real
//! store; the test drives the task, so that it knows what comes one after the other.

use super::super::arrivals::tests::hello;
use super::super::connection::hear;
use super::super::protected::{Registry, now};
use super::*;
use crate::store::{Store, StoreOptions};
use redoubt_control::audit::AuditLog;
use redoubt_engine::uring_directory::{UringOptions, open_directory};
use redoubt_log::frame::FrameKey;
use redoubt_transport::{
    AgentIdentity, Arrival, Connection, Listener, Parts, Site, connect, enrol,
};
use std::path::Path;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

type Agent = Parts<AgentMessage, TargetMessage>;

struct Target {
    registry: Registry,
    task: MachineTask,
    identity: AgentIdentity,
    address: String,
    arrived: mpsc::Receiver<Connection>,
    connections: u64,
}

impl Target {
    async fn start(base: &Path) -> Self {
        let data = base.join("data");
        let site = Arc::new(Site::open_or_create(&data.join("site")).unwrap());
        let storage = open_directory(&data, UringOptions::default());
        let store = Arc::new(Store::open(storage, StoreOptions::default(), now()).unwrap());
        let registry = Registry::new(store, HOUR, Duration::ZERO, AuditLog::new(&data));
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), site.clone()).unwrap();
        let address = listener.local_address().unwrap().to_string();
        let (told, arrived) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(arriving) = listener.accept().await {
                if let Ok(Arrival::Machine(_, connection)) = arriving.finish().await {
                    told.send(connection).await.unwrap();
                }
            }
        });
        let token = site.invite(&address, None, HOUR).unwrap();
        let identity = enrol(&base.join("state"), &token, "db").await.unwrap();
        registry.protect(identity.machine, &identity.name).unwrap();
        let ends = registry.take_started().pop().unwrap();
        let task = MachineTask::new(ends, Terms { point_interval: HOUR });
        Self { registry, task, identity, address, arrived, connections: 0 }
    }

    /// A connection more, of which the task knows.
    async fn connect(&mut self) -> (ConnectionId, Agent) {
        let dialled = connect(&self.identity, &self.address);
        let (dialled, arrived) = tokio::join!(dialled, self.arrived.recv());
        self.connections += 1;
        let id = ConnectionId(self.connections);
        let key = FrameKey::new([1; 32]);
        let link = Link::new(id, arrived.unwrap(), key, &self.task.machine.events);
        self.task.take(MachineEvent::Arrived(id, link));
        (id, dialled.unwrap().into_parts())
    }

    /// Takes events until something is so.
    async fn until(&mut self, is_so: impl Fn(&MachineTask) -> bool) {
        while !is_so(&self.task) {
            let event = self.task.events.recv().await.unwrap();
            self.task.take(event);
        }
    }

    /// A connection with a session.
    async fn session(&mut self) -> (ConnectionId, Agent) {
        let (id, mut agent) = self.connect().await;
        agent.sender.send(&hello(self.identity.machine, Vec::new())).await.unwrap();
        agent.sender.send(&AgentMessage::Confirmed).await.unwrap();
        self.until(|task| task.session.streaming() == Some(id)).await;
        (id, agent)
    }

    async fn stop(self) {
        let Self { registry, task, .. } = self;
        drop(task);
        tokio::task::spawn_blocking(move || registry.stop()).await.unwrap();
    }
}

/// The next that is no answer to the hello.
async fn heard(agent: &mut Agent) -> TargetMessage {
    loop {
        match agent.receiver.receive().await.unwrap() {
            TargetMessage::Confirm | TargetMessage::Welcome(_) => {}
            other => return other,
        }
    }
}

#[tokio::test]
async fn an_agent_that_asks_for_list_upon_list_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let mut target = Target::start(base.path()).await;
    let (id, mut agent) = target.session().await;
    let ask = |number| {
        let (request, after) = (RequestId(number), Sequence(0));
        let message = AgentMessage::ListPoints { request, after };
        MachineEvent::Session(TargetEvent::Received(id, message))
    };
    let page = |number| {
        let request = RequestId(number);
        TargetMessage::Points { request, points: Vec::new(), more: false }
    };
    for number in 1..4 {
        target.task.take(ask(number));
        assert_eq!(heard(&mut agent).await, page(number));
    }
    target.task.take(ask(4));
    target.task.take(ask(5));
    assert_eq!(target.task.session.streaming(), None);
    // The page is made beside all else: it may come before the refusal, or not at all.
    let said = match heard(&mut agent).await {
        first if first == page(4) => heard(&mut agent).await,
        first => first,
    };
    let TargetMessage::Refused(refusal) = said else {
        panic!("it was not refused");
    };
    assert_eq!(refusal.code, RefusalCode::Malformed);
    assert!(refusal.text.contains("second list of points"), "{refusal}");
    target.stop().await;
}

#[tokio::test]
async fn an_agent_that_does_not_read_is_closed_and_not_waited_for() {
    let base = tempfile::tempdir().unwrap();
    let mut target = Target::start(base.path()).await;
    let (id, agent) = target.session().await;
    let speaker = target.task.links[&id].speaker();
    let message = TargetMessage::Full { reason: "x".repeat(50_000) };
    let mut said = 0;
    while !speaker.is_closed() {
        speaker.say(message.clone());
        said += 1;
        assert!(said < 4000, "all of it waits for the agent");
        tokio::task::yield_now().await;
    }
    target.until(|task| task.session.streaming().is_none() && task.links.is_empty()).await;
    let ended = agent.handle.closed().await.to_string();
    assert!(ended.contains("does not read"), "{ended}");
    target.stop().await;
}

#[tokio::test]
async fn connections_of_one_machine_are_few_and_hold_little_before_the_welcome() {
    let base = tempfile::tempdir().unwrap();
    let mut target = Target::start(base.path()).await;
    let mut idle = Vec::new();
    for _ in 0..10 {
        idle.push(target.connect().await);
        assert_eq!(target.task.links.len(), 1);
    }
    for (_, agent) in idle.drain(..9) {
        agent.handle.closed().await;
    }
    let (id, mut agent) = idle.pop().unwrap();
    let hello = hello(target.identity.machine, Vec::new());
    let mut greeting = tokio::spawn(async move {
        agent.sender.send(&hello).await.unwrap();
        tokio::select! {
            biased;
            _ = agent.handle.open_frames() => panic!("it may send frames before the welcome"),
            told = agent.receiver.receive() => assert_eq!(told.unwrap(), TargetMessage::Confirm),
        }
        agent
    });
    let mut agent = loop {
        tokio::select! {
            event = target.task.events.recv() => target.task.take(event.unwrap()),
            agent = &mut greeting => break agent.unwrap(),
        }
    };
    agent.sender.send(&AgentMessage::Confirmed).await.unwrap();
    target.until(|task| task.session.streaming() == Some(id)).await;
    agent.handle.open_frames().await.unwrap();
    for _ in 0..10 {
        idle.push(target.connect().await);
        assert!(target.task.links.len() == 2 && target.task.links.contains_key(&id));
    }
    target.stop().await;
}

#[tokio::test]
async fn a_connection_that_says_no_hello_has_gone() {
    let base = tempfile::tempdir().unwrap();
    let mut target = Target::start(base.path()).await;
    let dialled = connect(&target.identity, &target.address);
    let (_agent, arrived) = tokio::join!(dialled, target.arrived.recv());
    let parts = arrived.unwrap().into_parts::<TargetMessage, AgentMessage>();
    let (told, mut events) = mpsc::channel(1);
    hear(ConnectionId(9), parts.receiver, told, Duration::from_millis(10)).await;
    let event = events.recv().await;
    let Some(MachineEvent::Session(TargetEvent::Disconnected(ConnectionId(9)))) = event else {
        panic!("it may stay for ever");
    };
    target.stop().await;
}
