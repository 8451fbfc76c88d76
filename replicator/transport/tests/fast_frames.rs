//! Frames over real sockets: whole and in order on each stream, also over a line that loses and
//! repeats.

// Helpers outside of test functions may panic like these: a site that cannot be set up is a
// failure.
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic as the test itself may")]

#[path = "support/proxy.rs"]
mod proxy;
mod support;

use bytes::Bytes;
use proxy::{Line, proxy};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use redoubt_log::frame::{
    Frame, FrameBuilder, FrameKey, FrameLimits, FrameMeta, FramePool, SealBuffers, SealedFrame,
};
use redoubt_log::{
    DiskIndex, Generation, Incarnation, MachineId, Record, RoleEpoch, Sequence, WallTime,
};
use redoubt_protocol::{AgentMessage, FRAME_STREAMS, TargetMessage};
use redoubt_transport::{ConnectionHandle, FrameReceiver, InStream, Parts};
use std::time::Instant;
use support::{join, listen, meet};

fn frame(random: &mut StdRng, sequence: u64, length: u32) -> SealedFrame {
    let mut builder = FrameBuilder::new(FrameLimits::default(), &FramePool::new(2));
    let mut payload = vec![0; length as usize];
    random.fill_bytes(&mut payload);
    let record = Record::Write { disk: DiskIndex(0), offset: 0, length };
    builder.push(record, &[&payload]).unwrap();
    let meta = FrameMeta {
        machine: MachineId([1; 16]),
        generation: Generation([2; 16]),
        incarnation: Incarnation(1),
        role_epoch: RoleEpoch(0),
        first: Sequence(sequence),
        previous: Sequence(sequence - 1),
        earliest: WallTime(0),
        latest: WallTime(0),
        ends_at_write_boundary: true,
    };
    builder.finish(&meta).seal(&FrameKey::new([3; 32]), &mut SealBuffers::default())
}

/// Sends frame 1 on stream 0, frame 2 on stream 1, and so on, as the session does.
async fn send(handle: ConnectionHandle, frames: Vec<Bytes>) {
    let mut streams = Vec::new();
    for _ in 0..FRAME_STREAMS {
        streams.push(handle.open_frames().await.unwrap());
    }
    let mut tasks = Vec::new();
    for (at, mut stream) in streams.into_iter().enumerate() {
        let own: Vec<_> = frames.iter().skip(at).step_by(FRAME_STREAMS).cloned().collect();
        tasks.push(tokio::spawn(async move {
            for frame in own {
                stream.send(frame).await.unwrap();
            }
            stream
        }));
    }
    let mut open = Vec::new();
    for task in tasks {
        open.push(task.await.unwrap());
    }
    // The streams stay open until the receiver has all.
    handle.closed().await;
}

async fn receive_stream(mut stream: FrameReceiver, count: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while frames.len() < count {
        let header = stream.next().await.unwrap().expect("the stream ended early");
        let mut buffer = vec![0; header.frame_length()];
        stream.fill(&mut buffer).await.unwrap();
        frames.push(buffer);
    }
    frames
}

async fn receive(handle: ConnectionHandle, count: usize) -> Vec<Vec<Vec<u8>>> {
    let mut tasks = Vec::new();
    for _ in 0..FRAME_STREAMS {
        let InStream::Frames(stream) = handle.accept_stream().await.unwrap() else {
            panic!("a point came");
        };
        tasks.push(tokio::spawn(receive_stream(stream, count / FRAME_STREAMS)));
    }
    let mut streams = Vec::new();
    for task in tasks {
        streams.push(task.await.unwrap());
    }
    handle.close("all came");
    streams
}

/// Sends the frames over the line and checks them; seconds it took.
async fn carry(line: Option<(u64, Line)>, frames: Vec<Bytes>) -> f64 {
    let (data, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (site, listener, mut address) = listen(data.path());
    if let Some((seed, line)) = line {
        address = proxy(seed, line, address).await;
    }
    let joined = join(&site, &listener, address, state.path()).await;
    let (agent, _, target) = meet(&listener, &joined, address).await.unwrap();
    let agent: Parts<AgentMessage, TargetMessage> = agent.into_parts();
    let target: Parts<TargetMessage, AgentMessage> = target.into_parts();
    let start = Instant::now();
    let count = frames.len();
    let (_, streams) =
        tokio::join!(send(agent.handle, frames.clone()), receive(target.handle, count));
    let seconds = start.elapsed().as_secs_f64();
    let mut seen = 0;
    for stream in &streams {
        let firsts: Vec<_> =
            stream.iter().map(|one| Frame::check(one).unwrap().header().first).collect();
        assert!(firsts.windows(2).all(|pair| pair[0] < pair[1]), "in order on its stream");
        for (bytes, first) in stream.iter().zip(&firsts) {
            let at = usize::try_from(first.0).unwrap() - 1;
            assert!(frames[at][..] == bytes[..], "frame {first} came as it was sent");
            seen += 1;
        }
    }
    assert_eq!(seen, count);
    seconds
}

#[tokio::test]
async fn whole_and_in_order_over_a_bad_line() {
    let seed: u64 = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let line = Line { drop_per_mille: 30, repeat_per_mille: 20, delay_milliseconds: 4 };
    let frames = (1..=45)
        .map(|sequence| {
            let length = random.random_range(1..60_000);
            Bytes::from_owner(frame(&mut random, sequence, length))
        })
        .collect();
    carry(Some((seed, line)), frames).await;
}

#[tokio::test]
async fn throughput_over_loopback() {
    let mut random = StdRng::seed_from_u64(1);
    let largest = 1 << 20;
    let pattern: Vec<_> = (1..=192)
        .map(|sequence| Bytes::from_owner(frame(&mut random, sequence, largest)))
        .collect();
    let bytes: usize = pattern.iter().map(Bytes::len).sum();
    let seconds = carry(None, pattern).await;
    eprintln!("{:.0} MB/s with both ends on one thread", bytes as f64 / seconds / 1e6);
}

#[tokio::test]
async fn bytes_that_are_no_frame_are_an_error() {
    let (data, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (site, listener, address) = listen(data.path());
    let joined = join(&site, &listener, address, state.path()).await;
    let (agent, _, target) = meet(&listener, &joined, address).await.unwrap();
    let agent: Parts<AgentMessage, TargetMessage> = agent.into_parts();
    let target: Parts<TargetMessage, AgentMessage> = target.into_parts();
    let mut sender = agent.handle.open_frames().await.unwrap();
    sender.send(Bytes::from(vec![7; 4096])).await.unwrap();
    let InStream::Frames(mut stream) = target.handle.accept_stream().await.unwrap() else {
        panic!("a point came");
    };
    assert!(stream.next().await.is_err());
}
