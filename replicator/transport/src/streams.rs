//! The streams of bulk data: sealed frames towards the target, a point's content towards the agent.
//! Bytes go out of the sender's buffer as they are, and come in where the receiver wants them: no
//! copy of ours besides; QUIC has its own.
//!
//! ```text
//! frames: | 'F' | frame | frame | ...                       lengths stand in the frames' headers
//! point:  | 'P' | request u64 LE | chunk | chunk | ... end
//! chunk:  | offset u64 LE | length u32 LE | bytes |
//! ```
//! What no chunk covers is zero. A stream that is cut is an error, never an end.

use crate::error::{Result, TransportError};
use bytes::Bytes;
use quinn::{ReadExactError, RecvStream, SendStream};
use redoubt_log::frame::{FRAME_HEADER_SIZE, FrameHeader};
use redoubt_protocol::message::RequestId;

const FRAMES: u8 = b'F';
const POINT: u8 = b'P';
const CHUNK_HEADER_BYTES: usize = 12;

/// Largest chunk of a point's content: a read of the replica disk that is worth its seek.
pub const POINT_CHUNK_LIMIT: usize = 1 << 20;

/// A stream that the other side opened.
pub enum InStream {
    /// Frames.
    Frames(FrameReceiver),
    /// A point's content.
    Point(PointReceiver),
}

/// Sends frames, in order.
pub struct FrameSender(SendStream);

/// Receives frames, in order.
pub struct FrameReceiver {
    stream: RecvStream,
    header: [u8; FRAME_HEADER_SIZE],
}

/// Sends a point's content.
pub struct PointSender(SendStream);

/// Receives a point's content.
pub struct PointReceiver {
    stream: RecvStream,
    request: RequestId,
}

impl InStream {
    pub(crate) async fn accept(mut stream: RecvStream) -> Result<Self> {
        let mut kind = [0];
        stream.read_exact(&mut kind).await.map_err(TransportError::of_read)?;
        match kind[0] {
            FRAMES => Ok(Self::Frames(FrameReceiver { stream, header: [0; FRAME_HEADER_SIZE] })),
            POINT => {
                let mut request = [0; 8];
                stream.read_exact(&mut request).await.map_err(TransportError::of_read)?;
                let request = RequestId(u64::from_le_bytes(request));
                Ok(Self::Point(PointReceiver { stream, request }))
            }
            other => Err(TransportError::Protocol(format!("a stream of unknown kind {other}"))),
        }
    }
}

impl FrameSender {
    pub(crate) async fn open(mut stream: SendStream) -> Result<Self> {
        write(&mut stream, &[FRAMES]).await?;
        Ok(Self(stream))
    }

    /// Sends a sealed frame; its bytes are shared with the caller until they are acknowledged, not
    /// copied. Must be awaited to its end: half a frame ruins the stream.
    pub async fn send(&mut self, frame: Bytes) -> Result<()> {
        self.0.write_chunk(frame).await.map_err(|error| TransportError::of_write(&error))
    }
}

impl FrameReceiver {
    /// The next frame's header, with its lengths checked, or `None` at the stream's end. Its frame
    /// is then to be taken with [`FrameReceiver::fill`]. Must be awaited to its end.
    pub async fn next(&mut self) -> Result<Option<FrameHeader>> {
        match self.stream.read_exact(&mut self.header).await {
            Ok(()) => Ok(Some(FrameHeader::parse(&self.header)?)),
            Err(ReadExactError::FinishedEarly(0)) => Ok(None),
            Err(error) => Err(TransportError::of_read(error)),
        }
    }

    /// Puts the whole frame, header included, into `buffer`, which has `header.frame_length()`
    /// bytes. This is our only copy of a frame on its way in. Neither checksum nor MAC is looked
    /// at. Must be awaited to its end.
    pub async fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        let (header, rest) = buffer.split_at_mut(FRAME_HEADER_SIZE);
        header.copy_from_slice(&self.header);
        self.stream.read_exact(rest).await.map_err(TransportError::of_read)
    }
}

impl PointSender {
    pub(crate) async fn open(mut stream: SendStream, request: RequestId) -> Result<Self> {
        write(&mut stream, &[POINT]).await?;
        write(&mut stream, &request.0.to_le_bytes()).await?;
        // Behind acknowledgements.
        stream.set_priority(-1).map_err(|error| TransportError::Lost(error.to_string()))?;
        Ok(Self(stream))
    }

    /// Sends at most [`POINT_CHUNK_LIMIT`] bytes that stand at `offset`.
    pub async fn send(&mut self, offset: u64, data: Bytes) -> Result<()> {
        assert!(data.len() <= POINT_CHUNK_LIMIT, "a chunk keeps to its limit");
        let length = u32::try_from(data.len()).expect("POINT_CHUNK_LIMIT fits in 32 bits");
        let mut header = [0; CHUNK_HEADER_BYTES];
        header[..8].copy_from_slice(&offset.to_le_bytes());
        header[8..].copy_from_slice(&length.to_le_bytes());
        write(&mut self.0, &header).await?;
        self.0.write_chunk(data).await.map_err(|error| TransportError::of_write(&error))
    }

    /// Everything was sent: waits until the other side has it.
    pub async fn finish(mut self) -> Result<()> {
        let lost = |error: &dyn std::fmt::Display| TransportError::Lost(error.to_string());
        self.0.finish().map_err(|error| lost(&error))?;
        match self.0.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(lost(&"the other side wants no more of the point")),
            Err(error) => Err(lost(&error)),
        }
    }

    /// The content cannot be sent to its end: the other side gets an error.
    pub fn abort(mut self) {
        // It fails only where the stream has ended already.
        let _ = self.0.reset(1u32.into());
    }
}

impl PointReceiver {
    /// Which request it answers.
    pub fn request(&self) -> RequestId {
        self.request
    }

    /// The next chunk and where it stands, or `None` once everything has come. `buffer` keeps its
    /// memory.
    pub async fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Option<u64>> {
        let mut header = [0; CHUNK_HEADER_BYTES];
        match self.stream.read_exact(&mut header).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
            Err(error) => return Err(TransportError::of_read(error)),
        }
        let (offset, length) = header.split_at(8);
        let offset = u64::from_le_bytes(offset.try_into().expect("it was split at 8"));
        let length = u32::from_le_bytes(length.try_into().expect("12 less 8 are 4")) as usize;
        if length > POINT_CHUNK_LIMIT {
            let text = format!("a chunk of {length} bytes is over {POINT_CHUNK_LIMIT}");
            return Err(TransportError::Protocol(text));
        }
        buffer.resize(length, 0);
        self.stream.read_exact(buffer).await.map_err(TransportError::of_read)?;
        Ok(Some(offset))
    }
}

async fn write(stream: &mut SendStream, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes).await.map_err(|error| TransportError::of_write(&error))
}
