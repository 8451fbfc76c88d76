//! What a machine is told that cannot be served, over a real connection and with a real store.

use super::*;
use crate::role::control::Control;
use crate::store::tests::held::hold_locks;
use crate::store::{Store, StoreOptions};
use redoubt_control::audit::AuditLog;
use redoubt_control::socket::{Handler, Peer, Responder, SocketError};
use redoubt_control::{Request, Response};
use redoubt_engine::uring_directory::{UringOptions, open_directory};
use redoubt_log::{DiskIndex, DiskSet, RoleEpoch, Sequence};
use redoubt_protocol::message::{DiskDescription, Hello, PROTOCOL_VERSION, RequestId, RunId};
use redoubt_transport::{AgentIdentity, connect, enrol};
use std::path::Path;

const HOUR: Duration = Duration::from_secs(3600);
const TERMS: Terms = Terms { point_interval: HOUR };

struct Target {
    site: Arc<Site>,
    registry: Registry,
    address: String,
    stop: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<()>,
}

impl Target {
    fn start(data: &Path) -> Self {
        let site = Arc::new(Site::open_or_create(&data.join("site")).unwrap());
        let storage = open_directory(data, UringOptions::default());
        let store = Store::open(storage, StoreOptions::default(), super::super::protected::now());
        let registry =
            Registry::new(Arc::new(store.unwrap()), HOUR, Duration::ZERO, AuditLog::new(data));
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), site.clone()).unwrap();
        let address = listener.local_address().unwrap().to_string();
        let (stop, stopped) = oneshot::channel();
        let arrivals =
            Arrivals { listener, registry: registry.clone(), site: site.clone(), terms: TERMS };
        let serving = tokio::spawn(arrivals.serve(stopped));
        Self { site, registry, address, stop, serving }
    }

    async fn join(&self, state: &Path) -> AgentIdentity {
        let token = self.site.invite(&self.address, None, HOUR).unwrap();
        enrol(state, &token, "db").await.unwrap()
    }

    async fn connect(&self, identity: &AgentIdentity) -> Parts<AgentMessage, TargetMessage> {
        connect(identity, &self.address).await.unwrap().into_parts()
    }

    fn control(&self, data: &Path) -> Control {
        Control {
            registry: self.registry.clone(),
            site: self.site.clone(),
            audit: AuditLog::new(data),
            data: data.to_owned(),
        }
    }

    async fn stop(self) {
        drop(self.stop);
        self.serving.await.unwrap();
        tokio::task::spawn_blocking(move || self.registry.stop()).await.unwrap();
    }
}

/// A machine was shut out at the site, and its store still holds its name.
#[tokio::test]
async fn a_machine_whose_name_is_anothers_is_told_so() {
    let base = tempfile::tempdir().unwrap();
    let target = Target::start(&base.path().join("data"));
    let first = target.join(&base.path().join("first")).await;
    let connected = target.connect(&first).await;
    target.site.remove_machine(first.machine).unwrap();
    let second = target.join(&base.path().join("second")).await;
    let mut refused = target.connect(&second).await;
    let TargetMessage::Refused(refusal) = refused.receiver.receive().await.unwrap() else {
        panic!("it was not refused");
    };
    assert_eq!(refusal.code, RefusalCode::NameTaken);
    assert!(refusal.text.contains("called db;"), "{refusal}");
    assert!(refusal.text.contains("redoubt invite --machine OTHER"), "{refusal}");
    // The connection of one that does not close by itself ends all the same.
    refused.handle.closed().await;
    assert!(target.registry.get(second.machine).is_none());
    drop(connected);
    target.stop().await;
}

/// The first word of an agent that remembers nothing.
pub(in crate::role) fn hello(machine: MachineId, disks: Vec<DiskDescription>) -> AgentMessage {
    AgentMessage::Hello(Box::new(Hello {
        protocol_version: PROTOCOL_VERSION,
        machine,
        generation: None,
        run: RunId([1; 16]),
        held: None,
        last_incarnation: None,
        role_epoch: RoleEpoch(0),
        acknowledged: Sequence(0),
        resync: None,
        disks,
        agent_version: String::new(),
        host_name: String::new(),
    }))
}

fn hello_of_one(machine: MachineId) -> AgentMessage {
    let disk = DiskDescription {
        index: DiskIndex(0),
        name: "data".parse().unwrap(),
        size_bytes: 1 << 20,
        logical_block_bytes: 512,
    };
    hello(machine, vec![disk])
}

/// The store has admitted the agent with its disk, and the welcome is not said yet: an order that
/// comes then is in no welcome, and the session that could say it does not stand.
#[tokio::test]
async fn a_disk_that_ends_between_hello_and_welcome_is_told_behind_the_welcome() {
    let base = tempfile::tempdir().unwrap();
    let target = Target::start(&base.path().join("data"));
    let identity = target.join(&base.path().join("state")).await;
    let mut parts = target.connect(&identity).await;
    parts.sender.send(&hello_of_one(identity.machine)).await.unwrap();
    assert_eq!(parts.receiver.receive().await.unwrap(), TargetMessage::Confirm);
    let machine = target.registry.get(identity.machine).unwrap();
    let only = DiskSet(1);
    let (held, is_held) = oneshot::channel();
    let order = tokio::task::spawn_blocking(move || {
        // The welcome asks for what is known of the machine, and is not written meanwhile.
        let _live = machine.live();
        held.send(()).unwrap();
        while machine.store.admitted().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Waits for the end of the admission.
        machine.store.status();
        machine.store.end_protection(only).unwrap();
        machine.note_ended(only);
        let order = MachineEvent::Say(TargetMessage::Unprotect { disks: only });
        machine.events.blocking_send(order).unwrap();
    });
    is_held.await.unwrap();
    parts.sender.send(&AgentMessage::Confirmed).await.unwrap();
    order.await.unwrap();
    let TargetMessage::Welcome(welcome) = parts.receiver.receive().await.unwrap() else {
        panic!("it was not welcomed");
    };
    assert!(!welcome.disks[0].ended, "the order came before the admission");
    let told = parts.receiver.receive().await.unwrap();
    assert_eq!(told, TargetMessage::Unprotect { disks: only });
    target.stop().await;
}

/// A session that stands.
async fn begin(
    target: &Target,
    identity: &AgentIdentity,
) -> (Parts<AgentMessage, TargetMessage>, Arc<Protected>) {
    let mut parts = target.connect(identity).await;
    parts.sender.send(&hello_of_one(identity.machine)).await.unwrap();
    parts.receiver.receive().await.unwrap();
    parts.sender.send(&AgentMessage::Confirmed).await.unwrap();
    let welcome = parts.receiver.receive().await.unwrap();
    assert!(matches!(welcome, TargetMessage::Welcome(_)), "{welcome:?}");
    (parts, target.registry.get(identity.machine).unwrap())
}

/// All machines share the thread of the network: where a disk is slow, it waits for nothing.
#[tokio::test]
async fn a_store_that_is_slow_to_write_keeps_nobody_else_waiting() {
    let base = tempfile::tempdir().unwrap();
    let target = Target::start(&base.path().join("data"));
    let identity = target.join(&base.path().join("state")).await;
    let (mut parts, machine) = begin(&target, &identity).await;
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (held, is_held) = oneshot::channel();
    let slow = machine.clone();
    let holder = std::thread::spawn(move || {
        let _held = hold_locks(&slow.store);
        held.send(()).unwrap();
        // The bound is for a thread of the network that waits, and could release nothing.
        released.recv_timeout(Duration::from_secs(20)).is_ok()
    });
    is_held.await.unwrap();
    let ask = AgentMessage::ListPoints { request: RequestId(1), after: Sequence(0) };
    parts.sender.send(&ask).await.unwrap();
    let token = target.site.invite(&target.address, Some("web".parse().unwrap()), HOUR).unwrap();
    let other = enrol(&base.path().join("other"), &token, "web").await.unwrap();
    let mut greeted = target.connect(&other).await;
    greeted.sender.send(&hello_of_one(other.machine)).await.unwrap();
    // What comes behind the question is served: a read, which is refused without the store.
    let busy = u32::try_from(machine.reads.available_permits()).unwrap();
    let _busy = machine.reads.clone().try_acquire_many_owned(busy).unwrap();
    let ask = AgentMessage::ReadPoint { request: RequestId(2), disk: DiskIndex(0), point: None };
    parts.sender.send(&ask).await.unwrap();
    let said = parts.receiver.receive().await.unwrap();
    assert!(
        matches!(&said, TargetMessage::PointOpened { request, .. } if *request == RequestId(2)),
        "{said:?}"
    );
    // A holder that has given up says so below.
    let _ = release.send(());
    assert!(holder.join().unwrap(), "the thread of the network waited for a disk");
    let said = parts.receiver.receive().await.unwrap();
    assert!(
        matches!(&said, TargetMessage::Points { request, .. } if *request == RequestId(1)),
        "{said:?}"
    );
    assert_eq!(greeted.receiver.receive().await.unwrap(), TargetMessage::Confirm);
    target.stop().await;
}

#[tokio::test]
async fn an_agent_that_reads_many_points_at_once_is_told_to_wait() {
    let base = tempfile::tempdir().unwrap();
    let target = Target::start(&base.path().join("data"));
    let identity = target.join(&base.path().join("state")).await;
    let (mut parts, _) = begin(&target, &identity).await;
    let reads = target.registry.get(identity.machine).unwrap().reads.clone();
    let ask = |number| {
        let (request, disk) = (RequestId(number), DiskIndex(0));
        AgentMessage::ReadPoint { request, disk, point: None }
    };
    let mut refused = async |number| {
        parts.sender.send(&ask(number)).await.unwrap();
        match parts.receiver.receive().await.unwrap() {
            TargetMessage::PointOpened { request, result: Err(why) } => {
                assert_eq!(request, RequestId(number));
                why
            }
            other => panic!("{other:?}"),
        }
    };
    let busy = u32::try_from(reads.available_permits()).unwrap();
    let busy = reads.try_acquire_many_owned(busy).unwrap();
    let why = refused(1).await;
    assert!(why.contains("try again later"), "{why}");
    drop(busy);
    let why = refused(2).await;
    assert!(why.contains("no recovery point yet"), "{why}");
    target.stop().await;
}

#[tokio::test]
async fn a_machine_whose_store_is_damaged_is_named_with_the_remedy() {
    let base = tempfile::tempdir().unwrap();
    let data = base.path().join("data");
    let target = Target::start(&data);
    let identity = target.join(&base.path().join("state")).await;
    let connected = target.connect(&identity).await;
    while target.registry.get(identity.machine).is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(connected);
    target.stop().await;
    let manifest = data.join(format!("machines/{}/manifest", identity.machine));
    std::fs::remove_file(&manifest).unwrap();
    std::fs::write(&manifest, "no manifest").unwrap();
    let target = Target::start(&data);
    let control = target.control(&data);
    let Response::Status { status } = ask(&control, Request::Status) else { panic!("no status") };
    let [machine] = &status.machines[..] else { panic!("{status:?}") };
    assert_eq!((machine.name.as_str(), status.is_harmed()), ("db", true));
    let reason = machine.reason.clone().unwrap();
    assert!(reason.starts_with("store-damaged: "), "{reason}");
    assert!(reason.contains("manifest"), "{reason}");
    assert!(reason.contains(&format!("redoubt inspect {}", data.display())), "{reason}");
    for name in [None, Some("db".parse().unwrap())] {
        let told = ask(&control, Request::Points { machine: name });
        let Response::Failed { message, .. } = told else { panic!("{told:?}") };
        assert_eq!(message, format!("db: {reason}"));
    }
    // One that no record of the site names, either.
    target.site.remove_machine(identity.machine).unwrap();
    let Response::Status { status } = ask(&control, Request::Status) else { panic!("no status") };
    assert_eq!(status.machines[0].name.as_str(), identity.machine.to_string());
    target.stop().await;
}

#[tokio::test]
async fn a_machine_whose_record_is_damaged_is_named_as_well() {
    let base = tempfile::tempdir().unwrap();
    let data = base.path().join("data");
    let target = Target::start(&data);
    let identity = target.join(&base.path().join("state")).await;
    target.registry.protect(identity.machine, &"db".parse().unwrap()).unwrap();
    let control = target.control(&data);
    let Response::Status { status } = ask(&control, Request::Status) else { panic!("no status") };
    assert_eq!((status.machines.len(), status.is_harmed()), (1, false));
    target.stop().await;
    let record = data.join(format!("site/machines/{}", identity.machine));
    let mut bytes = std::fs::read(&record).unwrap();
    bytes[8] ^= 1;
    std::fs::write(&record, bytes).unwrap();
    // As a start does, which takes in only whom the site knows.
    let target = Target::start(&data);
    assert!(target.site.machine(identity.machine).is_err());
    let control = target.control(&data);
    let Response::Status { status } = ask(&control, Request::Status) else { panic!("no status") };
    let [machine] = &status.machines[..] else { panic!("{status:?}") };
    assert_eq!((machine.name.as_str(), status.is_harmed()), ("db", true));
    let reason = machine.reason.as_deref().unwrap();
    assert!(reason.starts_with("record-damaged: "), "{reason}");
    assert!(reason.contains(&identity.machine.to_string()), "{reason}");
    target.stop().await;
}

fn ask(control: &Control, request: Request) -> Response {
    struct Heard(Option<Response>);
    impl Responder for Heard {
        fn send(&mut self, response: &Response) -> Result<(), SocketError> {
            self.0 = Some(response.clone());
            Ok(())
        }
    }
    let mut heard = Heard(None);
    control.handle(Peer { uid: 0, pid: 1 }, request, &mut heard);
    heard.0.unwrap()
}

#[test]
fn an_error_is_repeated_once_a_minute_for_each_machine() {
    let complaints = Complaints::default();
    let (one, other) = (MachineId([1; 16]), MachineId([2; 16]));
    let began = Instant::now();
    let due = |id, after| complaints.is_due(id, began + Duration::from_secs(after));
    assert_eq!([due(one, 0), due(one, 59), due(other, 59)], [true, false, true]);
    assert_eq!([due(one, 60), due(one, 119), due(one, 120)], [true, false, true]);
}
