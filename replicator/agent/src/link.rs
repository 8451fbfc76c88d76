//! One connection to the target, taken apart into tasks: what they hear becomes events, what they
//! are given goes out. It decides nothing; the session does.

use bytes::Bytes;
use redoubt_protocol::{AgentMessage, ConnectionId, FRAME_STREAMS, TargetMessage, WINDOW_FRAMES};
use redoubt_transport::{
    AgentIdentity, Connection, ConnectionHandle, InStream, Parts, PointReceiver, TransportError,
    connect,
};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinSet;

/// Events that may wait for the session: a round trip's acknowledgements. Where it is slower, the
/// connection is not read meanwhile.
pub(crate) const EVENTS_WAITING: usize = 64;

/// Messages that may wait to be said: those of a line that stands still until it is given up. There
/// are a few a second.
const MESSAGES_WAITING: usize = 256;

/// What a connection's tasks tell.
pub(crate) enum LinkEvent {
    /// It stands.
    Connected(ConnectionId, Box<Connection>),
    /// The target said something.
    Received(ConnectionId, TargetMessage),
    /// The target sends a point's content.
    Point(PointReceiver),
    /// It ended, or never stood.
    Disconnected(ConnectionId, TransportError),
}

/// A connection that stands.
pub(crate) struct Link {
    id: ConnectionId,
    handle: ConnectionHandle,
    messages: Sender<AgentMessage>,
    /// Of the frames of a window.
    frames: Vec<Sender<Bytes>>,
    /// Ends the tasks when dropped.
    _tasks: JoinSet<()>,
}

/// Tries to connect; the answer is an event.
pub(crate) fn dial(
    id: ConnectionId,
    identity: AgentIdentity,
    events: Sender<LinkEvent>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let event = match connect(&identity, &identity.address).await {
            Ok(connection) => LinkEvent::Connected(id, Box::new(connection)),
            Err(error) => LinkEvent::Disconnected(id, error),
        };
        // Nobody listens any more only when the agent ends.
        let _ = events.send(event).await;
    })
}

impl Link {
    /// Starts the tasks of a connection.
    pub fn new(id: ConnectionId, connection: Connection, events: &Sender<LinkEvent>) -> Self {
        let Parts { mut sender, mut receiver, handle } =
            connection.into_parts::<AgentMessage, TargetMessage>();
        let mut tasks = JoinSet::new();
        let (messages, mut to_say) = mpsc::channel::<AgentMessage>(MESSAGES_WAITING);
        let told = events.clone();
        tasks.spawn(async move {
            while let Some(message) = to_say.recv().await {
                if let Err(error) = sender.send(&message).await {
                    let _ = told.send(LinkEvent::Disconnected(id, error)).await;
                    return;
                }
            }
        });
        let told = events.clone();
        tasks.spawn(async move {
            loop {
                let event = match receiver.receive().await {
                    Ok(message) => LinkEvent::Received(id, message),
                    Err(error) => LinkEvent::Disconnected(id, error),
                };
                let ends = matches!(event, LinkEvent::Disconnected(..));
                if told.send(event).await.is_err() || ends {
                    return;
                }
            }
        });
        let (told, accepting) = (events.clone(), handle.clone());
        tasks.spawn(async move {
            while let Ok(stream) = accepting.accept_stream().await {
                if let InStream::Point(point) = stream {
                    let _ = told.send(LinkEvent::Point(point)).await;
                }
            }
        });
        let frames = (0..FRAME_STREAMS)
            .map(|_| {
                let (frames, waiting) = mpsc::channel(WINDOW_FRAMES);
                tasks.spawn(send_frames(id, handle.clone(), waiting, events.clone()));
                frames
            })
            .collect();
        Self { id, handle, messages, frames, _tasks: tasks }
    }

    /// Which connection it is.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Says a message; a connection that has ended says so by its own event.
    pub fn say(&self, message: AgentMessage) {
        self.put(&self.messages, message);
    }

    /// Puts a frame on a stream.
    pub fn send_frame(&self, stream: usize, frame: Bytes) {
        self.put(&self.frames[stream], frame);
    }

    /// A target that lets these fill does not read, or acknowledges what it was not sent.
    fn put<T>(&self, to: &Sender<T>, what: T) {
        if let Err(TrySendError::Full(_)) = to.try_send(what) {
            self.handle.close("the target does not take what it is sent");
        }
    }

    /// Ends the connection.
    pub fn close(self, reason: &str) {
        self.handle.close(reason);
    }
}

async fn send_frames(
    id: ConnectionId,
    handle: ConnectionHandle,
    mut waiting: Receiver<Bytes>,
    events: Sender<LinkEvent>,
) {
    let run = async {
        let mut stream = handle.open_frames().await?;
        while let Some(frame) = waiting.recv().await {
            stream.send(frame).await?;
        }
        Ok(())
    };
    if let Err(error) = run.await {
        let _ = events.send(LinkEvent::Disconnected(id, error)).await;
    }
}
