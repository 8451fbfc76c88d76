//! The command's end of the socket. It never starts or stops a role.

use super::{Line, RESPONSE_LIMIT_BYTES, SocketError};
use crate::request::Request;
use crate::response::Response;
use crate::runtime::RuntimeDirectory;
use crate::status::Role;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, setsockopt, socket, sockopt::SendTimeout,
};
use nix::sys::time::TimeVal;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A role accepts at once; one whose queue stays full for so long hangs.
const CONNECT_SECONDS: i64 = 3;

/// A connection to a role, good for one request.
pub struct Client {
    line: Line,
    role: Role,
    directory: RuntimeDirectory,
}

impl Client {
    /// Connects to a role behind the runtime directory.
    ///
    /// # Errors
    /// [`SocketError::NoRole`] where nobody listens, [`SocketError::Refused`] where this user may
    /// not, [`SocketError::Hangs`] where nobody accepts.
    pub fn connect(directory: &RuntimeDirectory, role: Role) -> Result<Self, SocketError> {
        let path = directory.socket(role);
        match connect(&path) {
            Ok(stream) => {
                Ok(Self { line: Line::new(stream, path)?, role, directory: directory.clone() })
            }
            Err(source) => Err(match source.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => {
                    SocketError::NoRole { role, directory: directory.path().to_owned() }
                }
                ErrorKind::PermissionDenied => SocketError::Refused { role, path },
                ErrorKind::WouldBlock => {
                    SocketError::Hangs { role, directory: directory.path().to_owned() }
                }
                _ if source.raw_os_error() == Some(nix::errno::Errno::ENAMETOOLONG as i32) => {
                    SocketError::TooLong { path }
                }
                _ => SocketError::Io { path, source },
            }),
        }
    }

    /// Sends the request and waits for the response that ends it, at most `patience` between two
    /// lines; every [`Response::Progress`] on the way goes to `progress`.
    ///
    /// # Errors
    /// The role went away, hangs or spoke another language; a [`Response::Failed`] is no error
    /// here.
    pub fn call(
        mut self,
        request: &Request,
        patience: Duration,
        progress: &mut dyn FnMut(&Response),
    ) -> Result<Response, SocketError> {
        self.converse(request, patience, progress).map_err(|error| match error {
            SocketError::Silent { .. } => {
                SocketError::Hangs { role: self.role, directory: self.directory.path().to_owned() }
            }
            other => other,
        })
    }

    fn converse(
        &mut self,
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

/// Connects, and does not wait for ever where the other end accepts nobody: the kernel puts the
/// socket's send timeout on its connect, too.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, SendTimeout, &TimeVal::new(CONNECT_SECONDS, 0))?;
    nix::sys::socket::connect(socket.as_raw_fd(), &address)?;
    Ok(socket.into())
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
