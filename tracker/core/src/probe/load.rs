//! From the object to attached and pinned programs: open → loaded → attached, each a type that only
//! the one before it makes. It must never attach a program before every map is pinned, nor
//! submissions before completions.

use super::pins::{COMPLETION_PROGRAMS, Pins, SUBMISSION_PROGRAMS};
use super::{ProbeError, ProbeOptions};
use crate::attach::{Side, attach_order};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, OpenObject, PrintLevel, ProgramInput};
use redoubt_ebpf::{Bases, CaptureSkel, CaptureSkelBuilder, OpenCaptureSkel, Settings, numbers};
use std::fs;
use std::mem::MaybeUninit;
use std::path::Path;

/// Where pages lie in the kernel's address space, before the canary has proven it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageBases {
    pub(crate) page_offset_base: u64,
    pub(crate) vmemmap_base: u64,
}

/// x86-64 without randomised memory, with four and with five levels of page tables
/// (Documentation/arch/x86/x86_64/mm.rst).
const FIXED_BASES: [PageBases; 2] = [
    PageBases { page_offset_base: 0xffff_8880_0000_0000, vmemmap_base: 0xffff_ea00_0000_0000 },
    PageBases { page_offset_base: 0xff11_0000_0000_0000, vmemmap_base: 0xffd4_0000_0000_0000 },
];

/// The object is parsed, nothing is in the kernel yet.
pub(crate) struct Opened<'object> {
    skeleton: OpenCaptureSkel<'object>,
    ring_bytes: u32,
}

/// The verifier has taken every program; nothing runs yet.
pub(crate) struct Loaded<'object> {
    skeleton: CaptureSkel<'object>,
    ring_bytes: u32,
}

impl<'object> Opened<'object> {
    pub(crate) fn open(
        storage: &'object mut MaybeUninit<OpenObject>,
        options: &ProbeOptions,
    ) -> Result<Self, ProbeError> {
        if !Path::new("/sys/kernel/btf/vmlinux").exists() {
            return Err(ProbeError::NoTypes);
        }
        let ring_bytes = options.ring_bytes;
        if !ring_bytes.is_power_of_two() || ring_bytes < ProbeOptions::RING_BYTES_MIN {
            return Err(ProbeError::RingSize { bytes: ring_bytes });
        }
        libbpf_rs::set_print(Some((PrintLevel::Warn, print)));
        let refused = |source| ProbeError::Load { source };
        let mut skeleton = CaptureSkelBuilder::default().open(storage).map_err(refused)?;
        skeleton.maps.ring.set_max_entries(ring_bytes).map_err(refused)?;
        Ok(Self { skeleton, ring_bytes })
    }

    pub(crate) fn load(self) -> Result<Loaded<'object>, ProbeError> {
        let skeleton = self.skeleton.load().map_err(|source| ProbeError::Load { source })?;
        Ok(Loaded { skeleton, ring_bytes: self.ring_bytes })
    }
}

impl Loaded<'_> {
    /// Pins the maps, then attaches and pins program after program. What it returns are the bases
    /// worth trying.
    pub(crate) fn attach(mut self, pins: &Pins) -> Result<Vec<PageBases>, ProbeError> {
        pins.create()?;
        self.write_settings()?;
        self.pin_maps(pins)?;
        let bases = self.candidates();
        for side in attach_order() {
            match side {
                Side::Completion => self.attach_programs(pins, &COMPLETION_PROGRAMS)?,
                Side::Submission => self.attach_programs(pins, &SUBMISSION_PROGRAMS)?,
            }
        }
        Ok(bases)
    }

    fn write_settings(&mut self) -> Result<(), ProbeError> {
        let settings = Settings {
            abi: numbers::ABI,
            ring_bytes: u64::from(self.ring_bytes),
            wake_shift: self.ring_bytes.ilog2() - numbers::WAKE_SHARE_SHIFT,
            ..Settings::default()
        };
        self.skeleton
            .maps
            .settings
            .update(&0u32.to_ne_bytes(), &settings.to_bytes(), MapFlags::ANY)
            .map_err(|source| ProbeError::Map { map: "settings", source })
    }

    fn pin_maps(&mut self, pins: &Pins) -> Result<(), ProbeError> {
        let maps = &mut self.skeleton.maps;
        for (name, map) in [
            ("active", &mut maps.active),
            ("arrays", &mut maps.arrays),
            ("slots", &mut maps.slots),
            ("settings", &mut maps.settings),
            ("devices", &mut maps.devices),
            ("ring", &mut maps.ring),
        ] {
            let path = pins.map(name);
            map.pin(&path).map_err(|source| ProbeError::Pin {
                path,
                source: std::io::Error::other(source),
            })?;
        }
        Ok(())
    }

    fn attach_programs(&self, pins: &Pins, names: &[&'static str]) -> Result<(), ProbeError> {
        let programs = &self.skeleton.progs;
        for &name in names {
            let program = match name {
                "request_completed" => &programs.request_completed,
                "request_completed_nested" => &programs.request_completed_nested,
                "bio_completed" => &programs.bio_completed,
                "bio_completed_nested" => &programs.bio_completed_nested,
                "split" => &programs.split,
                _ => &programs.submitted,
            };
            let refused = |source| ProbeError::Attach { program: name, source };
            let mut link = program.attach().map_err(refused)?;
            link.pin(pins.link(name)).map_err(refused)?;
        }
        Ok(())
    }

    /// What the kernel's own variables say, where it names them; then the fixed places.
    fn candidates(&self) -> Vec<PageBases> {
        self.read_bases().into_iter().chain(FIXED_BASES).collect()
    }

    fn read_bases(&self) -> Option<PageBases> {
        let symbols = fs::read_to_string("/proc/kallsyms").ok()?;
        let address = |name: &str| -> Option<u64> {
            let line = symbols.lines().find(|line| line.split_whitespace().nth(2) == Some(name))?;
            u64::from_str_radix(line.split_whitespace().next()?, 16).ok().filter(|at| *at != 0)
        };
        let bases = Bases {
            page_offset_base: address("page_offset_base")?,
            vmemmap_base: address("vmemmap_base")?,
        };
        let mut context = bases.to_bytes();
        let input = ProgramInput { context_in: Some(&mut context), ..ProgramInput::default() };
        let output = self.skeleton.progs.read_bases.test_run(input).ok()?;
        if output.return_value != 0 {
            return None;
        }
        let read = Bases::from_bytes(&context);
        Some(PageBases { page_offset_base: read.page_offset_base, vmemmap_base: read.vmemmap_base })
    }
}

/// libbpf's warnings: the reason of a refusal stands in the last lines.
fn print(level: PrintLevel, message: String) {
    match level {
        PrintLevel::Warn => tracing::warn!(target: "libbpf", "{}", message.trim_end()),
        _ => tracing::debug!(target: "libbpf", "{}", message.trim_end()),
    }
}
