//! One connection of an agent, taken apart into tasks: what they hear becomes the machine's events.
//! A frame's checksum and MAC are proven here, before anything else sees it.

use super::machine::MachineEvent;
use redoubt_engine::buffer::AlignedBuffer;
use redoubt_log::frame::{Frame, FrameKey};
use redoubt_log::segment::{ENTRY_HEADER_SIZE, entry_length};
use redoubt_protocol::{AgentMessage, ConnectionId, FramePlace, TargetEvent, TargetMessage};
use redoubt_transport::{
    Connection, ConnectionHandle, FrameReceiver, InStream, MessageReceiver, Parts, TransportError,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};

/// Messages that may wait to be said: those of a line that stands still for a while. An agent gets
/// no more acknowledgements than its window has frames, what is large waits in turn, and orders are
/// few; so who lets it fill does not read.
const MESSAGES_WAITING: usize = 256;

/// A connection that stands.
pub(super) struct Link {
    pub handle: ConnectionHandle,
    speaker: Speaker,
    /// The turn of a list of points: a page may be half a MiB.
    lists: Arc<Semaphore>,
    _tasks: JoinSet<()>,
}

/// Says messages on a connection, from anywhere.
#[derive(Clone)]
pub(super) struct Speaker {
    handle: ConnectionHandle,
    messages: Sender<Saying>,
}

/// What is to be said, and whose turn ends once it was.
struct Saying {
    message: TargetMessage,
    turn: Option<OwnedSemaphorePermit>,
}

impl Speaker {
    /// Says a message.
    pub fn say(&self, message: TargetMessage) {
        self.put(Saying { message, turn: None });
    }

    /// Says a message, and lets the turn go once it has gone out.
    pub fn say_in_turn(&self, message: TargetMessage, turn: OwnedSemaphorePermit) {
        self.put(Saying { message, turn: Some(turn) });
    }

    /// Whether nobody hears any more what is said.
    pub fn is_closed(&self) -> bool {
        self.messages.is_closed()
    }

    fn put(&self, saying: Saying) {
        // A connection that is lost says so where it is heard.
        if let Err(TrySendError::Full(_)) = self.messages.try_send(saying) {
            self.handle.close("the agent does not read what it is told");
        }
    }
}

impl Link {
    /// Starts the tasks of a connection.
    pub fn new(
        id: ConnectionId,
        connection: Connection,
        key: FrameKey,
        events: &Sender<MachineEvent>,
    ) -> Self {
        let Parts { mut sender, receiver, handle } =
            connection.into_parts::<TargetMessage, AgentMessage>();
        let mut tasks = JoinSet::new();
        let (messages, mut to_say) = mpsc::channel::<Saying>(MESSAGES_WAITING);
        tasks.spawn(async move {
            while let Some(Saying { message, turn }) = to_say.recv().await {
                // A connection that is lost says so where it is heard.
                if sender.send(&message).await.is_err() {
                    return;
                }
                drop(turn);
            }
            // Why it is closed must arrive before the close does.
            if let Err(error) = sender.finish().await {
                tracing::debug!(%error, "a last word may not have arrived");
            }
        });
        tasks.spawn(hear(id, receiver, events.clone(), HELLO_PATIENCE));
        let (told, accepting) = (events.clone(), handle.clone());
        tasks.spawn(async move {
            let mut streams = JoinSet::new();
            while let Ok(stream) = accepting.accept_stream().await {
                if let InStream::Frames(frames) = stream {
                    streams.spawn(receive_frames(id, frames, key.clone(), told.clone()));
                }
            }
        });
        let speaker = Speaker { handle: handle.clone(), messages };
        Self { handle, speaker, lists: Arc::new(Semaphore::new(1)), _tasks: tasks }
    }

    /// Says a message.
    pub fn say(&self, message: TargetMessage) {
        self.speaker.say(message);
    }

    /// Says messages from elsewhere.
    pub fn speaker(&self) -> Speaker {
        self.speaker.clone()
    }

    /// The turn to list points; `None` while another page has not gone out.
    pub fn list_turn(&self) -> Option<OwnedSemaphorePermit> {
        self.lists.clone().try_acquire_owned().ok()
    }

    /// Ends the connection once what was said has gone out, or the result is aborted: its own end
    /// of the messages is dropped first.
    pub fn close(self, reason: String) -> AbortHandle {
        let Self { handle, speaker, _tasks: mut tasks, .. } = self;
        drop(speaker);
        tokio::spawn(async move {
            let _ = tokio::time::timeout(CLOSE_PATIENCE, tasks.join_next()).await;
            handle.close(&reason);
        })
        .abort_handle()
    }
}

/// How long a connection may take to say hello: round trips, on any line that can carry a session.
const HELLO_PATIENCE: Duration = Duration::from_secs(30);

/// How long a last word may take: a round trip or two.
pub(super) const CLOSE_PATIENCE: Duration = Duration::from_millis(500);

/// Hears what an agent says; one that does not begin in time has gone.
pub(super) async fn hear(
    id: ConnectionId,
    mut receiver: MessageReceiver<AgentMessage>,
    events: Sender<MachineEvent>,
    patience: Duration,
) {
    let mut first = Some(tokio::time::Instant::now() + patience);
    loop {
        let received = match first.take() {
            Some(deadline) => tokio::time::timeout_at(deadline, receiver.receive())
                .await
                .unwrap_or_else(|_| Err(TransportError::Lost("it says no hello".to_owned()))),
            None => receiver.receive().await,
        };
        let event = match received {
            Ok(message) => TargetEvent::Received(id, message),
            Err(error) => {
                tracing::debug!(%error, "an agent's connection has ended");
                TargetEvent::Disconnected(id)
            }
        };
        let ends = matches!(event, TargetEvent::Disconnected(_));
        if events.send(MachineEvent::Session(event)).await.is_err() || ends {
            return;
        }
    }
}

async fn receive_frames(
    id: ConnectionId,
    mut frames: FrameReceiver,
    key: FrameKey,
    events: Sender<MachineEvent>,
) {
    loop {
        let event = match receive_frame(&mut frames, &key).await {
            Ok(Some((place, entry))) => TargetEvent::Frame(id, place, entry),
            Ok(None) => return,
            Err(TransportError::Lost(_) | TransportError::Closed(_)) => return,
            Err(error) => TargetEvent::BadFrame(id, error.to_string()),
        };
        let bad = matches!(event, TargetEvent::BadFrame(..));
        if events.send(MachineEvent::Session(event)).await.is_err() || bad {
            return;
        }
    }
}

/// Receives a frame straight into the buffer of its journal entry.
async fn receive_frame(
    frames: &mut FrameReceiver,
    key: &FrameKey,
) -> Result<Option<(FramePlace, AlignedBuffer)>, TransportError> {
    let Some(header) = frames.next().await? else { return Ok(None) };
    let length = header.frame_length();
    let mut entry = AlignedBuffer::zeroed(entry_length(length));
    let bytes = &mut entry[ENTRY_HEADER_SIZE..ENTRY_HEADER_SIZE + length];
    frames.fill(bytes).await?;
    Frame::check(bytes)?.verify_mac(key)?;
    Ok(Some((FramePlace::from(&header), entry)))
}
