//! A line between two network namespaces that can be cut: the caller's thread stands at one end,
//! what it launches through here at the other. It must never touch the machine's own network.

use crate::command::{run, wait_until};
use anyhow::{Context, Result};
use nix::sched::CloneFlags;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const HOLDER_WITHIN: Duration = Duration::from_secs(20);
const NEAR: &str = "10.85.0.1";
const FAR: &str = "10.85.0.2";

/// The line; both its ends are gone with the owner and its thread.
pub struct Line {
    /// Holds the namespace of the far end.
    holder: Child,
}

impl Line {
    /// Takes the calling thread, and what it starts from now on, into a network of its own, and
    /// makes the far end.
    pub fn lay() -> Result<Self> {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).context("cannot leave the network")?;
        let here = fs::read_link("/proc/thread-self/ns/net")?;
        let mut holder = Command::new("setpriv");
        holder.args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]);
        let holder = holder.stdin(Stdio::null()).spawn().context("cannot run unshare")?;
        let line = Self { holder };
        wait_until("the far network", HOLDER_WITHIN, || {
            Ok((fs::read_link(line.namespace())? != here).then_some(()))
        })?;
        let far = line.holder.id().to_string();
        ip("link set lo up")?;
        ip(&format!("link add near type veth peer name far netns {far}"))?;
        ip(&format!("address add {NEAR}/30 dev near"))?;
        ip("link set near up")?;
        for command in
            ["link set lo up", &format!("address add {FAR}/30 dev far"), "link set far up"]
        {
            let mut words = line.words();
            words.push("ip".to_owned());
            words.extend(command.split(' ').map(str::to_owned));
            run(&words[0], &words[1..])?;
        }
        Ok(line)
    }

    /// The address of the near end.
    pub fn near_address(&self) -> &'static str {
        NEAR
    }

    /// What a command at the far end begins with.
    pub fn words(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net={}", self.namespace().display())]
    }

    /// Nothing comes through any more.
    pub fn cut(&self) -> Result<()> {
        ip("link set near down")
    }

    /// It is whole again.
    pub fn mend(&self) -> Result<()> {
        ip("link set near up")
    }

    fn namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Err(error) = self.holder.kill().and_then(|()| self.holder.wait()) {
            eprintln!("cannot end the far network: {error}");
        }
    }
}

fn ip(arguments: &str) -> Result<()> {
    run("ip", &arguments.split(' ').collect::<Vec<_>>()).map(drop)
}
