//! What each role is started with, parsed and complete: defaults are filled in, nothing is left to
//! check but the world itself.

use crate::runtime::RuntimeDirectory;
use redoubt_log::Name;
use redoubt_log::name::NameError;
use serde::Deserialize;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Ring between kernel and agent: seconds of writes at 20 MB/s, so that a slow moment of the agent
/// costs no gap.
pub const RING_BYTES_DEFAULT: u64 = 64 << 20;
/// Sealed frames that the agent keeps until they are acknowledged: a third of its 96 MiB beside the
/// ring.
pub const WINDOW_BYTES_DEFAULT: u64 = 32 << 20;
/// Journal of one machine before catch-up is applied in steps: minutes of a busy machine.
pub const JOURNAL_BUDGET_BYTES_DEFAULT: u64 = 4 << 30;
/// A point every few seconds is the promise.
pub const POINT_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
/// How long points are kept.
pub const KEEP_DEFAULT: Duration = Duration::from_secs(3600);
/// How long a journal segment outlives its apply: not at all, for points are what most restore
/// from.
pub const JOURNAL_KEEP_DEFAULT: Duration = Duration::ZERO;
/// How long a token is good.
pub const INVITE_EXPIRES_DEFAULT: Duration = Duration::from_secs(3600);

/// What `redoubt agent` runs with.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Identity, epochs and locks.
    pub state: PathBuf,
    /// The token of an invitation: needed the first time, ignored later.
    pub token: Option<Token>,
    /// Disks to protect, beside those that the state directory remembers.
    pub disks: Vec<DiskArgument>,
    /// Where the socket stands.
    pub runtime: RuntimeDirectory,
    /// Size of the kernel's ring: a power of two.
    pub ring_bytes: u64,
    /// Bound of sealed frames that are not acknowledged.
    pub window_bytes: u64,
}

/// What `redoubt master-target` runs with.
#[derive(Clone, Debug)]
pub struct TargetOptions {
    /// Identity, journals, replica disks, retention.
    pub data: PathBuf,
    /// Where agents connect; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What tokens say instead of the listening address; always there when `listen` is a wildcard.
    pub advertise: Option<HostPort>,
    /// Time between two recovery points.
    pub point_interval: Duration,
    /// How long points are kept.
    pub keep: Duration,
    /// How long a journal segment outlives its apply.
    pub journal_keep: Duration,
    /// Bound of one machine's journal before catch-up is applied in steps.
    pub journal_budget_bytes: u64,
    /// Where the socket stands.
    pub runtime: RuntimeDirectory,
}

/// What `redoubt invite` makes a token from.
#[derive(Clone, Debug)]
pub struct InviteOptions {
    /// The target's directory.
    pub data: PathBuf,
    /// The name that the machine must take; else its host name.
    pub machine: Option<Name>,
    /// How long the token is good.
    pub expires: Duration,
}

/// What `redoubt inspect` runs with.
#[derive(Clone, Debug)]
pub struct InspectOptions {
    /// The target's directory.
    pub directory: PathBuf,
    /// Whether to finish first what an apply has left half done.
    pub finish: bool,
}

/// How a role's log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// A line of text for people.
    Text,
    /// A JSON object a line for programs.
    Json,
}

/// A disk to protect: `DEV` or `DEV=NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskArgument {
    /// The device node.
    pub device: PathBuf,
    /// The name to protect it under; else its stable device name.
    pub name: Option<Name>,
}

/// What is wrong with a disk argument.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskArgumentError {
    /// Not an absolute path.
    #[error("{text:?} is not a device: give an absolute path such as /dev/sda or /dev/sda=NAME")]
    Device {
        /// What was given.
        text: String,
    },
    /// The name behind the `=` is wrong.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl FromStr for DiskArgument {
    type Err = DiskArgumentError;

    fn from_str(text: &str) -> Result<Self, DiskArgumentError> {
        let (device, name) = match text.rsplit_once('=') {
            Some((device, name)) => (device, Some(name.parse()?)),
            None => (text, None),
        };
        if !device.starts_with('/') {
            return Err(DiskArgumentError::Device { text: text.to_owned() });
        }
        Ok(Self { device: device.into(), name })
    }
}

/// An address as agents must dial it: `host:port`, a literal address or a DNS name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Name or literal address, without brackets.
    pub host: String,
    /// Never 0.
    pub port: u16,
}

/// What is wrong with an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not HOST:PORT: write a name or address and a port, as in replica.example.org:7401"
)]
pub struct HostPortError {
    text: String,
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        let wrong = || HostPortError { text: text.to_owned() };
        if let Ok(address) = text.parse::<SocketAddr>() {
            let good = address.port() != 0 && !address.ip().is_unspecified();
            return if good { Ok(address.into()) } else { Err(wrong()) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
        let named = host.contains(|c: char| c.is_ascii_alphabetic());
        if !named || !host.chars().all(letter) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(out, "[{}]:{}", self.host, self.port),
            false => write!(out, "{}:{}", self.host, self.port),
        }
    }
}

/// A token's text: a secret, so it is never shown by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Wraps a token, without the white space around it.
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_may_have_a_name() {
        let plain: DiskArgument = "/dev/sda".parse().unwrap();
        assert_eq!((plain.device.to_str(), plain.name), (Some("/dev/sda"), None));
        let named: DiskArgument = "/dev/disk/by-id/a=b=data".parse().unwrap();
        assert_eq!(named.device.to_str(), Some("/dev/disk/by-id/a=b"));
        assert_eq!(named.name.unwrap().as_str(), "data");
        assert!("sda".parse::<DiskArgument>().unwrap_err().to_string().contains("/dev/sda"));
        assert!("/dev/sda=A!".parse::<DiskArgument>().unwrap_err().to_string().contains("a-z"));
    }

    #[test]
    fn addresses_can_be_dialled() {
        for good in ["replica.example.org:7401", "10.0.0.7:7401", "[fd00::7]:7401", "localhost:1"] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "host",
            "host:0",
            "0.0.0.0:7401",
            "[::]:7401",
            "a b:1",
            ":7401",
            "h:70000",
            "10.0.0.999:1",
        ] {
            assert!(
                bad.parse::<HostPort>().unwrap_err().to_string().contains("HOST:PORT"),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_token_is_not_shown_by_accident() {
        let token = Token::new(" secret\n");
        assert_eq!(token.expose(), "secret");
        assert!(!format!("{token:?}").contains("secret"));
    }
}
