//! The thread that seals: compresses, checks and authenticates frames, in order. It never looks
//! into them.

use crate::frame_log::Ready;
use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender, bounded};
use redoubt_log::frame::{FrameKey, SealBuffers, SealedFrame};
use redoubt_protocol::FramePlace;
use std::io;
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// Frames that wait to be sealed: enough that neither side waits for the other's burst.
const RAW_FRAMES: usize = 4;

/// Sealed frames that wait for the session: the window behind it is what holds the backlog.
const SEALED_FRAMES: usize = 4;

/// A sealed frame on its way.
pub(crate) struct Sealed {
    pub place: FramePlace,
    pub bytes: Bytes,
}

struct Shared(SealedFrame);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// The ends of a running sealer.
pub(crate) struct Sealer {
    pub input: Sender<Ready>,
    pub output: mpsc::Receiver<Sealed>,
    pub thread: JoinHandle<()>,
}

/// Starts the thread; it ends when either side is dropped.
pub(crate) fn start(key: FrameKey) -> io::Result<Sealer> {
    let (input, raw) = bounded::<Ready>(RAW_FRAMES);
    let (sealed, output) = mpsc::channel(SEALED_FRAMES);
    let thread = std::thread::Builder::new()
        .name("seal".to_owned())
        .spawn(move || run(&key, &raw, &sealed))?;
    Ok(Sealer { input, output, thread })
}

fn run(key: &FrameKey, raw: &Receiver<Ready>, sealed: &mpsc::Sender<Sealed>) {
    let mut buffers = SealBuffers::default();
    for ready in raw {
        let frame = ready.frame.seal(key, &mut buffers);
        // The window's budget is memory, of which a frame may hold more than it fills.
        let place = FramePlace { bytes: frame.memory(), ..FramePlace::from(frame.header()) };
        let bytes = Bytes::from_owner(Shared(frame));
        if sealed.blocking_send(Sealed { place, bytes }).is_err() {
            return;
        }
    }
}
