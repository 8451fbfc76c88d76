//! One machine: its manifest, replica disks, journal and retention files, one after the other.
//! Where a target runs, only what a second look finds as well is damage.

use super::findings::{Findings, Found, Harm, LostRecords, Newer};
use super::journal::Journal;
use super::{StoreInspection, harm, journal, manifest, retention};
use crate::store::error::{Result, StoreError};
use crate::store::layout::{MachineLayout, parse_sealed_name, parse_segment_name};
use crate::store::manifest::{Disk, Manifest, Point, RetentionSpan};
use crate::store::placement;
use redoubt_control::inspection::{
    DiskInspection, LogInspection, MachineInspection, NewerFile, PointInspection,
};
use redoubt_control::status::PointKind;
use redoubt_control::units::UtcTime;
use redoubt_engine::storage::{BlockFile, Open, Storage};
use redoubt_log::{DiskIndex, DiskSet, MachineId, Sequence};
use std::path::{Path, PathBuf};

/// Looks at a machine whose picture moves: what three looks do not agree on is not judged.
const LOOKS: usize = 3;

/// The machine that is looked at.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) root: &'a Path,
    pub(super) machine: MachineId,
    pub(super) is_running: &'a dyn Fn() -> bool,
}

/// What the checks of one look have in common.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) layout: &'a MachineLayout,
    pub(super) machine: MachineId,
    /// As it was when the look began; `None` where it cannot be used.
    pub(super) manifest: Option<&'a Manifest>,
    root: &'a Path,
    is_running: &'a dyn Fn() -> bool,
}

impl<'a> Place<'a> {
    /// Whether a target runs now.
    pub(super) fn is_running(&self) -> bool {
        (self.is_running)()
    }

    /// A path as the operator knows it.
    pub(super) fn path(&self, inside: &Path) -> PathBuf {
        self.root.join(inside)
    }

    /// The disks' names, as far as they are known.
    pub(super) fn names(&self, disks: DiskSet) -> Vec<String> {
        let name = |index: DiskIndex| {
            let disk = self.manifest.and_then(|manifest| manifest.disk(index));
            disk.map_or_else(|| index.to_string(), |disk| disk.name.clone())
        };
        disks.iter().map(name).collect()
    }

    /// Up to here the journal must go: this far it was read to be applied.
    pub(super) fn required(&self) -> Sequence {
        let required = |manifest: &Manifest| manifest.applying.unwrap_or(manifest.applied);
        self.manifest.map_or(Sequence(0), required)
    }

    /// The manifest's points, oldest first.
    pub(super) fn points(&self) -> &'a [Point] {
        self.manifest.map_or(&[], |manifest| &manifest.points)
    }

    /// Whether the segment is needed still: a target may have come further since the look began.
    pub(super) fn needs_segment(&self, number: u64) -> bool {
        self.now().is_none_or(|manifest| manifest.journal.segment <= number)
    }

    /// Whether the retention file is needed still.
    pub(super) fn needs_retention(&self, span: &RetentionSpan) -> bool {
        self.now().is_none_or(|manifest| manifest.retention.contains(span))
    }

    fn now(&self) -> Option<Manifest> {
        manifest::peek(self.storage, &self.layout.manifest())
    }
}

/// What one look at a machine has shown.
struct Look {
    manifest: Option<Manifest>,
    machine: MachineInspection,
    found: Vec<Found>,
    newer: Vec<Newer>,
    leftovers: Vec<PathBuf>,
}

/// Looks at a machine and adds what there is to the inspection.
pub(super) fn inspect(
    subject: Subject<'_>,
    findings: &mut Findings<'_>,
    inspection: &mut StoreInspection,
) -> Result<()> {
    let layout = MachineLayout::new(subject.machine);
    let mut earlier: Option<Vec<Found>> = None;
    let mut looks = 0;
    let mut seen = loop {
        looks += 1;
        let mut seen = match look(subject, &layout, findings)? {
            Some(seen) => seen,
            None => {
                if !(subject.is_running)() {
                    inspection.leftovers.push(subject.root.join(layout.root()));
                }
                return Ok(());
            }
        };
        let is_settled = seen.found.is_empty() || !is_moving(subject, &layout, &seen);
        if is_settled || earlier.as_ref() == Some(&seen.found) {
            break seen;
        }
        if looks == LOOKS {
            let earlier = earlier.unwrap_or_default();
            seen.found.retain(|found| earlier.contains(found));
            break seen;
        }
        earlier = Some(seen.found);
    };
    let place = Place {
        storage: subject.storage,
        layout: &layout,
        machine: subject.machine,
        manifest: seen.manifest.as_ref(),
        root: subject.root,
        is_running: subject.is_running,
    };
    for found in &seen.found {
        let (damage, harmed) = harm::explain(place, found);
        harm::mark(&mut seen.machine.points, place, &harmed);
        inspection.damage.push(damage);
    }
    seen.machine.unharmed = seen.found.is_empty() && seen.newer.is_empty();
    inspection.newer.extend(seen.newer.into_iter().map(|newer| NewerFile {
        machine: Some(subject.machine.into()),
        path: newer.path,
        version: newer.version,
        known: newer.known,
    }));
    inspection.leftovers.extend(seen.leftovers);
    inspection.machines.push(seen.machine);
    Ok(())
}

/// Whether somebody may have changed what was looked at meanwhile.
fn is_moving(subject: Subject<'_>, layout: &MachineLayout, seen: &Look) -> bool {
    (subject.is_running)() || manifest::peek(subject.storage, &layout.manifest()) != seen.manifest
}

/// Looks once; `None` where the machine's creation was cut before it was a machine, or its deletion
/// has begun.
fn look(
    subject: Subject<'_>,
    layout: &MachineLayout,
    findings: &mut Findings<'_>,
) -> Result<Option<Look>> {
    let Subject { storage, root, machine, is_running } = subject;
    let path = root.join(layout.manifest());
    let (manifest, is_there) = manifest::read(storage, &layout.manifest(), machine, findings)?;
    for found in &mut findings.damage {
        found.path.clone_from(&path);
    }
    for newer in &mut findings.newer {
        newer.path.clone_from(&path);
    }
    // A target that starts finishes the deletion: what is left of the machine is nobody's.
    if manifest.as_ref().is_some_and(|manifest| manifest.removing) {
        findings.damage.clear();
        return Ok(None);
    }
    let place = Place { storage, layout, machine, manifest: manifest.as_ref(), root, is_running };
    let files = Files::list(place, findings)?;
    if !is_there {
        if files.is_empty() && findings.damage.is_empty() {
            return Ok(None);
        }
        let what = "the manifest is missing".to_owned();
        findings.damaged(Found { path, byte: 0, what, harm: Harm::Manifest });
    }
    let present = replicas(place, findings)?;
    let journal = journal::check(place, findings, &files.journal)?;
    let mut files_checked = Vec::new();
    for span in files.spans(place) {
        files_checked.extend(retention::check(place, findings, span)?);
    }
    let machine = MachineInspection {
        id: machine.into(),
        name: manifest.as_ref().map(|manifest| manifest.name.clone()),
        unharmed: true,
        log: manifest.as_ref().map(|manifest| log_of(manifest, &journal)),
        disks: disks_of(place, &journal, &present),
        points: points_of(place),
        journal: journal.inspection,
        retention: files_checked,
    };
    let leftovers = if place.is_running() { Vec::new() } else { files.leftovers(place) };
    let found = std::mem::take(&mut findings.damage);
    let newer = std::mem::take(&mut findings.newer);
    Ok(Some(Look { manifest, machine, found, newer, leftovers }))
}

/// The names below a machine's directory.
struct Files {
    journal: Vec<String>,
    disks: Vec<String>,
    retention: Vec<String>,
}

impl Files {
    fn list(place: Place<'_>, findings: &mut Findings<'_>) -> Result<Self> {
        let mut list = |inside: PathBuf| {
            place.storage.list(&inside).or_else(|error| {
                let path = place.path(&inside);
                let all = LostRecords { after: None, until: None, is_needed: true };
                findings.take(&path, 0, error.into(), Harm::Positions(all)).map(|()| Vec::new())
            })
        };
        Ok(Self {
            journal: list(place.layout.journal())?,
            disks: list(place.layout.disks())?,
            retention: list(place.layout.retention())?,
        })
    }

    fn is_empty(&self) -> bool {
        self.journal.is_empty() && self.disks.is_empty() && self.retention.is_empty()
    }

    /// The retention files that the manifest lists, or without one all that were sealed.
    fn spans(&self, place: Place<'_>) -> Vec<RetentionSpan> {
        if let Some(manifest) = place.manifest {
            return manifest.retention.clone();
        }
        let intervals = self.retention.iter().filter_map(|name| parse_sealed_name(name));
        let span = |(from, to)| RetentionSpan { from, to, disks: DiskSet::default() };
        intervals.map(span).collect()
    }

    /// What no manifest speaks of, where there is one.
    fn leftovers(&self, place: Place<'_>) -> Vec<PathBuf> {
        let Some(manifest) = place.manifest else { return Vec::new() };
        let is_listed = |name: &String| {
            let interval = parse_sealed_name(name);
            manifest.retention.iter().any(|span| interval == Some((span.from, span.to)))
        };
        let is_disk = |name: &String| {
            let mut files = kept(place).filter(|disk| disk.device.is_none());
            files.any(|disk| disk.index.to_string() == *name)
        };
        let retention = self.retention.iter().filter(|name| !is_listed(name));
        let disks = self.disks.iter().filter(|name| !is_disk(name));
        let journal = self.journal.iter().filter(|name| parse_segment_name(name).is_none());
        let retention = retention.map(|name| place.layout.retention().join(name));
        let disks = disks.map(|name| place.layout.disks().join(name));
        let journal = journal.map(|name| place.layout.journal().join(name));
        retention.chain(disks).chain(journal).map(|path| place.path(&path)).collect()
    }
}

/// Bytes of the machine's files that an inspection reads, as far as they can be told.
pub(super) fn bytes_of(storage: &dyn Storage, machine: MachineId) -> u64 {
    let layout = MachineLayout::new(machine);
    let directories = [layout.journal(), layout.retention()];
    let names = directories.iter().flat_map(|directory| {
        let names = storage.list(directory).unwrap_or_default();
        names.into_iter().map(|name| directory.join(name))
    });
    names.filter_map(|path| storage.open(&path, Open::ReadOnly).ok()).map(|file| file.size()).sum()
}

/// Looks for every replica disk; returns those that are there and have their size.
fn replicas(place: Place<'_>, findings: &mut Findings<'_>) -> Result<DiskSet> {
    let mut present = DiskSet::default();
    for disk in kept(place) {
        let inside = disk.replica_path(place.layout);
        let path = place.path(&inside);
        let harm = Harm::Replica(disk.index);
        match place.storage.open(&inside, Open::ReadOnly) {
            Err(error) => findings.take(&path, 0, error.into(), harm)?,
            Ok(file) => match wrong_with(place, disk, &*file) {
                Ok(None) => present.insert(disk.index),
                Ok(Some((byte, what))) => findings.damaged(Found { path, byte, what, harm }),
                Err(error) => findings.take(&path, 0, error, harm)?,
            },
        }
    }
    Ok(present)
}

/// Why what is there cannot be the replica, and where: a file has the disk's size, and a device is
/// the one that was placed.
fn wrong_with(
    place: Place<'_>,
    disk: &Disk,
    file: &dyn BlockFile,
) -> Result<Option<(u64, String)>> {
    let Some(placed) = &disk.device else {
        let what = || format!("has {} bytes, the disk has {}", file.size(), disk.size);
        let byte = file.size().min(disk.size);
        return Ok((file.size() != disk.size).then(|| (byte, what())));
    };
    let device = placement::Place {
        machine: place.machine,
        disk: disk.index,
        name: &disk.name,
        size: disk.size,
    };
    match device.prove(file, placed) {
        Err(StoreError::WrongDevice { what, .. }) => Ok(Some((0, what))),
        proven => proven.map(|()| None),
    }
}

/// The disks that have a replica still.
fn kept<'a>(place: Place<'a>) -> impl Iterator<Item = &'a Disk> {
    let disks = place.manifest.into_iter().flat_map(|manifest| &manifest.disks);
    disks.filter(|disk| disk.is_kept())
}

fn log_of(manifest: &Manifest, journal: &Journal) -> LogInspection {
    LogInspection {
        generation: manifest.generation.into(),
        incarnation: manifest.incarnation.0,
        role_epoch: manifest.role_epoch.0,
        applied: manifest.applied.0,
        applying: manifest.applying.map(|to| to.0),
        durable: journal.durable.0,
    }
}

fn disks_of(place: Place<'_>, journal: &Journal, present: &DiskSet) -> Vec<DiskInspection> {
    let Some(manifest) = place.manifest else { return Vec::new() };
    let last_point = |disk: &Disk| {
        let mut points = manifest.points.iter().rev();
        points.find(|point| point.disks.contains(disk.index)).map(|point| point.id.into())
    };
    let disk = |disk: &Disk| DiskInspection {
        index: disk.index.0,
        name: disk.name.clone(),
        size_bytes: disk.size,
        logical_block_bytes: disk.logical_block_size,
        replica_path: place.path(&disk.replica_path(place.layout)),
        present: present.contains(disk.index),
        has_data: disk.has_data,
        consistent: disk.consistent_from.is_some(),
        mid_apply: journal.mid_apply.contains(disk.index),
        ahead_of_point: disk.ahead_of_point,
        last_point: last_point(disk),
    };
    kept(place).map(disk).collect()
}

fn points_of(place: Place<'_>) -> Vec<PointInspection> {
    let point = |point: &Point| PointInspection {
        id: point.id.into(),
        taken_at: UtcTime::from_nanoseconds(point.taken_at.0),
        kind: match point.kind {
            redoubt_log::PointKind::CrashConsistent => PointKind::CrashConsistent,
            redoubt_log::PointKind::ApplicationConsistent => PointKind::ApplicationConsistent,
        },
        label: (!point.label.is_empty()).then(|| point.label.clone()),
        sequence: point.sequence.0,
        disks: place.names(point.disks),
        complete: point.complete,
        harmed_disks: Vec::new(),
    };
    place.manifest.iter().flat_map(|manifest| &manifest.points).map(point).collect()
}
