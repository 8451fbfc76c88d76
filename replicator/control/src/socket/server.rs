//! The role's end of the socket: a thread that accepts, and one for each conversation, few of them.
//! It lets in root and the role's own user only, and never waits for a client that hangs.

use super::{CONVERSATION_LIMIT, LINE_PATIENCE, Line, REQUEST_LIMIT_BYTES, SocketError};
use crate::request::Request;
use crate::response::Response;
use crate::runtime::RuntimeDirectory;
use crate::status::Role;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{Shutdown, getsockopt, shutdown, sockopt::PeerCredentials};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Who asks: for the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The user.
    pub uid: u32,
    /// The process, while it lives.
    pub pid: i32,
}

/// What a role does with requests. Called from several threads at once, each call on a thread of
/// its own: it may block, and should send [`Response::Progress`] every few seconds while it works.
pub trait Handler: Send + Sync + 'static {
    /// Carries out one request. The last response ends it; without one the client is told that the
    /// role failed.
    fn handle(&self, peer: Peer, request: Request, responder: &mut dyn Responder);
}

/// Where a handler puts its responses.
pub trait Responder {
    /// Sends one response.
    ///
    /// # Errors
    /// The client has gone or hangs: the handler may stop its work.
    fn send(&mut self, response: &Response) -> Result<(), SocketError>;
}

/// A role's socket, served until this is dropped.
pub struct Server {
    path: PathBuf,
    listener: Arc<UnixListener>,
    accepting: Option<JoinHandle<()>>,
    _lock: Flock<File>,
}

impl Server {
    /// Binds the role's socket (0600) in the runtime directory, which must exist, and serves it. A
    /// socket left by a killed role is replaced; a lock beside it tells that from one that runs.
    ///
    /// # Errors
    /// [`SocketError::Occupied`] where such a role runs already; the directory is missing or not
    /// writable.
    pub fn start(
        directory: &RuntimeDirectory,
        role: Role,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, SocketError> {
        let path = directory.socket(role);
        let lock = lock(directory, role)?;
        let failed = |source| SocketError::Io { path: path.clone(), source };
        remove(&path).map_err(failed)?;
        let listener = UnixListener::bind(&path).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidInput => SocketError::TooLong { path: path.clone() },
            _ => failed(source),
        })?;
        fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
        let listener = Arc::new(listener);
        let accepting = {
            let (listener, path) = (Arc::clone(&listener), path.clone());
            let run = move || accept(&listener, &path, &handler);
            thread::Builder::new().name("control".into()).spawn(run).map_err(failed)?
        };
        Ok(Self { path, listener, accepting: Some(accepting), _lock: lock })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The path goes first: who connects from now on must find nobody rather than hang.
        if let Err(error) = remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the control socket stays behind");
        }
        if let Err(error) = shutdown(self.listener.as_raw_fd(), Shutdown::Both) {
            tracing::warn!(path = %self.path.display(), %error, "the control socket does not stop");
            return;
        }
        if self.accepting.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(path = %self.path.display(), "the control thread panicked");
        }
    }
}

fn lock(directory: &RuntimeDirectory, role: Role) -> Result<Flock<File>, SocketError> {
    let path = directory.path().join(format!("{role}.lock"));
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(|source| SocketError::Io { path: path.clone(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::Error::EWOULDBLOCK => {
            SocketError::Occupied { role, directory: directory.path().to_owned() }
        }
        other => SocketError::Io { path, source: other.into() },
    })
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Pause after a failed accept (too many open files): it must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

fn accept(listener: &UnixListener, path: &Path, handler: &Arc<dyn Handler>) {
    // Each conversation holds one clone; what is beyond the first counts them.
    let conversations = Arc::new(());
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            // What `shutdown` does to a listening socket.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a control connection failed");
                thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        let (path, handler) = (path.to_owned(), Arc::clone(handler));
        let busy = Arc::strong_count(&conversations) > CONVERSATION_LIMIT;
        let place = Arc::clone(&conversations);
        let converse = move || {
            let _place = place;
            if let Err(error) = converse(stream, path, handler.as_ref()) {
                tracing::debug!(%error, "a control conversation ended early");
            }
        };
        if busy {
            tracing::warn!(limit = CONVERSATION_LIMIT, "a control connection was turned away");
        } else if let Err(error) =
            thread::Builder::new().name("control-peer".into()).spawn(converse)
        {
            tracing::warn!(%error, "a control connection got no thread");
        }
    }
}

fn converse(stream: UnixStream, path: PathBuf, handler: &dyn Handler) -> Result<(), SocketError> {
    let failed = |source: nix::Error| SocketError::Io { path: path.clone(), source: source.into() };
    let credentials = getsockopt(&stream, PeerCredentials).map_err(failed)?;
    let peer = Peer { uid: credentials.uid(), pid: credentials.pid() };
    let mut line = Line::new(stream, path)?;
    if !may_ask(peer.uid, nix::unistd::geteuid().as_raw()) {
        tracing::warn!(uid = peer.uid, pid = peer.pid, "a control request of another user");
        return line.write(&Response::failed("only root and the role's own user may ask"));
    }
    let request = match line.read::<Request>(REQUEST_LIMIT_BYTES, LINE_PATIENCE) {
        Ok(request) => request,
        Err(error @ (SocketError::Malformed { .. } | SocketError::Oversized { .. })) => {
            return line.write(&Response::failed(error));
        }
        Err(error) => return Err(error),
    };
    let mut once = Once { line, ended: false };
    handler.handle(peer, request, &mut once);
    if once.ended {
        return Ok(());
    }
    once.line.write(&Response::failed("the role gave the request up: see its log"))
}

fn may_ask(peer: u32, own: u32) -> bool {
    peer == 0 || peer == own
}

/// Sends responses up to the last one.
struct Once {
    line: Line,
    ended: bool,
}

impl Responder for Once {
    fn send(&mut self, response: &Response) -> Result<(), SocketError> {
        assert!(!self.ended, "a handler answers nothing after its last response");
        self.ended = response.is_last();
        self.line.write(response)
    }
}

#[cfg(test)]
mod tests {
    use super::may_ask;

    #[test]
    fn only_root_and_the_own_user_may_ask() {
        assert!(may_ask(0, 1000) && may_ask(1000, 1000) && may_ask(0, 0));
        assert!(!may_ask(1001, 1000) && !may_ask(1000, 0));
    }
}
