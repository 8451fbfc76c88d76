//! The command's end of the socket. It never starts or stops a role.

use super::{Line, RESPONSE_LIMIT_BYTES, SocketError};
use crate::request::Request;
use crate::response::Response;
use crate::runtime::RuntimeDirectory;
use crate::status::Role;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A connection to a role, good for one request.
pub struct Client {
    line: Line,
}

impl Client {
    /// Connects to a role behind the runtime directory.
    ///
    /// # Errors
    /// [`SocketError::NoRole`] where nobody listens, [`SocketError::Refused`] where this user may
    /// not.
    pub fn connect(directory: &RuntimeDirectory, role: Role) -> Result<Self, SocketError> {
        let path = directory.socket(role);
        match UnixStream::connect(&path) {
            Ok(stream) => Ok(Self { line: Line::new(stream, path)? }),
            Err(source) => Err(match source.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => {
                    SocketError::NoRole { role, directory: directory.path().to_owned() }
                }
                ErrorKind::PermissionDenied => SocketError::Refused { role, path },
                ErrorKind::InvalidInput => SocketError::TooLong { path },
                _ => SocketError::Io { path, source },
            }),
        }
    }

    /// Sends the request and waits for the response that ends it, at most `patience` between two
    /// lines; every [`Response::Progress`] on the way goes to `progress`.
    ///
    /// # Errors
    /// The role went away, kept silent or spoke another language; a [`Response::Failed`] is no
    /// error here.
    pub fn call(
        mut self,
        request: &Request,
        patience: Duration,
        progress: &mut dyn FnMut(&Response),
    ) -> Result<Response, SocketError> {
        self.line.write(request)?;
        loop {
            let response: Response = self.line.read(RESPONSE_LIMIT_BYTES, patience)?;
            if response.is_last() {
                return Ok(response);
            }
            progress(&response);
        }
    }
}

/// The roles that run behind a runtime directory.
///
/// # Errors
/// A socket is there but cannot be used; that nobody listens is no error.
pub fn answering_roles(directory: &RuntimeDirectory) -> Result<Vec<Role>, SocketError> {
    let mut roles = Vec::new();
    for role in [Role::Agent, Role::Target] {
        match Client::connect(directory, role) {
            Ok(_) => roles.push(role),
            Err(SocketError::NoRole { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(roles)
}
