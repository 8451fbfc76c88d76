//! The owned-buffer queues: the ring and its blocking twin must agree, refuse alike, and never let
//! go of a buffer that the kernel holds.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "the helpers of a test may panic as the test itself may"
)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{TryRecvError, channel};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redoubt_engine::buffer::{Buffer, BufferPool};
use redoubt_engine::ring::{
    BlockQueue, BlockingQueue, Direction, EngineError, FileSlot, Operation, Priority, Ring,
};

const DEPTH: usize = 8;
const FILE_BYTES: u64 = 1 << 20;
const BUFFER_BYTES: usize = 16 * 1024;

fn files(seed: u64) -> Vec<File> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..2)
        .map(|_| {
            let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let bytes: Vec<u8> = (0..FILE_BYTES).map(|_| rng.random()).collect();
            file.write_all_at(&bytes, 0).unwrap();
            file
        })
        .collect()
}

fn ring(files: &[File], pool: Option<&BufferPool>) -> Ring {
    let mut ring = Ring::new(DEPTH).unwrap();
    let slots = ring.register_files(files).unwrap();
    assert_eq!(slots.len(), files.len());
    if let Some(pool) = pool {
        ring.register_buffers(pool).unwrap();
    }
    ring
}

fn operation(token: u64, direction: Direction, offset: u64, buffer: Buffer) -> Operation {
    let (file, length) = (FileSlot(0), buffer.len());
    Operation { token, file, offset, length, direction, priority: Priority::Normal, buffer }
}

/// Random reads and writes that do not overlap while in flight; what each read saw, by token.
fn run(queue: &mut dyn BlockQueue, pool: &BufferPool, seed: u64) -> Vec<Vec<u8>> {
    const OPERATIONS: usize = 300;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut seen = vec![Vec::new(); OPERATIONS];
    let mut lengths = vec![0; OPERATIONS];
    let mut completions = Vec::new();
    let mut token = 0;
    while token < OPERATIONS {
        // Each of a round has a part of the files of its own.
        for part in 0..DEPTH.min(OPERATIONS - token) {
            let mut buffer = pool.take().unwrap();
            let length = rng.random_range(0..=BUFFER_BYTES);
            let span = FILE_BYTES / DEPTH as u64;
            let offset = part as u64 * span + rng.random_range(0..span - length as u64);
            let direction = if rng.random() { Direction::Read } else { Direction::Write };
            if direction == Direction::Write {
                rng.fill(&mut buffer[..length]);
            }
            lengths[token] = if direction == Direction::Read { length } else { 0 };
            let priority = if rng.random() { Priority::Idle } else { Priority::Normal };
            let file = FileSlot(rng.random_range(0..2));
            let token_word = token as u64;
            let operation =
                Operation { token: token_word, file, offset, length, direction, priority, buffer };
            queue.submit(operation).map_err(|(_, error)| error).unwrap();
            token += 1;
        }
        while queue.in_flight() > 0 {
            let before = completions.len();
            queue.reap(1, &mut completions).unwrap();
            assert!(completions.len() > before, "waited for one and got none");
        }
        for completion in completions.drain(..) {
            let token = completion.token as usize;
            completion.result.unwrap();
            seen[token] = completion.buffer[..lengths[token]].to_vec();
        }
    }
    seen
}

#[test]
fn the_ring_and_its_twin_see_and_leave_the_same_bytes() {
    for seed in 0..6 {
        println!("seed {seed}");
        let pool = BufferPool::new(DEPTH, BUFFER_BYTES);
        let plain = files(seed);
        let handles = plain.iter().map(|file| file.try_clone().unwrap()).collect();
        let expected = run(&mut BlockingQueue::new(DEPTH, handles), &pool, seed);
        for registered in [None, Some(&pool)] {
            let ours = files(seed);
            assert!(run(&mut ring(&ours, registered), &pool, seed) == expected, "seed {seed}");
            for (ours, plain) in ours.iter().zip(&plain) {
                assert!(whole(ours) == whole(plain), "seed {seed}: files differ");
            }
        }
        assert_eq!(pool.available(), DEPTH);
    }
}

fn whole(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; FILE_BYTES as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn refused_operations_come_back_with_their_buffers() {
    let pool = BufferPool::new(DEPTH + 1, BUFFER_BYTES);
    let files = files(1);
    let handles = files.iter().map(|file| file.try_clone().unwrap()).collect();
    let queues: [Box<dyn BlockQueue>; 2] =
        [Box::new(ring(&files, None)), Box::new(BlockingQueue::new(DEPTH, handles))];
    for mut queue in queues {
        let mut unknown = operation(77, Direction::Read, 0, pool.take().unwrap());
        unknown.file = FileSlot(2);
        let (back, error) = queue.submit(unknown).unwrap_err();
        assert!(
            back.token == 77 && matches!(error, EngineError::UnknownFile { slot: 2, files: 2 })
        );
        let mut long = Operation { file: FileSlot(0), ..back };
        long.length = BUFFER_BYTES + 1;
        let (back, error) = queue.submit(long).unwrap_err();
        assert!(matches!(error, EngineError::TooLong { .. }));
        drop(back);
        for token in 0..DEPTH as u64 {
            let submitted =
                queue.submit(operation(token, Direction::Read, 0, pool.take().unwrap()));
            submitted.map_err(|(_, error)| error).unwrap();
        }
        let (back, error) =
            queue.submit(operation(99, Direction::Read, 0, pool.take().unwrap())).unwrap_err();
        assert!(back.token == 99 && matches!(error, EngineError::Full { depth: DEPTH }));
        let mut completions = Vec::new();
        queue.reap(usize::MAX, &mut completions).unwrap();
        assert_eq!((completions.len(), queue.in_flight()), (DEPTH, 0));
        queue.submit(back).map_err(|(_, error)| error).unwrap();
    }
    assert_eq!(pool.available(), DEPTH + 1, "dropped queues give their buffers back");
}

#[test]
fn a_read_over_the_end_is_an_error_and_a_short_one_is_continued() {
    let pool = BufferPool::new(2, BUFFER_BYTES);
    let files = files(2);
    let mut ring = ring(&files, Some(&pool));
    let mut completions = Vec::new();
    for offset in [FILE_BYTES - 100, FILE_BYTES] {
        let buffer = pool.take().unwrap();
        ring.submit(operation(0, Direction::Read, offset, buffer)).map_err(|(_, e)| e).unwrap();
        ring.reap(1, &mut completions).unwrap();
        let error = completions.pop().unwrap().result.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn a_pipe_delivers_in_short_reads_and_the_operation_is_whole() {
    let pool = BufferPool::new(1, 4096);
    let (reader, mut writer) = pipe();
    let mut ring = ring(&[reader], Some(&pool));
    let read = operation(5, Direction::Read, 0, pool.take().unwrap());
    ring.submit(read).map_err(|(_, error)| error).unwrap();
    let mut completions = Vec::new();
    for part in 0..4u8 {
        ring.reap(0, &mut completions).unwrap();
        assert!(completions.is_empty(), "ended before its last part");
        writer.write_all(&[part; 1024]).unwrap();
    }
    ring.reap(1, &mut completions).unwrap();
    let completion = completions.pop().unwrap();
    assert_eq!(completion.result.unwrap(), 4096);
    assert!(completion.buffer.chunks(1024).zip(0..).all(|(chunk, part)| chunk == [part; 1024]));
}

#[test]
fn dropping_a_ring_waits_for_what_is_in_flight() {
    let pool = BufferPool::new(1, 4096);
    let (reader, mut writer) = pipe();
    let mut ring = ring(&[reader], Some(&pool));
    let read = operation(5, Direction::Read, 0, pool.take().unwrap());
    ring.submit(read).map_err(|(_, error)| error).unwrap();
    ring.reap(0, &mut Vec::new()).unwrap();
    let ((sender, dropped), (id, is_known)) = (channel(), channel());
    let dropper = std::thread::spawn(move || {
        id.send(nix::unistd::gettid()).unwrap();
        drop(ring);
        sender.send(()).unwrap();
    });
    // The kernel cannot complete a read of an empty pipe: the thread is to wait in it for that.
    let waits_in = format!("/proc/self/task/{}/syscall", is_known.recv().unwrap());
    let entered = format!("{} ", libc::SYS_io_uring_enter);
    while !std::fs::read_to_string(&waits_in).unwrap().starts_with(&entered) {
        assert!(!dropper.is_finished(), "dropped under the kernel");
        std::thread::yield_now();
    }
    assert_eq!(dropped.try_recv(), Err(TryRecvError::Empty), "dropped under the kernel");
    assert_eq!(pool.available(), 0, "the buffer is the kernel's");
    writer.write_all(b"x").unwrap();
    dropped.recv().unwrap();
    dropper.join().unwrap();
    assert_eq!(pool.available(), 1);
}

#[test]
fn an_impossible_depth_is_refused() {
    for depth in [0, redoubt_engine::ring::DEPTH_MAX + 1] {
        assert!(matches!(Ring::new(depth), Err(EngineError::Setup { .. })));
    }
}

#[test]
fn writing_to_a_file_opened_for_reading_fails_in_the_completion() {
    let pool = BufferPool::new(1, 4096);
    let named = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = OpenOptions::new().read(true).open(named.path()).unwrap();
    let mut ring = ring(&[file], None);
    let write = operation(1, Direction::Write, 0, pool.take().unwrap());
    ring.submit(write).map_err(|(_, error)| error).unwrap();
    let mut completions = Vec::new();
    ring.reap(1, &mut completions).unwrap();
    let completion = completions.pop().unwrap();
    assert_eq!(completion.result.unwrap_err().raw_os_error(), Some(libc::EBADF));
    assert_eq!(completion.buffer.len(), 4096);
}

fn pipe() -> (File, File) {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    (reader.into(), writer.into())
}

#[test]
fn a_closed_file_is_held_no_more_and_its_neighbour_goes_on() {
    for is_blocking in [false, true] {
        let make = |files: Vec<File>| -> Box<dyn BlockQueue> {
            match is_blocking {
                false => Box::new(ring(&files, None)),
                true => Box::new(BlockingQueue::new(DEPTH, files)),
            }
        };
        let (reader, mut writer) = pipe();
        let mut queue = make(vec![files(1).remove(0), reader]);
        queue.close_file(FileSlot(1)).unwrap();
        // The kernel may take its time to drop the file.
        let mut broken = false;
        for _ in 0..500 {
            match writer.write_all(b"x") {
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
                    broken = true;
                    break;
                }
                Ok(()) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        assert!(broken, "somebody still reads the pipe");
        let pool = BufferPool::new(2, BUFFER_BYTES);
        let mut completions = Vec::new();
        queue.submit(operation(1, Direction::Read, 0, pool.take().unwrap())).unwrap();
        let closed = Operation {
            file: FileSlot(1),
            ..operation(2, Direction::Read, 0, pool.take().unwrap())
        };
        queue.submit(closed).unwrap();
        while completions.len() < 2 {
            queue.reap(1, &mut completions).unwrap();
        }
        for completion in completions {
            assert_eq!(completion.result.is_ok(), completion.token == 1);
        }
    }
}
