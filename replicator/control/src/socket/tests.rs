//! Real sockets, a handler that plays.

use super::*;
use crate::request::Request;
use crate::response::Response;
use crate::runtime::RuntimeDirectory;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::thread;

const PATIENCE: Duration = Duration::from_secs(20);

/// Counts to three for `points`, echoes the label of `mark` as a failure, gives everything else up.
struct Fake {
    peers: Mutex<Vec<Peer>>,
}

impl Handler for Fake {
    fn handle(&self, peer: Peer, request: Request, responder: &mut dyn Responder) {
        self.peers.lock().unwrap().push(peer);
        match request {
            Request::Points { .. } => {
                for done_bytes in 1..=3 {
                    responder.send(&Response::Progress { done_bytes, total_bytes: 3 }).unwrap();
                }
                responder.send(&Response::Done).unwrap();
            }
            Request::Mark { label, .. } => {
                responder.send(&Response::failed(label.unwrap_or_default())).unwrap();
            }
            _ => {}
        }
    }
}

struct Site {
    base: tempfile::TempDir,
    fake: Arc<Fake>,
}

impl Site {
    fn new() -> Self {
        let fake = Arc::new(Fake { peers: Mutex::new(Vec::new()) });
        Self { base: tempfile::tempdir().unwrap(), fake }
    }

    fn directory(&self) -> RuntimeDirectory {
        RuntimeDirectory::new(self.base.path())
    }

    fn serve(&self, role: Role) -> Result<Server, SocketError> {
        Server::start(&self.directory(), role, Arc::clone(&self.fake) as Arc<dyn Handler>)
    }

    fn call(&self, request: &Request) -> Result<Response, SocketError> {
        Client::connect(&self.directory(), Role::Agent)?.call(request, PATIENCE, &mut |_| {})
    }
}

#[test]
fn progress_comes_before_the_end() {
    let site = Site::new();
    let _server = site.serve(Role::Agent).unwrap();
    let mut seen = Vec::new();
    let client = Client::connect(&site.directory(), Role::Agent).unwrap();
    let request = Request::Points { machine: None };
    let last = client.call(&request, PATIENCE, &mut |step| seen.push(step.clone())).unwrap();
    assert_eq!(last, Response::Done);
    let step = |done_bytes| Response::Progress { done_bytes, total_bytes: 3 };
    assert_eq!(seen, [step(1), step(2), step(3)]);
    let peer = site.fake.peers.lock().unwrap()[0];
    assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
    assert_eq!(u32::try_from(peer.pid).unwrap(), std::process::id());
}

#[test]
fn the_socket_is_private_and_goes_with_its_server() {
    let site = Site::new();
    let server = site.serve(Role::Agent).unwrap();
    let path = site.directory().socket(Role::Agent);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(answering_roles(&site.directory()).unwrap(), [Role::Agent]);
    drop(server);
    assert!(!path.exists());
    assert_eq!(answering_roles(&site.directory()).unwrap(), []);
}

#[test]
fn no_role_is_exit_status_5() {
    let site = Site::new();
    let error = site.call(&Request::Status).unwrap_err();
    assert_eq!(error.exit_status(), ExitStatus::NoRole);
    assert!(error.to_string().contains("no agent behind"), "{error}");
}

#[test]
fn a_killed_roles_socket_is_no_role_and_is_replaced() {
    let site = Site::new();
    drop(UnixListener::bind(site.directory().socket(Role::Agent)).unwrap());
    assert_eq!(site.call(&Request::Status).unwrap_err().exit_status(), ExitStatus::NoRole);
    let _server = site.serve(Role::Agent).unwrap();
    assert_eq!(answering_roles(&site.directory()).unwrap(), [Role::Agent]);
}

#[test]
fn one_role_of_a_kind_and_both_kinds_side_by_side() {
    let site = Site::new();
    let _agent = site.serve(Role::Agent).unwrap();
    let _target = site.serve(Role::Target).unwrap();
    assert!(matches!(site.serve(Role::Agent), Err(SocketError::Occupied { .. })));
    assert_eq!(answering_roles(&site.directory()).unwrap(), [Role::Agent, Role::Target]);
}

#[test]
fn a_handler_that_gives_up_is_told_to_the_client() {
    let site = Site::new();
    let _server = site.serve(Role::Agent).unwrap();
    match site.call(&Request::Status).unwrap() {
        Response::Failed { status, message } => {
            assert_eq!(status, ExitStatus::Failed);
            assert!(message.contains("see its log"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_not_a_request_is_answered_and_harms_nobody() {
    let site = Site::new();
    let _server = site.serve(Role::Agent).unwrap();
    let path = site.directory().socket(Role::Agent);
    let oversized = "x".repeat(usize::try_from(REQUEST_LIMIT_BYTES).unwrap());
    for (text, word) in [("{\"request\":\"wipe\"}\n", "understood"), (&*oversized, "more than")] {
        let mut line = Line::new(UnixStream::connect(&path).unwrap(), path.clone()).unwrap();
        line.reader.get_mut().write_all(text.as_bytes()).unwrap();
        let answer: Response = line.read(RESPONSE_LIMIT_BYTES, PATIENCE).unwrap();
        assert!(matches!(&answer, Response::Failed { message, .. } if message.contains(word)));
    }
    assert!(site.fake.peers.lock().unwrap().is_empty());
    assert!(site.call(&Request::Points { machine: None }).is_ok());
}

#[test]
fn a_silent_role_hangs_and_a_dead_one_is_closed() {
    let site = Site::new();
    let path = site.directory().socket(Role::Agent);
    let listener = UnixListener::bind(&path).unwrap();
    let client = Client::connect(&site.directory(), Role::Agent).unwrap();
    let error = client.call(&Request::Status, Duration::from_millis(20), &mut |_| {}).unwrap_err();
    assert!(matches!(error, SocketError::Hangs { role: Role::Agent, .. }), "{error}");
    assert_eq!(error.exit_status(), ExitStatus::Failed);
    let role = thread::spawn(move || {
        let (silent, _) = listener.accept().unwrap();
        let (dying, _) = listener.accept().unwrap();
        let mut line = Line::new(dying, PathBuf::new()).unwrap();
        line.read::<Request>(REQUEST_LIMIT_BYTES, PATIENCE).unwrap();
        drop(silent);
    });
    let error = site.call(&Request::Status).unwrap_err();
    assert!(matches!(error, SocketError::Closed { .. }), "{error}");
    role.join().unwrap();
}

/// What a stopped role looks like to a monitor that has asked it a few thousand times.
#[test]
fn a_role_with_a_full_queue_hangs_and_holds_nobody_up() {
    let site = Site::new();
    let path = site.directory().socket(Role::Agent);
    let queue = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
    bind(queue.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&queue, Backlog::new(0).unwrap()).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let error = site.call(&Request::Status).unwrap_err();
    assert!(matches!(error, SocketError::Hangs { role: Role::Agent, .. }), "{error}");
}

#[test]
fn a_path_too_long_for_a_socket_is_told_as_such() {
    let directory = RuntimeDirectory::new(format!("/tmp/{}", "x".repeat(120)));
    let error = Client::connect(&directory, Role::Target).err().unwrap();
    assert!(matches!(error, SocketError::TooLong { .. }), "{error}");
}

#[test]
fn many_conversations_at_once() {
    let site = Arc::new(Site::new());
    let _server = site.serve(Role::Agent).unwrap();
    let call = |index: usize| {
        let site = Arc::clone(&site);
        thread::spawn(move || {
            let timeout = crate::Span(PATIENCE);
            let label = Some(index.to_string());
            let request = Request::Mark { machine: None, label, timeout, applied: true };
            assert_eq!(site.call(&request).unwrap(), Response::failed(index));
        })
    };
    let calls: Vec<_> = (0..CONVERSATION_LIMIT / 2).map(call).collect();
    calls.into_iter().for_each(|call| call.join().unwrap());
}
