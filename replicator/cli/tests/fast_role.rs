//! A real master target as a service manager, an operator and a script see it: it needs no root.
//! It must leave no process behind.
#![cfg(feature = "target")]
// Helpers outside of test functions may panic like these: a role that does not start is a failure.
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic as the test itself may")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redoubt_control::status::RoleStatus;
use redoubt_control::{
    Handler, Peer, Request, Responder, Response, Role, RuntimeDirectory, Server,
};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn redoubt(runtime: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redoubt"));
    command.env_remove("REDOUBT_LOG").env("REDOUBT_RUNTIME_DIR", runtime);
    command
}

/// A master target that serves; it ends with its owner.
struct Target {
    base: tempfile::TempDir,
    child: Child,
}

impl Target {
    fn start(prepare: impl FnOnce(&mut Command, &Path)) -> Self {
        let base = tempfile::tempdir().unwrap();
        let mut command = redoubt(&base.path().join("run"));
        command.args(["master-target", "--listen", "127.0.0.1:0", "--data"]);
        command.arg(base.path().join("data")).stdout(Stdio::piped());
        prepare(&mut command, base.path());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let target = Self { base, child };
        assert!(line.starts_with("listening on 127.0.0.1:"), "{line:?}");
        target
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It has ended already where the test was about that.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

#[test]
fn either_signal_ends_it_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut target = Target::start(|_, _| {});
        target.signal(signal);
        assert_eq!(target.end().code(), Some(0), "{signal}");
        assert!(!target.base.path().join("run/target.sock").exists());
    }
}

/// The target's directory may stand in its configuration only: whoever invites finds it there, too.
#[test]
fn an_invitation_finds_the_targets_directory_in_its_configuration() {
    let target = Target::start(|_, _| {});
    let config = target.base.path().join("target.toml");
    let data = target.base.path().join("data");
    std::fs::write(&config, format!("data = {:?}\n", data.to_str().unwrap())).unwrap();
    let mut command = redoubt(&target.base.path().join("run"));
    let output = command.args(["invite", "--config"]).arg(&config).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(out.lines().last().unwrap().starts_with("redoubt1."), "{out}");
}

#[test]
fn an_address_that_cannot_be_had_is_told_with_a_remedy() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let base = tempfile::tempdir().unwrap();
    let mut command = redoubt(&base.path().join("run"));
    command.args(["master-target", "--listen", &address, "--data"]).arg(base.path().join("data"));
    let output = command.output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains(&address) && error.contains("give an address of this"), "{error}");
}

#[test]
fn a_directory_with_something_else_in_it_is_refused_and_left_as_it_is() {
    let base = tempfile::tempdir().unwrap();
    let data = base.path().join("home");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("thesis.tex"), "all of it").unwrap();
    let mut command = redoubt(&base.path().join("run"));
    command.args(["master-target", "--listen", "127.0.0.1:0", "--data"]).arg(&data);
    let output = command.output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    let error = String::from_utf8(output.stderr).unwrap();
    let named = error.contains("home holds thesis.tex, and nothing of a redoubt target");
    assert!(named && error.contains("give an empty directory"), "{error}");
    let left: Vec<_> = std::fs::read_dir(&data).unwrap().map(|it| it.unwrap().path()).collect();
    assert_eq!(left, [data.join("thesis.tex")]);
    assert!(!base.path().join("run").exists());
}

#[test]
fn a_service_manager_is_told_when_it_serves() {
    let mut manager = None;
    let _target = Target::start(|command, base| {
        let path = base.join("notify");
        manager = Some(UnixDatagram::bind(&path).unwrap());
        command.env("NOTIFY_SOCKET", path);
    });
    let mut told = [0; 64];
    let length = manager.unwrap().recv(&mut told).unwrap();
    assert_eq!(std::str::from_utf8(&told[..length]).unwrap().trim(), "READY=1");
}

/// An agent that answers, played by the test.
struct Agent;

impl Handler for Agent {
    fn handle(&self, _: Peer, _: Request, responder: &mut dyn Responder) {
        let status = RoleStatus { role: Role::Agent, machines: vec![], placements: vec![] };
        responder.send(&Response::Status { status }).unwrap();
    }
}

#[test]
fn a_stopped_target_is_named_soon_and_the_agent_shown_all_the_same() {
    let target = Target::start(|_, _| {});
    let runtime = target.base.path().join("run");
    let run = |words: &[&str]| {
        let began = Instant::now();
        let output = redoubt(&runtime).args(words).output().unwrap();
        // The promise is five seconds; a busy machine gets some more, the old thirty never pass.
        assert!(began.elapsed() < Duration::from_secs(15), "{words:?}: {:?}", began.elapsed());
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let named = format!("redoubt: the target behind {} does not answer", runtime.display());
    target.signal(Signal::SIGSTOP);
    std::thread::scope(|scope| {
        for (words, expected) in [
            (&["status"][..], 1),
            (&["points"], 1),
            (&["status", "--side", "target", "--json"], 1),
            (&["mark", "--timeout", "1s"], 4),
        ] {
            let (run, named) = (&run, &named);
            scope.spawn(move || {
                let (status, out, error) = run(words);
                assert_eq!((status, out.as_str()), (Some(expected), ""), "{words:?}");
                assert!(error.starts_with(named), "{words:?}: {error}");
            });
        }
    });
    let directory = RuntimeDirectory::new(&runtime);
    let _agent = Server::start(&directory, Role::Agent, Arc::new(Agent)).unwrap();
    let (status, out, error) = run(&["status", "--json"]);
    assert_eq!(
        (status, out.as_str()),
        (Some(1), "{\"role\":\"agent\",\"machines\":[],\"placements\":[]}\n")
    );
    assert!(error.starts_with(&named), "{error}");
    target.signal(Signal::SIGCONT);
    let (status, out, _) = run(&["status", "--json"]);
    assert_eq!((status, out.lines().count()), (Some(0), 2));
}
