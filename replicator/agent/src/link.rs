//! One connection to the target, taken apart into tasks: what they hear becomes events, what they
//! are given goes out. It decides nothing; the session does.

use bytes::Bytes;
use redoubt_protocol::{AgentMessage, ConnectionId, FRAME_STREAMS, TargetMessage};
use redoubt_transport::{
    AgentIdentity, Connection, ConnectionHandle, InStream, Parts, PointReceiver, TransportError,
    connect,
};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;

/// What a connection's tasks tell. The channel is unbounded, but the session's window bounds what
/// is under way.
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
    messages: UnboundedSender<AgentMessage>,
    frames: Vec<UnboundedSender<Bytes>>,
    /// Ends the tasks when dropped.
    _tasks: JoinSet<()>,
}

/// Tries to connect; the answer is an event.
pub(crate) fn dial(
    id: ConnectionId,
    identity: AgentIdentity,
    events: UnboundedSender<LinkEvent>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let event = match connect(&identity, &identity.address).await {
            Ok(connection) => LinkEvent::Connected(id, Box::new(connection)),
            Err(error) => LinkEvent::Disconnected(id, error),
        };
        // Nobody listens any more only when the agent ends.
        let _ = events.send(event);
    })
}

impl Link {
    /// Starts the tasks of a connection.
    pub fn new(
        id: ConnectionId,
        connection: Connection,
        events: &UnboundedSender<LinkEvent>,
    ) -> Self {
        let Parts { mut sender, mut receiver, handle } =
            connection.into_parts::<AgentMessage, TargetMessage>();
        let mut tasks = JoinSet::new();
        let (messages, mut to_say) = mpsc::unbounded_channel::<AgentMessage>();
        let told = events.clone();
        tasks.spawn(async move {
            while let Some(message) = to_say.recv().await {
                if let Err(error) = sender.send(&message).await {
                    let _ = told.send(LinkEvent::Disconnected(id, error));
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
                if told.send(event).is_err() || ends {
                    return;
                }
            }
        });
        let (told, accepting) = (events.clone(), handle.clone());
        tasks.spawn(async move {
            while let Ok(stream) = accepting.accept_stream().await {
                if let InStream::Point(point) = stream {
                    let _ = told.send(LinkEvent::Point(point));
                }
            }
        });
        let frames = (0..FRAME_STREAMS)
            .map(|_| {
                let (frames, waiting) = mpsc::unbounded_channel();
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
        let _ = self.messages.send(message);
    }

    /// Puts a frame on a stream.
    pub fn send_frame(&self, stream: usize, frame: Bytes) {
        let _ = self.frames[stream].send(frame);
    }

    /// Ends the connection.
    pub fn close(self, reason: &str) {
        self.handle.close(reason);
    }
}

async fn send_frames(
    id: ConnectionId,
    handle: ConnectionHandle,
    mut waiting: UnboundedReceiver<Bytes>,
    events: UnboundedSender<LinkEvent>,
) {
    let run = async {
        let mut stream = handle.open_frames().await?;
        while let Some(frame) = waiting.recv().await {
            stream.send(frame).await?;
        }
        Ok(())
    };
    if let Err(error) = run.await {
        let _ = events.send(LinkEvent::Disconnected(id, error));
    }
}
