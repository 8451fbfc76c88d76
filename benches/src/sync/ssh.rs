//! Copies over ssh, to a server of our own with keys of its own on a port of loopback. It must
//! never touch the machine's own ssh server, nor anybody's keys or known hosts.

use super::nbd::{free_port, wait_until_listening};
use super::{Job, Sample};
use crate::process::{Running, command};
use anyhow::{Context, Result};
use redoubt_e2e::command::run;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where sshd locks its unprivileged half in; Debian makes it when its own server starts.
const PRIVILEGE_DIRECTORY: &str = "/run/sshd";

/// How the bytes are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// By rsync, which keeps holes and syncs the file.
    Rsync,
    /// By dd and lz4, the other dd keeping holes and syncing.
    DdLz4,
}

/// The keys of server and user.
pub struct SshKeys {
    directory: PathBuf,
}

impl SshKeys {
    /// New ones.
    pub fn make(directory: &Path) -> Result<Self> {
        for name in ["host", "user"] {
            let key = directory.join(name).display().to_string();
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key])?;
        }
        Ok(Self { directory: directory.to_owned() })
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// Writes both sides' configuration for a server on a port; the paths of the two.
    fn configure(&self, room: &Path, port: u16) -> Result<(PathBuf, PathBuf)> {
        let (server, client) = (room.join("sshd_config"), room.join("ssh_config"));
        let known = room.join("known_hosts");
        fs::write(
            &server,
            format!(
                "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nAuthorizedKeysFile {}\n\
                 PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
                 PermitRootLogin prohibit-password\n",
                self.file("host"),
                self.file("user.pub")
            ),
        )?;
        let public = fs::read_to_string(self.file("host.pub"))?;
        fs::write(&known, format!("sink {public}"))?;
        fs::write(
            &client,
            format!(
                "Host sink\nHostName 127.0.0.1\nPort {port}\nUser root\nIdentityFile {}\n\
                 IdentitiesOnly yes\nUserKnownHostsFile {}\nGlobalKnownHostsFile /dev/null\n\
                 StrictHostKeyChecking yes\nBatchMode yes\nHostKeyAlias sink\n",
                self.file("user"),
                known.display()
            ),
        )?;
        Ok((server, client))
    }
}

/// The directory without which sshd does not start; taken away again where it was missing.
struct PrivilegeDirectory {
    is_ours: bool,
}

impl PrivilegeDirectory {
    fn ensure() -> Result<Self> {
        match fs::create_dir(PRIVILEGE_DIRECTORY) {
            Ok(()) => Ok(Self { is_ours: true }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Self { is_ours: false }),
            Err(error) => Err(error).context(PRIVILEGE_DIRECTORY),
        }
    }
}

impl Drop for PrivilegeDirectory {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = fs::remove_dir(PRIVILEGE_DIRECTORY)
        {
            eprintln!("cannot remove {PRIVILEGE_DIRECTORY}: {error}");
        }
    }
}

/// Starts the server, times the copy with its login, ends the server, compares.
pub fn copy(job: &Job<'_>, transfer: Transfer) -> Result<Sample> {
    let keys = job.keys.ssh.as_ref().context("no keys for ssh were made")?;
    let port = free_port()?;
    let (server_config, client_config) = keys.configure(job.room, port)?;
    let _directory = PrivilegeDirectory::ensure()?;
    let (log, sink) = (job.room.join("log"), job.room.join("sink.img"));
    let mut server = command(&job.group.launcher(), "sshd")?;
    server.args(["-D", "-e", "-f"]).arg(server_config);
    let mut server = Running::start("sshd", &mut server, &log)?;
    wait_until_listening(&mut server, port)?;
    let meter = job.group.measure();
    let began = Instant::now();
    match transfer {
        Transfer::Rsync => rsync(job, &client_config, &sink, &log)?,
        Transfer::DdLz4 => dd_lz4(job, &client_config, &sink, &log)?,
    }
    let whole = began.elapsed();
    let cost = meter.finish()?;
    server.end()?;
    job.source.expect_equal(&sink)?;
    Ok(Sample { whole, cost, own: None })
}

fn rsync(job: &Job<'_>, client: &Path, sink: &Path, log: &Path) -> Result<()> {
    let mut rsync = command(&job.group.launcher(), "rsync")?;
    rsync.args(["--inplace", "--sparse", "--fsync", "--copy-devices", "-e"]);
    rsync.arg(format!("ssh -F {}", client.display())).arg(job.source.device());
    rsync.arg(format!("sink:{}", sink.display()));
    Running::start("rsync", &mut rsync, log)?.finish(job.within)
}

fn dd_lz4(job: &Job<'_>, client: &Path, sink: &Path, log: &Path) -> Result<()> {
    let launcher = job.group.launcher();
    let mut read = command(&launcher, "dd")?;
    read.arg(format!("if={}", job.source.device().display()));
    read.args(["bs=1M", "iflag=direct", "status=none"]);
    let mut compress = command(&launcher, "lz4")?;
    compress.args(["-q", "-c", "-"]);
    let mut carry = command(&launcher, "ssh")?;
    let write = format!(
        "lz4 -q -dc - | dd of={} bs=1M iflag=fullblock conv=sparse,fsync status=none",
        sink.display()
    );
    carry.arg("-F").arg(client).arg("sink").arg(write);
    let (read, data) = Running::start_between("dd", &mut read, None, true, log)?;
    let (compress, data) = Running::start_between("lz4", &mut compress, data, true, log)?;
    let (carry, _) = Running::start_between("ssh", &mut carry, data, false, log)?;
    for part in [read, compress, carry] {
        part.finish(job.within)?;
    }
    Ok(())
}
