//! Whole verifies in one thread: a disk in a file, a machine that writes when the ring is drained,
//! and a target that compares, refuses or is lost.

use super::*;
use redoubt_log::{ByteRange, GapReason};
use redoubt_protocol::verify::{Check, DifferentPiece, GranuleHash, granule_hashes, piece_hash};
use redoubt_tracker::source::{Array, BioKey};
use redoubt_tracker::{CaptureMode, Event, Gather, LogSink, Operation};
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const DISK: DiskIndex = DiskIndex(0);
const GRANULE: u64 = 4096;
const SIZE: u64 = 40 * (1 << 20) + 512;

/// A machine that writes the same granule again and again, or nothing.
#[derive(Default)]
struct Machine {
    writes: Option<ByteRange>,
    produced: u64,
    drained: u64,
}

impl ChangeSource for Machine {
    type Error = Infallible;

    fn produced(&self) -> RingPosition {
        RingPosition(self.produced)
    }
    fn drain(&mut self, until: RingPosition, sink: &mut dyn FnMut(Event<'_>)) -> RingPosition {
        while let Some(range) = self.writes.filter(|_| self.drained < until.0) {
            let (bio, bytes) = (BioKey(self.drained), vec![7; 4096]);
            let (operation, data) = (Operation::Write, Some(&[&bytes[..]][..]));
            sink(Event::Submitted { disk: DISK, bio, range, operation, data, at: 0 });
            sink(Event::Completed { disk: DISK, bio, range, failed: false });
            self.drained += 1;
        }
        until
    }
    fn forget_partial(&mut self, _: DiskIndex) {}
    fn lost(&self, _: DiskIndex) -> u64 {
        0
    }
    fn unmarked(&self, _: DiskIndex) -> u64 {
        0
    }
    fn set_mode(&mut self, _: DiskIndex, _: CaptureMode) -> Result<(), Infallible> {
        Ok(())
    }
    fn cut(&mut self, _: DiskIndex) -> Result<(), Infallible> {
        Ok(())
    }
    fn marks(&self, _: DiskIndex, _: Array, _: &mut dyn FnMut(ByteRange)) {}
    fn mark(&mut self, _: DiskIndex, _: ByteRange) {}
    fn clear_spare(&mut self, _: DiskIndex) {}
}

struct NoLog;

impl LogSink for NoLog {
    fn has_room(&self, _: u64) -> bool {
        true
    }
    fn write(&mut self, _: DiskIndex, _: ByteRange, _: Gather<'_>) {}
    fn zero(&mut self, _: DiskIndex, _: ByteRange) {}
    fn discard(&mut self, _: DiskIndex, _: ByteRange) {}
    fn backfill(&mut self, _: DiskIndex, _: ByteRange, _: &[u8]) {}
    fn checkpoint(&mut self) {}
    fn gap(&mut self, _: DiskIndex, _: GapReason) {}
    fn consistent(&mut self, _: DiskIndex) {}
    fn position(&self) -> Sequence {
        Sequence(0)
    }
}

/// What the target answers.
type Target<'a> = &'a mut dyn FnMut(&Check, &[u8]) -> CheckAnswer;

/// Compares as a target does.
fn compare(check: &Check, replica: &[u8]) -> CheckAnswer {
    assert!(check.fits(SIZE));
    let mut different = Vec::new();
    for (number, piece) in (0..).zip(&check.pieces) {
        let start = usize::try_from(piece.offset).unwrap();
        let bytes = &replica[start..start + usize::try_from(piece.length).unwrap()];
        let granules: Vec<_> = granule_hashes(bytes).collect();
        if piece_hash(&granules) != piece.hash {
            let piece = number;
            different.push(DifferentPiece { piece, granules });
        }
    }
    Ok(different)
}

struct Site {
    machine: Machine,
    tracking: Tracking,
    reader: Reader,
    replica: Vec<u8>,
    untracked: Vec<Untracked>,
}

impl Site {
    /// A disk whose replica agrees, all of it in the log; `open` says how it is opened.
    fn new(open: &OpenOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let content: Vec<u8> = (0..SIZE / 8).flat_map(|word| word.to_le_bytes()).collect();
        File::create(&path).unwrap().write_all_at(&content, 0).unwrap();
        let reader = Reader::new(vec![(DISK, open.open(&path).unwrap())]).unwrap();
        let (mut machine, mut tracking) = (Machine::default(), Tracking::new(CaptureMode::Data));
        let reason = GapReason::FirstSync;
        let Ok(()) = tracking.add_whole(&mut machine, DISK, SIZE, reason, &mut NoLog);
        tracking.demand(&mut machine, DISK, ByteRange::new(0, SIZE));
        while let Some(order) = tracking.next_read(DISK, 1 << 20) {
            let bytes = vec![0; usize::try_from(order.range.length).unwrap()];
            let Ok(()) = tracking.finish_read(&mut machine, order, &bytes, &mut NoLog);
        }
        Self { machine, tracking, reader, replica: content, untracked: Vec::new() }
    }

    fn readable() -> Self {
        Self::new(OpenOptions::new().read(true))
    }

    /// A verify from its beginning to its end.
    fn verify(&mut self, target: Target<'_>) -> Result<VerifyOutcome, String> {
        let (events, told) = mpsc::channel();
        let tell = Box::new(move |event| events.send(event).unwrap());
        let request =
            VerifyRequest { disk: None, tell, given_up: Arc::new(AtomicBool::new(false)) };
        let (asks, mut asked) = tokio::sync::mpsc::channel(1);
        let (began, mut reads, mut sequence) = (Instant::now(), Vec::new(), 0);
        let disk = RunDisk { index: DISK, name: "data".to_owned(), size: SIZE };
        let mut run = Run::new(request, vec![disk], &self.untracked, began);
        loop {
            assert!(began.elapsed() < Duration::from_secs(60), "the verify does not end");
            self.machine.produced += u64::from(self.machine.writes.is_some());
            let Ok(_) = self.tracking.pump(&mut self.machine, &mut NoLog);
            if run.wants_point(self.tracking.drained(), self.tracking.settled()) {
                sequence += 1;
                run.fix(PointId([1; 16]), Sequence(sequence), &mut self.tracking);
            }
            for read in self.reader.reap(0).unwrap() {
                reads.retain(|order| *order != read.order);
                let produced = self.machine.produced();
                run.take_read(&read, &mut self.tracking, produced, Instant::now());
            }
            let Self { machine, tracking, reader, .. } = self;
            let mut hands = Hands { source: machine, tracking, reader };
            let ready = hands.tracking.settled();
            let step = run.step(&mut hands, Some(&asks), ready, &mut reads, Instant::now());
            match step.unwrap() {
                Step::GoesOn => {}
                Step::Ended => break drop(run.finish()),
                Step::Failed(why) => break drop(run.fail(&why)),
            }
            if let Ok(Ask::Check { check, reply }) = asked.try_recv() {
                reply.send(target(&check, &self.replica)).unwrap();
            }
        }
        self.tracking.forget_checks();
        let ended = told.try_iter().find_map(|event| match event {
            VerifyEvent::Ended(result) => Some(result),
            VerifyEvent::Progress(..) => None,
        });
        ended.expect("an ended verify tells so")
    }

    fn demanded(&self) -> u64 {
        self.tracking.progress(DISK).unwrap().demand_bytes
    }
}

#[test]
fn what_is_equal_is_compared_to_the_last_byte() {
    let outcome = Site::readable().verify(&mut compare).unwrap();
    assert_eq!((outcome.compared_bytes, outcome.not_compared_bytes), (SIZE, 0));
    assert_eq!((outcome.differing_bytes, outcome.point.is_some()), (0, true));
}

#[test]
fn a_garbled_byte_is_its_granule_and_is_demanded() {
    let mut site = Site::readable();
    let last = site.replica.len() - 1;
    site.replica[5_000_000] ^= 1;
    site.replica[last] ^= 1;
    let outcome = site.verify(&mut compare).unwrap();
    let granule = 5_000_000 / GRANULE * GRANULE;
    let difference = |offset, length| Difference { disk: DISK, offset, length };
    assert_eq!(outcome.differences, [difference(granule, GRANULE), difference(SIZE - 512, 512)]);
    assert_eq!((outcome.differing_bytes, outcome.compared_bytes), (GRANULE + 512, SIZE));
    assert_eq!(site.demanded(), 2 * GRANULE);
}

#[test]
fn only_so_many_differences_are_listed() {
    let mut site = Site::readable();
    (0..3000).step_by(2).for_each(|granule: usize| site.replica[granule * 4096 + 17] ^= 1);
    let outcome = site.verify(&mut compare).unwrap();
    assert_eq!(outcome.differences.len(), DIFFERENCES_LISTED);
    assert_eq!(outcome.unlisted, 1500 - DIFFERENCES_LISTED as u64);
    assert_eq!(site.demanded(), 1500 * GRANULE);
}

#[test]
fn what_is_written_all_the_time_is_not_called_compared() {
    let mut site = Site::readable();
    site.machine.writes = Some(ByteRange::new(7 * GRANULE, GRANULE));
    // Whatever stands there in the replica: it is not looked at.
    site.replica[7 * 4096] ^= 1;
    let outcome = site.verify(&mut compare).unwrap();
    assert_eq!((outcome.not_compared_bytes, outcome.compared_bytes), (GRANULE, SIZE - GRANULE));
    assert_eq!((outcome.differing_bytes, outcome.hindrance), (0, None));
}

#[test]
fn what_is_lost_with_a_connection_is_asked_again() {
    let mut asked = 0;
    let outcome = Site::readable().verify(&mut |check, replica| {
        asked += 1;
        if asked <= 2 {
            return Err(NotChecked::Lost("gone".to_owned()));
        }
        compare(check, replica)
    });
    let outcome = outcome.unwrap();
    assert_eq!((outcome.compared_bytes, outcome.hindrance), (SIZE, None));
    assert!(asked > 2);
}

#[test]
fn a_target_that_never_compares_ends_it_with_its_reason() {
    let refused = |_: &Check, _: &[u8]| Err(NotChecked::Refused("disk on fire".to_owned()));
    let why = Site::readable().verify(&mut { refused }).unwrap_err();
    assert!(why.contains("disk on fire"), "{why}");
}

#[test]
fn an_answer_that_contradicts_itself_ends_it() {
    let mut site = Site::readable();
    let why = site.verify(&mut |check, _| {
        let granules = vec![GranuleHash([0; 16])];
        assert!(check.pieces[0].length > 4096);
        Ok(vec![DifferentPiece { piece: 0, granules }])
    });
    assert!(why.unwrap_err().contains("contradicts itself"));
    assert_eq!(site.demanded(), 0);
}

#[test]
fn what_cannot_be_read_is_not_called_compared() {
    let mut site = Site::new(OpenOptions::new().write(true));
    let outcome = site.verify(&mut |_, _| panic!("nothing was read")).unwrap();
    assert_eq!((outcome.compared_bytes, outcome.not_compared_bytes), (0, SIZE));
    let hindrance = outcome.hindrance.unwrap();
    assert!(hindrance.starts_with("data: read-error: "), "{hindrance}");
}

#[test]
fn a_disk_that_is_not_tracked_is_named_and_not_called_compared() {
    let mut site = Site::readable();
    let reason = "device-missing: /dev/sdz".to_owned();
    site.untracked.push(Untracked { name: "lost".parse().unwrap(), size: 1 << 20, reason });
    let outcome = site.verify(&mut compare).unwrap();
    assert_eq!((outcome.compared_bytes, outcome.not_compared_bytes), (SIZE, 1 << 20));
    let why = "lost is not tracked (device-missing: /dev/sdz)";
    assert_eq!(outcome.hindrance.as_deref(), Some(why));
}
