//! A real master target as a service manager, an operator and a script see it: it needs no root.
//! It must leave no process behind.
#![cfg(feature = "target")]
// Helpers outside of test functions may panic like these: a role that does not start is a failure.
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic as the test itself may")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

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
