//! How an error becomes an exit status and a message. It never hides a cause.

use redoubt_control::config::ConfigError;
use redoubt_control::{ExitStatus, SocketError};

/// A failure of a known class.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// How the command ends.
    pub status: ExitStatus,
    /// Why, and what can be done.
    pub message: String,
}

/// The error that the command line or a configuration is wrong.
#[cfg(any(feature = "target", test))]
pub fn usage(message: impl ToString) -> anyhow::Error {
    Failure { status: ExitStatus::Usage, message: message.to_string() }.into()
}

/// How the command ends because of the error.
pub fn exit_status(error: &anyhow::Error) -> ExitStatus {
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.status;
        }
        if let Some(socket) = cause.downcast_ref::<SocketError>() {
            return socket.exit_status();
        }
        if cause.is::<ConfigError>() {
            return ExitStatus::Usage;
        }
    }
    ExitStatus::Failed
}

/// The message and its causes in one line; a cause that the message already tells is not told
/// again.
pub fn explain(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |told, cause| {
        let text = cause.to_string();
        match () {
            () if told.is_empty() => text,
            () if told.contains(&text) => told,
            () => format!("{told}: {text}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;
    use redoubt_control::Role;

    #[test]
    fn classes_are_found_below_context() {
        let socket = SocketError::NoRole { role: Role::Agent, directory: "/run/x".into() };
        assert_eq!(exit_status(&anyhow::Error::from(socket).context("status")), ExitStatus::NoRole);
        assert_eq!(exit_status(&usage("bad")), ExitStatus::Usage);
        assert_eq!(exit_status(&anyhow!("other")), ExitStatus::Failed);
    }

    #[test]
    fn causes_are_told_once() {
        let error = anyhow!("no space").context("disk sda: no space").context("copy-out");
        assert_eq!(explain(&error), "copy-out: disk sda: no space");
    }
}
