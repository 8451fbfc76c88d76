//! The proof at attach: writes to a scratch device of our own must be marked and come back in order
//! with the very bytes. It must never touch another device, and the scratch device goes with this
//! process at the latest.

use crate::device::BlockDevice;
use crate::probe::{Attached, Bases, Capability, ProbeError};
use crate::source::{Array, CaptureMode, ChangeSource, Event, Operation};
use nix::sys::memfd::{MFdFlags, memfd_create};
use redoubt_ebpf::numbers;
use redoubt_log::{ByteRange, DiskIndex};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

/// The last slot: while the canary writes, no disk is tracked yet.
const SLOT: DiskIndex = DiskIndex(DiskIndex::LIMIT - 1);
const SCRATCH_BYTES: u64 = 4 << 20;
/// Direct writes come from memory aligned to this.
const ALIGNMENT: usize = 4096;
/// One event that the kernel did not bring must not decide how a whole run is tracked. What came
/// wrong was wrong, however often it comes right afterwards.
const TRIALS: usize = 3;
/// Another process may take the free loop device that we were told of.
const CONFIGURE_ATTEMPTS: u32 = 16;

/// What is written, in this order: a block, a sector, many pages, and a range given up.
const STEPS: [(u64, u64, Operation); STEP_COUNT] = [
    (0, 4096, Operation::Write),
    (12_800, 512, Operation::Write),
    (65_536, 262_144, Operation::Write),
    (8192, 4096, Operation::Write),
    (1 << 20, 1 << 20, Operation::Discard),
];

const STEP_COUNT: usize = 5;

/// The steps, none with more data than one bio may bring into a ring of this size.
fn steps_for(ring_bytes: u64) -> [(ByteRange, Operation); STEP_COUNT] {
    STEPS.map(|(offset, length, operation)| {
        let most = ring_bytes >> numbers::WHOLE_BIO_SHARE_SHIFT;
        let length = if operation == Operation::Write { length.min(most) } else { length };
        (ByteRange::new(offset, length), operation)
    })
}

/// One event, kept.
enum Seen {
    Submitted { range: ByteRange, operation: Operation, data: Option<Vec<u8>> },
    Completed { range: ByteRange, failed: bool },
}

/// Why a trial proves nothing.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    /// Something did not come: another trial may bring it.
    Missing(String),
    /// What came contradicts the order in which it was written.
    Order(String),
    /// What came has other bytes than were written.
    Bytes(String),
}

impl Wrong {
    fn order(what: impl Into<String>) -> Self {
        Self::Order(what.into())
    }
}

/// How much of a step came.
#[derive(Clone, Default)]
struct Counts {
    submitted: u64,
    completed: u64,
    /// At some time more had ended than had begun.
    ended_early: bool,
}

impl Counts {
    fn complete(&mut self, length: u64) {
        self.completed += length;
        self.ended_early |= self.completed > self.submitted;
    }
}

/// What a trial must show beside marks and order.
#[derive(Clone, Copy)]
enum Trial {
    /// Nothing.
    Order,
    /// The bytes made from this seed.
    Data(u8),
}

/// Proves what the programs do: marks and order, then data, with each of the bases until one is
/// right; leaves the right ones set, or none.
pub(crate) fn prove(attached: &mut Attached, bases: &[Bases]) -> Result<Capability, ProbeError> {
    let scratch = Scratch::create().map_err(|source| ProbeError::Scratch { source })?;
    let device = BlockDevice::resolve(&scratch.path)
        .map_err(|error| ProbeError::Scratch { source: io::Error::other(error) })?;
    attached.add_disk(SLOT, &device.identity())?;
    let verdict = try_all(attached, &scratch, bases)?;
    if verdict != Capability::Data {
        attached.set_bases(None);
    }
    attached.remove_disk(SLOT)?;
    Ok(verdict)
}

fn try_all(
    attached: &mut Attached,
    scratch: &Scratch,
    bases: &[Bases],
) -> Result<Capability, ProbeError> {
    attached.set_mode(SLOT, CaptureMode::Metadata)?;
    let mut failed = String::new();
    for _ in 0..TRIALS {
        match trial_run(attached, scratch, Trial::Order)? {
            Ok(()) => return try_data(attached, scratch, bases),
            Err(Wrong::Missing(reason)) => failed = reason,
            Err(Wrong::Order(reason) | Wrong::Bytes(reason)) => {
                return Ok(Capability::Bitmap(reason));
            }
        }
    }
    Ok(Capability::Bitmap(failed))
}

fn try_data(
    attached: &mut Attached,
    scratch: &Scratch,
    bases: &[Bases],
) -> Result<Capability, ProbeError> {
    attached.set_mode(SLOT, CaptureMode::Data)?;
    let mut failed = "no place of the kernel's pages is known".to_owned();
    let mut refuted = vec![false; bases.len()];
    for number in 0..TRIALS * bases.len() {
        let place = number % bases.len();
        if refuted[place] {
            continue;
        }
        attached.set_bases(Some(bases[place]));
        let seed = u8::try_from(number).unwrap_or(u8::MAX);
        match trial_run(attached, scratch, Trial::Data(seed))? {
            Ok(()) => return Ok(Capability::Data),
            Err(Wrong::Missing(reason)) => failed = reason,
            Err(Wrong::Bytes(reason)) => (failed, refuted[place]) = (reason, true),
            Err(Wrong::Order(reason)) => return Ok(Capability::Bitmap(reason)),
        }
    }
    Ok(Capability::Order(failed))
}

/// Writes everything and compares what came back; the inner error is the reason why it is not the
/// same.
fn trial_run(
    attached: &mut Attached,
    scratch: &Scratch,
    trial: Trial,
) -> Result<Result<(), Wrong>, ProbeError> {
    // Losses of an earlier trial would show as this one's.
    let lost = attached.lost(SLOT);
    let steps = steps_for(attached.ring_bytes());
    let seed = if let Trial::Data(seed) = trial { seed } else { u8::MAX };
    for (number, (range, operation)) in steps.into_iter().enumerate() {
        let done = match operation {
            Operation::Write => scratch.write(range, &pattern(number, range, seed)),
            Operation::WriteZeroes | Operation::Discard => scratch.discard(range),
        };
        done.map_err(|source| ProbeError::Scratch { source })?;
    }
    let until = attached.produced();
    let mut seen = Vec::new();
    attached.drain(until, &mut |event| seen.extend(keep(event)));
    let mut marked = Vec::new();
    attached.marks(SLOT, Array::Active, &mut |range| marked.push(range));
    let is_marked = |range: &ByteRange| marked.iter().any(|mark| mark.contains(range));
    if !steps.iter().all(|(range, _)| is_marked(range)) {
        return Err(ProbeError::Blind);
    }
    if attached.lost(SLOT) != lost {
        let what = "events of the proof found no room in the ring".to_owned();
        return Ok(Err(Wrong::Missing(what)));
    }
    Ok(compare(&steps, &seen, trial))
}

fn keep(event: Event<'_>) -> Option<Seen> {
    match event {
        Event::Submitted { disk: SLOT, range, operation, data, .. } => {
            Some(Seen::Submitted { range, operation, data: data.map(<[_]>::concat) })
        }
        Event::Completed { disk: SLOT, range, failed, .. } => {
            Some(Seen::Completed { range, failed })
        }
        _ => None,
    }
}

/// Each step must be submitted as a whole and end as a whole before the next one begins.
fn compare(steps: &[(ByteRange, Operation)], seen: &[Seen], trial: Trial) -> Result<(), Wrong> {
    let mut counts = vec![Counts::default(); steps.len()];
    let mut current = 0;
    for event in seen {
        let (Seen::Submitted { range, .. } | Seen::Completed { range, .. }) = event;
        let step = steps.iter().position(|(step, _)| step.contains(range));
        let number =
            step.ok_or_else(|| Wrong::order("the proof saw a write that it did not make"))?;
        if number < current {
            return Err(Wrong::order(format!("write {number} of the proof came out of order")));
        }
        current = number;
        let (step, operation) = steps[number];
        let counts = &mut counts[number];
        match event {
            Seen::Submitted { operation: found, .. } if *found != operation => {
                let what = format!("write {number} of the proof came as another operation");
                return Err(Wrong::Order(what));
            }
            Seen::Submitted { data, .. } => {
                let trial = if operation == Operation::Write { trial } else { Trial::Order };
                compare_bytes(number, *range, data.as_deref(), trial)?;
                counts.submitted += range.length;
            }
            Seen::Completed { failed: true, .. } => {
                let what = format!("the end of write {number} of the proof came wrong");
                return Err(Wrong::Order(what));
            }
            Seen::Completed { .. } => counts.complete(range.length),
        }
        if counts.submitted > step.length || counts.completed > step.length {
            return Err(Wrong::order("the proof saw more writes than it made"));
        }
    }
    // What is wrong whatever has not come goes first.
    let counts = || counts.iter().zip(steps).enumerate();
    let is_whole =
        |counts: &Counts, length| (counts.submitted, counts.completed) == (length, length);
    let backwards = |(counts, (step, _)): (&Counts, &(ByteRange, _))| {
        counts.ended_early && is_whole(counts, step.length)
    };
    if let Some((number, _)) = counts().find(|(_, it)| backwards(*it)) {
        let what = format!("write {number} of the proof ended before it was submitted");
        return Err(Wrong::Order(what));
    }
    match counts().find(|(_, (counts, (step, _)))| !is_whole(counts, step.length)) {
        Some((number, _)) => {
            Err(Wrong::Missing(format!("write {number} of the proof did not come whole")))
        }
        None => Ok(()),
    }
}

fn compare_bytes(
    number: usize,
    range: ByteRange,
    data: Option<&[u8]>,
    trial: Trial,
) -> Result<(), Wrong> {
    match (trial, data) {
        (Trial::Order, None) => Ok(()),
        (Trial::Data(seed), Some(data)) if data == pattern(number, range, seed) => Ok(()),
        (Trial::Data(_), None) => {
            Err(Wrong::Missing(format!("write {number} of the proof came without its bytes")))
        }
        _ => Err(Wrong::Bytes(format!("write {number} of the proof came with other bytes"))),
    }
}

/// Bytes that differ with step, place and trial, so that no wrong page looks right. A
/// multiplicative hash of the place.
fn pattern(step: usize, range: ByteRange, seed: u8) -> Vec<u8> {
    let step = u64::try_from(step).unwrap_or(0) << 56 | u64::from(seed) << 48;
    let byte = |at: u64| (at ^ step).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0];
    (range.offset..range.end()).map(byte).collect()
}

/// A loop device over anonymous memory that detaches itself when closed.
struct Scratch {
    path: PathBuf,
    device: File,
    /// The memory behind it.
    _backing: OwnedFd,
}

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    places: [u64; 5],
    number: u32,
    encryption: [u32; 2],
    flags: u32,
    names: [u8; 160],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    descriptor: u32,
    block_bytes: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

/// LO_FLAGS_AUTOCLEAR.
const DETACH_WHEN_CLOSED: u32 = 4;

mod requests {
    //! The ioctls of loop devices and of block devices that have no wrapper elsewhere.
    nix::ioctl_none_bad!(loop_get_free, 0x4c82);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4c0a, super::LoopConfig);
    nix::ioctl_write_ptr_bad!(discard, 0x1277, [u64; 2]);
    nix::ioctl_write_ptr_bad!(set_read_only, 0x125d, libc::c_int);
}

impl Scratch {
    fn create() -> io::Result<Self> {
        let backing = memfd_create("redoubt-canary", MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&backing, SCRATCH_BYTES.try_into().map_err(io::Error::other)?)?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            // SAFETY: the request takes no argument.
            let number = unsafe { requests::loop_get_free(control.as_raw_fd()) }?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_DIRECT);
            match options.open(&path).and_then(|device| configure(device, &backing)) {
                Ok(device) => return Ok(Self { path, device, _backing: backing }),
                Err(error) if attempt == CONFIGURE_ATTEMPTS => return Err(error),
                Err(_) => {}
            }
        }
    }

    fn write(&self, range: ByteRange, bytes: &[u8]) -> io::Result<()> {
        let mut memory = vec![0; bytes.len() + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        let aligned = &mut memory[start..start + bytes.len()];
        aligned.copy_from_slice(bytes);
        self.device.write_all_at(aligned, range.offset)
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        // SAFETY: the request reads two words, which live until it returns.
        unsafe { requests::discard(self.device.as_raw_fd(), &[range.offset, range.length]) }?;
        Ok(())
    }
}

fn configure(device: File, backing: &OwnedFd) -> io::Result<File> {
    let config = LoopConfig {
        descriptor: backing.as_raw_fd().try_into().map_err(io::Error::other)?,
        block_bytes: 512,
        info: LoopInfo {
            places: [0; 5],
            number: 0,
            encryption: [0; 2],
            flags: DETACH_WHEN_CLOSED,
            names: [0; 160],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: the request reads one loop_config, whose layout is asserted above and which lives
    // until it returns.
    unsafe { requests::loop_configure(device.as_raw_fd(), &config) }?;
    // A loop device keeps this from whoever used it before.
    // SAFETY: the request reads one int, which lives until it returns.
    unsafe { requests::set_read_only(device.as_raw_fd(), &0) }?;
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING_BYTES: u64 = 64 << 20;

    fn submitted(number: usize, trial: Trial) -> Seen {
        let (range, operation) = steps_for(RING_BYTES)[number];
        let data = match trial {
            Trial::Data(seed) if operation == Operation::Write => {
                Some(pattern(number, range, seed))
            }
            _ => None,
        };
        Seen::Submitted { range, operation, data }
    }

    fn completed(number: usize) -> Seen {
        Seen::Completed { range: steps_for(RING_BYTES)[number].0, failed: false }
    }

    /// All that a trial should see, two events a step.
    fn right(trial: Trial) -> Vec<Seen> {
        (0..STEP_COUNT).flat_map(|number| [submitted(number, trial), completed(number)]).collect()
    }

    fn verdict(seen: &[Seen], trial: Trial) -> Result<(), Wrong> {
        compare(&steps_for(RING_BYTES), seen, trial)
    }

    #[test]
    fn what_comes_right_is_right() {
        for trial in [Trial::Order, Trial::Data(3)] {
            assert_eq!(verdict(&right(trial), trial), Ok(()));
        }
    }

    #[test]
    fn any_event_that_does_not_come_is_missing() {
        for trial in [Trial::Order, Trial::Data(3)] {
            for lost in 0..2 * STEP_COUNT {
                let mut seen = right(trial);
                seen.remove(lost);
                let verdict = verdict(&seen, trial);
                assert!(matches!(verdict, Err(Wrong::Missing(_))), "{lost}: {verdict:?}");
            }
        }
        let mut seen = right(Trial::Data(3));
        seen[0] = submitted(0, Trial::Order);
        assert!(matches!(verdict(&seen, Trial::Data(3)), Err(Wrong::Missing(_))));
    }

    #[test]
    fn any_two_events_that_change_places_are_out_of_order() {
        for one in 0..2 * STEP_COUNT {
            for other in one + 1..2 * STEP_COUNT {
                let mut seen = right(Trial::Order);
                seen.swap(one, other);
                let verdict = verdict(&seen, Trial::Order);
                assert!(matches!(verdict, Err(Wrong::Order(_))), "{one} {other}: {verdict:?}");
            }
        }
    }

    /// Whatever is missing beside it.
    #[test]
    fn what_was_not_written_is_a_contradiction() {
        let order = |change: fn(&mut Vec<Seen>)| {
            let mut seen = right(Trial::Order);
            change(&mut seen);
            seen.pop();
            let verdict = verdict(&seen, Trial::Order);
            assert!(matches!(verdict, Err(Wrong::Order(_))), "{verdict:?}");
        };
        order(|seen| seen.insert(1, submitted(0, Trial::Order)));
        order(|seen| seen.insert(2, completed(0)));
        order(|seen| {
            let range = ByteRange::new(3 << 20, 4096);
            seen.insert(0, Seen::Completed { range, failed: false });
        });
        order(|seen| {
            let range = steps_for(RING_BYTES)[0].0;
            seen[1] = Seen::Completed { range, failed: true };
        });
        order(|seen| {
            let range = steps_for(RING_BYTES)[0].0;
            seen[0] = Seen::Submitted { range, operation: Operation::Discard, data: None };
        });
    }

    #[test]
    fn other_bytes_are_a_contradiction() {
        let mut seen = right(Trial::Data(3));
        seen[0] = submitted(0, Trial::Data(2));
        seen.pop();
        assert!(matches!(verdict(&seen, Trial::Data(3)), Err(Wrong::Bytes(_))));
        assert!(matches!(verdict(&right(Trial::Data(3)), Trial::Order), Err(Wrong::Bytes(_))));
    }
}
