//! What goes wrong between a machine and its site, in words that an operator can act on.

use crate::enrol::EnrolRefusalCode;
use quinn::ConnectionError;
use redoubt_log::Name;
use redoubt_log::frame::FrameError;
use redoubt_protocol::MessageError;
use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, TransportError>;

/// What goes wrong between a machine and its site.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A file of the identity cannot be read or written.
    #[error("{path}: {operation}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was attempted.
        operation: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the identity does not hold what it should.
    #[error(
        "{path}: {what}; restore the directory from a backup, or remove it and enrol again",
        path = path.display()
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A file of the identity was written by a later release.
    #[error(
        "{path}: has version {version}, this release knows up to {known}; use a newer redoubt",
        path = path.display()
    )]
    NewerVersion {
        /// Which.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// The newest version known here.
        known: u32,
    },
    /// The token's text is not one.
    #[error(
        "the token is mistyped ({what}): copy the whole last line that `redoubt invite` prints"
    )]
    MistypedToken {
        /// What is wrong.
        what: &'static str,
    },
    /// The target does not enrol the machine.
    #[error("{address} does not enrol this machine: {text}")]
    EnrolRefused {
        /// The target.
        address: String,
        /// For programs.
        code: EnrolRefusalCode,
        /// For people.
        text: String,
    },
    /// A machine of the site has the name that another is to be invited by.
    #[error(
        "machine {name} has joined this site already, and a name is given once: invite another \
         with `redoubt invite --machine OTHER`"
    )]
    NameTaken {
        /// The name.
        name: Name,
    },
    /// Nobody answers.
    #[error("{address} cannot be reached: {detail}")]
    Unreachable {
        /// The target.
        address: String,
        /// What was tried.
        detail: String,
    },
    /// Somebody answers, but not the site that was joined.
    #[error(
        "{address} does not belong to the site that this machine joined (or was invited to): \
         check the address, or enrol again with a new token"
    )]
    ForeignSite {
        /// Who answered.
        address: String,
    },
    /// The certificate of either side has ended.
    #[error(
        "the {whose} certificate has expired or is not valid yet: check both clocks; \
         if they are right, enrol the machine again"
    )]
    Expired {
        /// Whose.
        whose: &'static str,
    },
    /// The target does not know the certificate.
    #[error(
        "the target does not accept this machine's certificate: it is of another site; \
         enrol the machine again with a token of this one"
    )]
    ForeignMachine,
    /// The machine showed no certificate.
    #[error("the machine has no certificate: enrol it with a token")]
    NoCertificate,
    /// The connection is gone.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The other side closed the connection.
    #[error("closed by the other side: {0}")]
    Closed(String),
    /// The target knew this machine and does not know it any more.
    #[error("the target has let this machine go: {0}")]
    Removed(String),
    /// The other side breaks the protocol.
    #[error("the other side breaks the protocol: {0}; are both of one release?")]
    Protocol(String),
    /// A message of the control stream.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The local end cannot be set up.
    #[error("{what}: {detail}")]
    Setup {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        detail: String,
    },
}

/// The code with which a target closes the connection of a machine that it does not know any more.
pub(crate) const REMOVED_CODE: u32 = 2;

/// QUIC carries a TLS alert as an error code above this (RFC 9001, 4.8).
const CRYPTO_ERROR: u64 = 0x100;

impl TransportError {
    pub(crate) fn setup(what: &'static str, detail: impl ToString) -> Self {
        Self::Setup { what, detail: detail.to_string() }
    }

    /// What the end of a connection means. `address` is the target's at the machine's end, `None`
    /// at the target's.
    pub(crate) fn of_connection(error: &ConnectionError, address: Option<&str>) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => {
                let reason = String::from_utf8_lossy(&close.reason).into_owned();
                match close.error_code == REMOVED_CODE.into() {
                    true => Self::Removed(reason),
                    false => Self::Closed(reason),
                }
            }
            ConnectionError::ConnectionClosed(close) => {
                Self::of_alert(u64::from(close.error_code), false, address)
                    .unwrap_or_else(|| Self::Lost(error.to_string()))
            }
            ConnectionError::TransportError(local) => {
                Self::of_alert(u64::from(local.code), true, address)
                    .unwrap_or_else(|| Self::Lost(error.to_string()))
            }
            _ => Self::Lost(error.to_string()),
        }
    }

    /// What a TLS alert (RFC 8446, 6.2) means, raised by this side about the other's certificate,
    /// or the reverse.
    fn of_alert(code: u64, raised_here: bool, address: Option<&str>) -> Option<Self> {
        let about_machine = raised_here == address.is_none();
        match code.checked_sub(CRYPTO_ERROR)? {
            45 => {
                Some(Self::Expired { whose: if about_machine { "machine's" } else { "target's" } })
            }
            42 | 46 | 48 | 51 if about_machine => Some(Self::ForeignMachine),
            42 | 46 | 48 | 51 => {
                Some(Self::ForeignSite { address: address.unwrap_or("the target").to_owned() })
            }
            116 => Some(Self::NoCertificate),
            _ => None,
        }
    }

    pub(crate) fn of_read(error: quinn::ReadExactError) -> Self {
        match error {
            quinn::ReadExactError::FinishedEarly(bytes) => {
                Self::Lost(format!("a stream ended after {bytes} bytes, in the middle"))
            }
            quinn::ReadExactError::ReadError(error) => Self::of_read_error(&error),
        }
    }

    pub(crate) fn of_read_error(error: &quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::ConnectionLost(error) => Self::of_connection(error, None),
            other => Self::Lost(other.to_string()),
        }
    }

    pub(crate) fn of_write(error: &quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::ConnectionLost(error) => Self::of_connection(error, None),
            other => Self::Lost(other.to_string()),
        }
    }
}
