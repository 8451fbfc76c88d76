//! Owns the kernel side: open → loaded → attached, the pins that let it outlive us, the disks it
//! watches, and the memory it shares. It interprets no write, and it must never detach what another
//! run may still need.

mod counters;
mod disks;
mod load;
pub(crate) mod memory;
mod pins;
mod slots;

pub use counters::ProgramCounters;
use counters::Running;
pub use disks::{DiskCounters, DiskIdentity, PinnedDisk};

use crate::canary;
use crate::ring::Ring;
use crate::source::{Array, CaptureMode, ChangeSource, Event, RingPosition};
use disks::Disk;
use libbpf_rs::{Link, MapHandle};
use load::{Opened, PageBases};
use memory::Mapping;
use pins::{COMPLETION_PROGRAMS, Pins, SUBMISSION_PROGRAMS};
use redoubt_ebpf::{Settings, numbers};
use redoubt_log::{ByteRange, DiskIndex};
use slots::Slots;
use std::collections::BTreeMap;
use std::mem::{MaybeUninit, offset_of};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;
use thiserror::Error;

/// How the kernel side is set up. An adopted one keeps what it was set up with.
#[derive(Clone, Copy, Debug)]
pub struct ProbeOptions {
    /// Size of the ring for all disks: a power of two.
    pub ring_bytes: u32,
}

impl ProbeOptions {
    /// Below this the largest bio with data (a sixteenth of the ring) would be less than an
    /// ordinary one.
    pub const RING_BYTES_MIN: u32 = 1 << 16;
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self { ring_bytes: 64 << 20 }
    }
}

/// What the kernel side was proven to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Marks, order and data.
    Data,
    /// Marks and order, but no data, for this reason.
    Order(String),
    /// Marks only, for this reason.
    Bitmap(String),
}

/// Why the kernel side cannot do what was asked.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// No bpffs.
    #[error("cannot mount bpffs on /sys/fs/bpf: run as root, or mount it")]
    BpfFs {
        /// The mount's error.
        source: std::io::Error,
    },
    /// No BTF.
    #[error(
        "this kernel tells no types (/sys/kernel/btf/vmlinux is missing): \
         it needs CONFIG_DEBUG_INFO_BTF"
    )]
    NoTypes,
    /// A ring that cannot be.
    #[error(
        "a ring of {bytes} bytes: give a power of two of at least {}",
        ProbeOptions::RING_BYTES_MIN
    )]
    RingSize {
        /// The size asked for.
        bytes: u32,
    },
    /// The kernel refused the programs.
    #[error(
        "the kernel does not take the tracker's programs: \
         it needs Linux 5.17 or later and CAP_BPF with CAP_PERFMON"
    )]
    Load {
        /// What it said.
        source: libbpf_rs::Error,
    },
    /// A program did not attach.
    #[error("program {program} does not attach: this kernel may lack its tracepoint")]
    Attach {
        /// The program.
        program: &'static str,
        /// What the kernel said.
        source: libbpf_rs::Error,
    },
    /// A pin.
    #[error("pin {}: look whether another agent holds it, or detach the tracker", path.display())]
    Pin {
        /// Its path.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// A map operation.
    #[error("map {map} of the tracker: detach the tracker and attach it again")]
    Map {
        /// The map.
        map: &'static str,
        /// What the kernel said.
        source: libbpf_rs::Error,
    },
    /// Kernel memory could not be mapped.
    #[error(
        "cannot map memory of {what} of the tracker: look at the memory limits of this process"
    )]
    Memory {
        /// Of what.
        what: &'static str,
        /// The kernel's error.
        source: nix::Error,
    },
    /// The pins are not a whole set of ours.
    #[error("the pins in {} are no complete set of this version: {reason}", path.display())]
    Unfit {
        /// Their directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The slot is taken, or is none.
    #[error(
        "disk {disk} cannot be tracked: its number is taken, or not below {}",
        DiskIndex::LIMIT
    )]
    DiskTaken {
        /// The disk.
        disk: DiskIndex,
    },
    /// No such slot.
    #[error("disk {disk} is not tracked: add it first")]
    DiskUnknown {
        /// The disk.
        disk: DiskIndex,
    },
    /// Too many slots on a device.
    #[error(
        "device {device} carries {} tracked disks already: remove one first",
        numbers::SLOTS_PER_DEVICE
    )]
    DeviceFull {
        /// The whole disk, `major:minor`.
        device: String,
    },
    /// A disk of no size, or beyond what the arrays can count.
    #[error("a disk of {bytes} bytes cannot be tracked")]
    DiskSize {
        /// Its size.
        bytes: u64,
    },
    /// The spare array still holds marks.
    #[error("disk {disk}: the spare array is not clear, so it cannot be cut")]
    SpareNotClear {
        /// The disk.
        disk: DiskIndex,
    },
    /// The scratch device of the canary.
    #[error(
        "the scratch loop device for the proof at attach: \
         load the loop module, or free a loop device"
    )]
    Scratch {
        /// What went wrong.
        source: std::io::Error,
    },
    /// A write was not marked: nothing this tracker says could be believed.
    #[error(
        "a write to a scratch device was not marked: \
         this kernel's tracepoints are not what the tracker expects"
    )]
    Blind,
}

/// A skipped run and its being taken over are counted one after the other.
const READINGS: usize = 4;
const READ_AGAIN_AFTER: Duration = Duration::from_millis(1);

/// The way in.
pub struct Probe;

impl Probe {
    /// Adopts the kernel side pinned in `directory` where that is complete and of this version;
    /// else takes away what is left of it, loads and attaches a new one, and proves it with a
    /// canary write.
    pub fn attach(directory: &Path, options: ProbeOptions) -> Result<Attached, ProbeError> {
        pins::mount_bpf_fs()?;
        let pins = Pins::new(directory);
        let mut refused = None;
        if pins.exist() {
            match Attached::adopt(&pins) {
                Ok(attached) => return Ok(attached),
                Err(error) => {
                    tracing::warn!(%error, "not adopted, starting anew");
                    refused = Some(error.to_string());
                }
            }
            pins.remove_all()?;
        }
        let attached = Self::start(&pins, &options);
        if attached.is_err() {
            // The first error is the one to tell.
            pins.remove_all().ok();
        }
        attached.map(|attached| Attached { refused, ..attached })
    }

    /// Ends the tracking of a pin directory, whoever began it. Fine where there is none.
    pub fn detach(directory: &Path) -> Result<(), ProbeError> {
        Pins::new(directory).remove_all()
    }

    fn start(pins: &Pins, options: &ProbeOptions) -> Result<Attached, ProbeError> {
        let mut storage = MaybeUninit::uninit();
        let bases = Opened::open(&mut storage, options)?.load()?.attach(pins)?;
        let mut attached = Attached::open(pins)?;
        attached.capability = canary::prove(&mut attached, &bases)?;
        let proven = match attached.capability {
            Capability::Data => numbers::PROVEN_DATA,
            Capability::Order(_) => numbers::PROVEN_ORDER,
            Capability::Bitmap(_) => 0,
        };
        attached.setting(offset_of!(Settings, proven)).store(proven, Ordering::Release);
        attached.setting(offset_of!(Settings, complete)).store(1, Ordering::Release);
        Ok(attached)
    }
}

/// Programs that run, and everything shared with them. Dropping it leaves them running: the pins
/// hold them.
pub struct Attached {
    pins: Pins,
    adopted: bool,
    refused: Option<String>,
    capability: Capability,
    programs: Vec<Running>,
    active: MapHandle,
    arrays: MapHandle,
    devices: MapHandle,
    slots: Slots,
    settings: Mapping,
    ring: Ring,
    disks: BTreeMap<DiskIndex, Disk>,
}

impl Attached {
    /// Whether the kernel side was running already.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Why pins that were there were not adopted.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// What the canary proved when the programs were attached.
    pub fn capability(&self) -> &Capability {
        &self.capability
    }

    /// Size of the ring.
    pub fn ring_bytes(&self) -> u64 {
        self.settings.word(offset_of!(Settings, ring_bytes)).load(Ordering::Relaxed)
    }

    /// Bytes of the ring that hold events.
    pub fn ring_fill(&self) -> u64 {
        self.ring.fill()
    }

    /// Waits until another eighth of the ring is filled, at most for `timeout`; whether it was
    /// woken.
    pub fn wait(&self, timeout: Duration) -> Result<bool, ProbeError> {
        self.ring.wait(timeout).map_err(|source| ProbeError::Memory { what: "the ring", source })
    }

    /// What the kernel counted for each program. The skipped runs are missed writes: of those of a
    /// completion's first program only what its second one did not take over.
    pub fn program_counters(&self) -> Result<Vec<ProgramCounters>, ProbeError> {
        self.programs.iter().map(|program| self.counters_of(program)).collect()
    }

    fn counters_of(&self, program: &Running) -> Result<ProgramCounters, ProbeError> {
        let mut counters = program.counters()?;
        let Some(completion) = pins::completion_of(counters.program) else {
            // Where a second program is skipped its first one ran, or counts it.
            if pins::is_second(counters.program) {
                counters.recursion_misses = 0;
            }
            return Ok(counters);
        };
        let at = offset_of!(Settings, taken_over) + completion * size_of::<u64>();
        let taken_over = self.settings.word(at);
        for _ in 0..READINGS {
            let before = taken_over.load(Ordering::Acquire);
            counters = program.counters()?;
            let still = taken_over.load(Ordering::Acquire) == before;
            counters.recursion_misses = counters.recursion_misses.saturating_sub(before);
            if still && counters.recursion_misses == 0 {
                break;
            }
            std::thread::sleep(READ_AGAIN_AFTER);
        }
        Ok(counters)
    }

    /// Takes the pins away: the kernel lets everything go with this process.
    pub fn remove_pins(&self) -> Result<(), ProbeError> {
        self.pins.remove_all()
    }

    /// Ends the tracking.
    pub fn detach(self) -> Result<(), ProbeError> {
        self.pins.remove_all()
    }

    fn adopt(pins: &Pins) -> Result<Self, ProbeError> {
        let mut attached = Self::open(pins)?;
        let unfit =
            |reason: &str| ProbeError::Unfit { path: pins.map(""), reason: reason.to_owned() };
        if attached.setting(offset_of!(Settings, complete)).load(Ordering::Acquire) == 0 {
            return Err(unfit("its attach was interrupted"));
        }
        attached.adopted = true;
        let not_proven = || "the proof at attach did not succeed".to_owned();
        attached.capability =
            match attached.setting(offset_of!(Settings, proven)).load(Ordering::Relaxed) {
                numbers::PROVEN_DATA => Capability::Data,
                numbers::PROVEN_ORDER => Capability::Order(not_proven()),
                _ => Capability::Bitmap(not_proven()),
            };
        attached.adopt_disks()?;
        Ok(attached)
    }

    /// Takes hold of pinned maps and links.
    fn open(pins: &Pins) -> Result<Self, ProbeError> {
        let open = |name: &'static str| {
            MapHandle::from_pinned_path(pins.map(name))
                .map_err(|source| ProbeError::Map { map: name, source })
        };
        let mapped = |what| move |source| ProbeError::Memory { what, source };
        let settings = open("settings")?;
        let settings = Mapping::of_array(&settings).map_err(mapped("the settings"))?;
        let abi = settings.half_word(offset_of!(Settings, abi)).load(Ordering::Relaxed);
        if abi != numbers::ABI {
            let reason = format!("it speaks version {abi}, this agent {}", numbers::ABI);
            return Err(ProbeError::Unfit { path: pins.map(""), reason });
        }
        let ring_bytes = settings.word(offset_of!(Settings, ring_bytes)).load(Ordering::Relaxed);
        let mut programs = Vec::new();
        for program in COMPLETION_PROGRAMS.into_iter().chain(SUBMISSION_PROGRAMS) {
            let link = Link::open(pins.link(program))
                .map_err(|source| ProbeError::Attach { program, source })?;
            programs.push(Running::of(program, &link)?);
        }
        Ok(Self {
            pins: pins.clone(),
            adopted: false,
            refused: None,
            capability: Capability::Bitmap("nothing is proven yet".to_owned()),
            programs,
            active: open("active")?,
            arrays: open("arrays")?,
            devices: open("devices")?,
            slots: Slots::map(&open("slots")?).map_err(mapped("the slots"))?,
            settings,
            ring: Ring::open(&open("ring")?, ring_bytes).map_err(mapped("the ring"))?,
            disks: BTreeMap::new(),
        })
    }

    fn setting(&self, offset: usize) -> &std::sync::atomic::AtomicU32 {
        self.settings.half_word(offset)
    }

    /// Tells the programs where pages lie, or with `None` that nobody knows.
    pub(crate) fn set_bases(&self, bases: Option<PageBases>) {
        let bases = bases.unwrap_or(PageBases { page_offset_base: 0, vmemmap_base: 0 });
        // The switch last: a program that sees it sees the other too.
        self.settings
            .word(offset_of!(Settings, vmemmap_base))
            .store(bases.vmemmap_base, Ordering::Release);
        self.settings
            .word(offset_of!(Settings, page_offset_base))
            .store(bases.page_offset_base, Ordering::Release);
    }
}

pub(crate) use load::PageBases as Bases;

impl ChangeSource for Attached {
    type Error = ProbeError;

    fn produced(&self) -> RingPosition {
        self.ring.produced()
    }

    fn drain(&mut self, until: RingPosition, sink: &mut dyn FnMut(Event<'_>)) -> RingPosition {
        self.ring.drain(until, sink)
    }

    fn forget_partial(&mut self, disk: DiskIndex) {
        self.ring.forget_partial(disk);
    }

    fn lost(&self, disk: DiskIndex) -> u64 {
        self.slots.counters(disk).lost
    }

    fn unmarked(&self, disk: DiskIndex) -> u64 {
        self.slots.counters(disk).unmarked
    }

    fn set_mode(&mut self, disk: DiskIndex, mode: CaptureMode) -> Result<(), ProbeError> {
        self.change_mode(disk, mode)
    }

    fn cut(&mut self, disk: DiskIndex) -> Result<(), ProbeError> {
        self.swap_arrays(disk)
    }

    fn marks(&self, disk: DiskIndex, array: Array, each: &mut dyn FnMut(ByteRange)) {
        if let Some(disk) = self.disks.get(&disk) {
            disk.marks(array, each);
        }
    }

    fn mark(&mut self, disk: DiskIndex, range: ByteRange) {
        if let Some(disk) = self.disks.get(&disk) {
            disk.mark(range);
        }
    }

    fn clear_spare(&mut self, disk: DiskIndex) {
        if let Some(disk) = self.disks.get(&disk) {
            disk.clear_spare();
        }
    }
}
