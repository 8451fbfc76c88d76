//! Copies to an NBD server in front of the sink, which ends by a flush. It must never leave a
//! server behind.

use super::{Job, Sample};
use crate::place::empty_sink;
use crate::process::{Running, command};
use crate::watched::wait_for;
use anyhow::{Context, Result};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// From the start of a server until it listens.
const LISTENS_WITHIN: Duration = Duration::from_secs(20);

/// nbdcopy to nbdkit; over TLS where there is a directory of certificates. The sink is known to be
/// empty, as a replica is.
pub fn nbdcopy(job: &Job<'_>, certificates: Option<&Path>) -> Result<Sample> {
    let port = free_port()?;
    let sink = empty_sink(job.room, job.source.bytes())?;
    let mut server = command(&job.group.launcher(), "nbdkit")?;
    server.args(["--foreground", "--exit-with-parent", "--ipaddr", "127.0.0.1", "--port"]);
    server.arg(port.to_string());
    let mut export = format!("nbd://127.0.0.1:{port}");
    if let Some(directory) = certificates {
        let directory = directory.display();
        server.args(["--tls=require", "--tls-verify-peer"]);
        server.arg(format!("--tls-certificates={directory}"));
        export = format!("nbds://127.0.0.1:{port}/?tls-certificates={directory}");
    }
    server.arg("file").arg(format!("file={}", sink.display()));
    let mut copy = command(&job.group.launcher(), "nbdcopy")?;
    copy.args(["--flush", "--destination-is-zero"]).arg(job.source.device()).arg(export);
    through(job, port, ("nbdkit", &mut server), ("nbdcopy", &mut copy), &sink)
}

/// qemu-img convert to qemu-nbd, with as many requests at once as it can, in any order.
pub fn qemu_img(job: &Job<'_>) -> Result<Sample> {
    let port = free_port()?;
    let sink = empty_sink(job.room, job.source.bytes())?;
    let mut server = command(&job.group.launcher(), "qemu-nbd")?;
    server.args(["--format=raw", "--persistent", "--bind=127.0.0.1", "--discard=unmap"]);
    server.arg(format!("--port={port}")).arg(&sink);
    let mut copy = command(&job.group.launcher(), "qemu-img")?;
    copy.args(["convert", "-n", "--target-is-zero", "-m", "16", "-W", "-f", "raw", "-O", "raw"]);
    copy.arg(job.source.device()).arg(format!("nbd://127.0.0.1:{port}"));
    through(job, port, ("qemu-nbd", &mut server), ("qemu-img", &mut copy), &sink)
}

/// Starts the server, times the copy, ends the server, compares.
fn through(
    job: &Job<'_>,
    port: u16,
    (server_name, server): (&str, &mut Command),
    (name, copy): (&str, &mut Command),
    sink: &Path,
) -> Result<Sample> {
    let log = job.room.join("log");
    let mut server = Running::start(server_name, server, &log)?;
    wait_until_listening(&mut server, port)?;
    let meter = job.group.measure();
    let began = Instant::now();
    Running::start(name, copy, &log)?.finish(job.within)?;
    let whole = began.elapsed();
    let cost = meter.finish()?;
    server.end()?;
    job.source.expect_equal(sink)?;
    Ok(Sample { whole, cost, own: None })
}

/// A port of loopback that nobody listens on now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Waits until a server listens, without connecting: some count their connections.
pub fn wait_until_listening(server: &mut Running, port: u16) -> Result<()> {
    wait_for("a server that listens", LISTENS_WITHIN, || {
        server.expect_alive()?;
        let table = std::fs::read_to_string("/proc/net/tcp").context("/proc/net/tcp")?;
        Ok(is_listening(&table, port))
    })
}

/// State 0A is LISTEN; addresses and ports are hexadecimal.
fn is_listening(table: &str, port: u16) -> bool {
    let port = format!(":{port:04X}");
    table.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(1).is_some_and(|local| local.ends_with(&port)) && words.get(3) == Some(&"0A")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_seen_and_a_free_port_has_none() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let table = || std::fs::read_to_string("/proc/net/tcp").unwrap();
        assert!(is_listening(&table(), port));
        drop(listener);
        assert!(!is_listening(&table(), port));
    }
}
