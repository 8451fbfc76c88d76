//! Who copies a disk, what each of them needs, and the keys that they talk under. It must never
//! leave out a contender without saying so.

use super::ssh::{SshKeys, Transfer};
use super::{Job, Sample, nbd, redoubt, ssh};
use crate::process::missing;
use anyhow::Result;
use redoubt_e2e::command::run;
use std::fs;
use std::path::{Path, PathBuf};

/// Who copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Contender {
    /// The product: a target, and an agent's initial sync.
    Redoubt,
    /// nbdcopy to an nbdkit server.
    Nbdcopy,
    /// The same over TLS with certificates on both sides.
    NbdcopyTls,
    /// qemu-img convert to a qemu-nbd server.
    QemuImg,
    /// rsync over ssh.
    Rsync,
    /// dd, compressed by lz4, over ssh.
    DdLz4Ssh,
}

const NBDKIT: (&str, &str) = ("nbdkit", "nbdkit");
const NBDCOPY: (&str, &str) = ("nbdcopy", "libnbd-bin");
const SSH: [(&str, &str); 3] =
    [("sshd", "openssh-server"), ("ssh", "openssh-client"), ("ssh-keygen", "openssh-client")];

impl Contender {
    /// The ones asked for; all where none is.
    pub fn asked(only: &[Self]) -> Vec<Self> {
        let all = <Self as clap::ValueEnum>::value_variants();
        let is_asked = |contender: &&Self| only.is_empty() || only.contains(contender);
        all.iter().filter(is_asked).copied().collect()
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Redoubt => "redoubt",
            Self::Nbdcopy => "nbdcopy",
            Self::NbdcopyTls => "nbdcopy, TLS",
            Self::QemuImg => "qemu-img convert",
            Self::Rsync => "rsync --inplace, ssh",
            Self::DdLz4Ssh => "dd | lz4 | ssh",
        }
    }

    /// What is not installed of what it needs, and the packages that bring it.
    pub fn missing(self) -> Option<String> {
        let needed: Vec<(&str, &str)> = match self {
            Self::Redoubt => Vec::new(),
            Self::Nbdcopy => vec![NBDKIT, NBDCOPY],
            Self::NbdcopyTls => vec![NBDKIT, NBDCOPY, ("certtool", "gnutls-bin")],
            Self::QemuImg => vec![("qemu-img", "qemu-utils"), ("qemu-nbd", "qemu-utils")],
            Self::Rsync => [("rsync", "rsync")].into_iter().chain(SSH).collect(),
            Self::DdLz4Ssh => [("lz4", "lz4")].into_iter().chain(SSH).collect(),
        };
        missing(self.name(), &needed)
    }

    /// Copies the disk once.
    pub(super) fn copy(self, job: &Job<'_>) -> Result<Sample> {
        match self {
            Self::Redoubt => redoubt::copy(job),
            Self::Nbdcopy => nbd::nbdcopy(job, None),
            Self::NbdcopyTls => nbd::nbdcopy(job, job.keys.tls.as_deref()),
            Self::QemuImg => nbd::qemu_img(job),
            Self::Rsync => ssh::copy(job, Transfer::Rsync),
            Self::DdLz4Ssh => ssh::copy(job, Transfer::DdLz4),
        }
    }

    fn needs_ssh(self) -> bool {
        matches!(self, Self::Rsync | Self::DdLz4Ssh)
    }
}

/// What the contenders that need any identify themselves with; gone with the run's directory.
pub struct Keys {
    tls: Option<PathBuf>,
    pub ssh: Option<SshKeys>,
}

impl Keys {
    /// Makes what these contenders need.
    pub fn make(directory: &Path, contenders: &[Contender]) -> Result<Self> {
        fs::create_dir(directory)?;
        let tls = contenders.contains(&Contender::NbdcopyTls).then(|| certificates(directory));
        let needs_ssh = contenders.iter().any(|contender| contender.needs_ssh());
        let ssh = needs_ssh.then(|| SshKeys::make(directory));
        Ok(Self { tls: tls.transpose()?, ssh: ssh.transpose()? })
    }
}

/// An authority, and a certificate by it for each side, under the names that GnuTLS looks for.
fn certificates(directory: &Path) -> Result<PathBuf> {
    let path = |name: &str| directory.join(name).display().to_string();
    let sides = [
        ("ca", "ca\ncert_signing_key"),
        ("server", "ip_address = 127.0.0.1\ntls_www_server\nsigning_key"),
        ("client", "tls_www_client\nsigning_key"),
    ];
    for (side, template) in sides {
        let (key, info) = (path(&format!("{side}-key.pem")), path(&format!("{side}.info")));
        let common = format!("cn = \"redoubt bench {side}\"\nexpiration_days = 2\n{template}\n");
        fs::write(&info, common)?;
        run("certtool", &["--generate-privkey", "--key-type=ecdsa", "--outfile", &key])?;
        let mut make = vec!["--generate-self-signed".to_owned()];
        if side != "ca" {
            let authority = ["--load-ca-certificate", "--load-ca-privkey"];
            make = vec!["--generate-certificate".to_owned()];
            for (option, file) in authority.into_iter().zip(["ca-cert.pem", "ca-key.pem"]) {
                make.extend([option.to_owned(), path(file)]);
            }
        }
        make.extend(["--load-privkey".to_owned(), key, "--template".to_owned(), info]);
        make.extend(["--outfile".to_owned(), path(&format!("{side}-cert.pem"))]);
        run("certtool", &make)?;
    }
    Ok(directory.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_choice_everybody_takes_part() {
        assert_eq!(Contender::asked(&[]).len(), 6);
        assert_eq!(Contender::asked(&[Contender::Rsync]), [Contender::Rsync]);
    }
}
