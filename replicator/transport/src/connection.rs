//! One connection between a machine and its target: a control stream of messages, and streams of
//! bulk data. It never looks into a message or a frame further than their lengths.

use crate::agent_identity::AgentIdentity;
use crate::certificate::SERVER_NAME;
use crate::error::{Result, TransportError};
use crate::streams::{FrameSender, InStream, PointSender};
use crate::tls;
use nix::sys::socket::{setsockopt, sockopt};
use quinn::{RecvStream, SendStream};
use redoubt_log::frame::FRAME_STORED_LIMIT;
use redoubt_protocol::message::{
    LENGTH_BYTES, MESSAGE_LIMIT, RequestId, body_length, decode, encode,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// Bytes that may be on their way on a connection: what a target holds of one machine at most, and
/// enough for 4 Gbit/s over 80 ms.
pub const CONNECTION_WINDOW_BYTES: u32 = 40 << 20;

/// Frames that a target lets an agent have on their way; all of them together fit into the
/// connection's window, so that the frame which is missing is never the one that does not fit.
pub const DEFAULT_WINDOW_FRAMES: u32 = 32;

const _: () = assert!(
    DEFAULT_WINDOW_FRAMES as usize * FRAME_STORED_LIMIT <= CONNECTION_WINDOW_BYTES as usize
);

/// Longest handshake, of a machine that joins its answer included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Buffer of the UDP socket: bursts of a few milliseconds at 10 Gbit/s. The system may grant less.
const SOCKET_BYTES: usize = 4 << 20;

/// First bytes of the control stream in both directions: proof that each side has accepted the
/// other.
const PREFACE: [u8; 4] = *b"RDC1";

/// One connection, before it is taken apart.
pub struct Connection {
    handle: ConnectionHandle,
    out: SendStream,
    back: RecvStream,
}

/// A connection's parts, for tasks of their own. `Out` and `In` are the messages of the two
/// directions.
pub struct Parts<Out, In> {
    /// Says messages.
    pub sender: MessageSender<Out>,
    /// Hears messages.
    pub receiver: MessageReceiver<In>,
    /// Everything else.
    pub handle: ConnectionHandle,
}

/// A connection's streams of bulk data, and its end. Clones are the same connection.
#[derive(Clone)]
pub struct ConnectionHandle {
    connection: quinn::Connection,
    /// Kept while the connection is: an agent's endpoint serves one connection.
    _endpoint: Option<quinn::Endpoint>,
}

/// Says messages.
pub struct MessageSender<Out> {
    stream: SendStream,
    messages: PhantomData<fn(Out)>,
}

/// Hears messages.
pub struct MessageReceiver<In> {
    stream: RecvStream,
    messages: PhantomData<fn() -> In>,
}

/// Connects a machine to its target; once it returns, the target has accepted the machine.
pub async fn connect(identity: &AgentIdentity, address: &str) -> Result<Connection> {
    let (endpoint, connection) = dial(address, tls::client(identity)?).await?;
    let opened = async {
        let (mut out, mut back) = connection
            .open_bi()
            .await
            .map_err(|error| TransportError::of_connection(&error, Some(address)))?;
        out.write_all(&PREFACE).await.map_err(|error| TransportError::of_write(&error))?;
        read_preface(&mut back).await?;
        Ok((out, back))
    };
    let opened = tokio::time::timeout(CONNECT_TIMEOUT, opened).await;
    match opened.unwrap_or_else(|_| Err(TransportError::Lost("no answer".to_owned()))) {
        Ok((out, back)) => {
            let handle = ConnectionHandle { connection, _endpoint: Some(endpoint) };
            Ok(Connection { handle, out, back })
        }
        // Why a stream failed says the connection, and that only.
        Err(error) => Err(match connection.close_reason() {
            Some(reason) => TransportError::of_connection(&reason, Some(address)),
            None => error,
        }),
    }
}

impl Connection {
    pub(crate) async fn accepted(connection: quinn::Connection) -> Result<Self> {
        let lost = |error| TransportError::of_connection(&error, None);
        let (mut out, mut back) = connection.accept_bi().await.map_err(lost)?;
        read_preface(&mut back).await?;
        out.write_all(&PREFACE).await.map_err(|error| TransportError::of_write(&error))?;
        // Acknowledgements never wait behind a point that is being copied out.
        out.set_priority(1).map_err(|error| TransportError::Lost(error.to_string()))?;
        let handle = ConnectionHandle { connection, _endpoint: None };
        Ok(Self { handle, out, back })
    }

    /// As [`ConnectionHandle::trust`].
    pub fn trust(&self) {
        self.handle.trust();
    }

    /// Takes it apart, with the messages of this end: an agent says `AgentMessage` and hears
    /// `TargetMessage`.
    pub fn into_parts<Out: Serialize, In: DeserializeOwned>(self) -> Parts<Out, In> {
        Parts {
            sender: MessageSender { stream: self.out, messages: PhantomData },
            receiver: MessageReceiver { stream: self.back, messages: PhantomData },
            handle: self.handle,
        }
    }
}

impl<Out: Serialize> MessageSender<Out> {
    /// Says a message. Must be awaited to its end: half a message ruins the stream.
    pub async fn send(&mut self, message: &Out) -> Result<()> {
        write_message(&mut self.stream, message).await
    }

    /// Says no more, and waits until the other side has received what was said: a connection that
    /// is closed before that takes it along.
    pub async fn finish(mut self) -> Result<()> {
        // It was finished already only where the connection has gone.
        let _ = self.stream.finish();
        match self.stream.stopped().await {
            Ok(_) => Ok(()),
            Err(error) => Err(TransportError::Lost(error.to_string())),
        }
    }
}

impl<In: DeserializeOwned> MessageReceiver<In> {
    /// Hears the next message. Must be awaited to its end, so it belongs into a task of its own.
    pub async fn receive(&mut self) -> Result<In> {
        read_message(&mut self.stream).await
    }
}

impl ConnectionHandle {
    /// Opens a stream for frames.
    pub async fn open_frames(&self) -> Result<FrameSender> {
        FrameSender::open(self.open().await?).await
    }

    /// Opens a stream for a point's content, as the answer to the request.
    pub async fn open_point(&self, request: RequestId) -> Result<PointSender> {
        PointSender::open(self.open().await?, request).await
    }

    /// The next stream that the other side opens. All are to be read all the time, each in a task
    /// of its own.
    pub async fn accept_stream(&self) -> Result<InStream> {
        let lost = |error| TransportError::of_connection(&error, None);
        InStream::accept(self.connection.accept_uni().await.map_err(lost)?).await
    }

    /// Lets the other side have a window's frames on their way: it has a session now, and a machine
    /// has one.
    pub fn trust(&self) {
        tls::trust(&self.connection);
    }

    /// Where the other side is.
    pub fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Round trip as it is now.
    pub fn round_trip(&self) -> Duration {
        self.connection.rtt()
    }

    /// Ends the connection; the reason is told to the other side. What was not acknowledged may not
    /// arrive.
    pub fn close(&self, reason: &str) {
        self.connection.close(0u32.into(), reason.as_bytes());
    }

    /// Waits for the end of the connection: why it ended.
    pub async fn closed(&self) -> TransportError {
        TransportError::of_connection(&self.connection.closed().await, None)
    }

    async fn open(&self) -> Result<SendStream> {
        let lost = |error| TransportError::of_connection(&error, None);
        self.connection.open_uni().await.map_err(lost)
    }
}

/// Reaches a target, at any of the addresses of its name.
pub(crate) async fn dial(
    address: &str,
    config: quinn::ClientConfig,
) -> Result<(quinn::Endpoint, quinn::Connection)> {
    let unreachable =
        |detail: String| TransportError::Unreachable { address: address.to_owned(), detail };
    let found = tokio::net::lookup_host(address).await;
    let found = found.map_err(|error| unreachable(format!("its name is not found: {error}")))?;
    let mut last = unreachable("its name has no address".to_owned());
    for remote in found {
        let local: SocketAddr = match remote {
            SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let endpoint = socket(local, None)?;
        let connecting = endpoint
            .connect_with(config.clone(), remote, SERVER_NAME)
            .map_err(|error| unreachable(error.to_string()))?;
        last = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => return Ok((endpoint, connection)),
            Ok(Err(error)) => match TransportError::of_connection(&error, Some(address)) {
                TransportError::Lost(detail) => unreachable(detail),
                // Somebody is there: other addresses of the name will not say anything else.
                told => return Err(told),
            },
            Err(_) => unreachable(format!("no answer from {remote}: is UDP let through?")),
        };
    }
    Err(last)
}

/// An endpoint on a socket with large buffers.
pub(crate) fn socket(
    address: SocketAddr,
    server: Option<quinn::ServerConfig>,
) -> Result<quinn::Endpoint> {
    let setup = |error: std::io::Error| {
        TransportError::setup("open the UDP socket", format!("{address}: {error}"))
    };
    let socket = UdpSocket::bind(address).map_err(setup)?;
    // Root may go over the system's limit, which is far too small for a burst.
    for granted in [
        setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BYTES)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BYTES)),
        setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BYTES)
            .or_else(|_| setsockopt(&socket, sockopt::SndBuf, &SOCKET_BYTES)),
    ] {
        if let Err(error) = granted {
            tracing::debug!(%error, "the UDP socket keeps its small buffer");
        }
    }
    let runtime = Arc::new(quinn::TokioRuntime);
    quinn::Endpoint::new(quinn::EndpointConfig::default(), server, socket, runtime).map_err(setup)
}

pub(crate) async fn write_message<T: Serialize>(
    stream: &mut SendStream,
    message: &T,
) -> Result<()> {
    let bytes = encode(message)?;
    stream.write_all(&bytes).await.map_err(|error| TransportError::of_write(&error))
}

pub(crate) async fn read_message<T: DeserializeOwned>(stream: &mut RecvStream) -> Result<T> {
    read_message_within(stream, MESSAGE_LIMIT).await
}

/// Reads a message of at most `limit` bytes: no more memory is taken for it.
pub(crate) async fn read_message_within<T: DeserializeOwned>(
    stream: &mut RecvStream,
    limit: usize,
) -> Result<T> {
    let mut length = [0; LENGTH_BYTES];
    stream.read_exact(&mut length).await.map_err(TransportError::of_read)?;
    let length = body_length(length)?;
    if length > limit {
        let text = format!("a message of {length} bytes, where {limit} are the most");
        return Err(TransportError::Protocol(text));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(TransportError::of_read)?;
    Ok(decode(&body)?)
}

async fn read_preface(stream: &mut RecvStream) -> Result<()> {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await.map_err(TransportError::of_read)?;
    match preface == PREFACE {
        true => Ok(()),
        false => Err(TransportError::Protocol("the control stream begins with other bytes".into())),
    }
}
