//! What damage means: which disks, points and positions it touches, and what it leaves unharmed. It
//! claims harm only where a reader would meet the damage.

use super::findings::{Found, Harm, LostRecords};
use super::machine::Place;
use crate::store::manifest::{Manifest, Point, RetentionSpan};
use crate::store::retention::RetentionReader;
use redoubt_control::inspection::{Damage, HarmedPoints, LostPositions, PointInspection};
use redoubt_log::{ByteRange, DiskIndex, DiskSet, RangeSet, Sequence};

/// Points of one disk that cannot be read wholly: those of `from..=to`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Harmed {
    disk: DiskIndex,
    from: Sequence,
    to: Sequence,
}

impl Harmed {
    fn touches(&self, point: &Point) -> bool {
        let is_between = self.from <= point.sequence && point.sequence <= self.to;
        is_between && point.disks.contains(self.disk)
    }
}

/// Tells a finding's meaning, and which points it harms.
pub(super) fn explain(place: Place<'_>, found: &Found) -> (Damage, Vec<Harmed>) {
    let mut damage = Damage {
        machine: Some(place.machine.into()),
        path: found.path.clone(),
        byte: found.byte,
        what: found.what.clone(),
        means: String::new(),
        disks: Vec::new(),
        points: None,
        positions: None,
    };
    let harmed = match &found.harm {
        Harm::Manifest => {
            damage.means = of_manifest(place).to_owned();
            Vec::new()
        }
        Harm::Replica(disk) => {
            damage.disks = place.names(set_of(*disk));
            vec![Harmed { disk: *disk, from: Sequence(0), to: Sequence(u64::MAX) }]
        }
        Harm::Positions(lost) => {
            damage.positions = positions_of(*lost);
            damage.disks = place.names(torn_disks(place, *lost));
            damage.means = of_positions(place, *lost);
            Vec::new()
        }
        Harm::Content { span, range } => {
            damage.disks = place.names(range.map_or(span.disks, |(disk, _)| set_of(disk)));
            match range {
                Some((disk, range)) => vec![of_range(place, span, *disk, *range)],
                None => span
                    .disks
                    .iter()
                    .map(|disk| Harmed { disk, from: Sequence(0), to: span.from })
                    .collect(),
            }
        }
    };
    damage.points = points_of(place, &harmed);
    if let Harm::Replica(_) | Harm::Content { .. } = &found.harm {
        damage.means = of_points(&found.harm, damage.points);
    }
    (damage, harmed)
}

/// Notes at each point which of its disks are harmed.
pub(super) fn mark(points: &mut [PointInspection], place: Place<'_>, harmed: &[Harmed]) {
    for (shown, point) in points.iter_mut().zip(place.points()) {
        for harmed in harmed.iter().filter(|harmed| harmed.touches(point)) {
            let name = place.names(set_of(harmed.disk)).pop().unwrap_or_default();
            if !shown.harmed_disks.contains(&name) {
                shown.harmed_disks.push(name);
            }
        }
    }
}

/// The points that read a range of a retention file: those before it, but not those that find all
/// of the range in a file nearer to them.
fn of_range(place: Place<'_>, span: &RetentionSpan, disk: DiskIndex, range: ByteRange) -> Harmed {
    let nearer = |other: &&RetentionSpan| other.to <= span.from && other.disks.contains(disk);
    let mut missing = RangeSet::new();
    missing.insert(range);
    let spans = place.manifest.iter().flat_map(|manifest| manifest.retention.iter().rev());
    for nearer in spans.filter(nearer) {
        let interval = (nearer.from, nearer.to);
        let opened = RetentionReader::open(place.storage, place.layout, place.machine, interval);
        let found = opened.and_then(|file| {
            let mut found = Vec::new();
            file.find(disk, range, |entry| found.push(entry.range()))?;
            Ok(found)
        });
        // A file that cannot be read hides nothing.
        found.unwrap_or_default().into_iter().for_each(|part| missing.remove(part));
        if missing.is_empty() {
            return Harmed { disk, from: nearer.to, to: span.from };
        }
    }
    Harmed { disk, from: Sequence(0), to: span.from }
}

fn points_of(place: Place<'_>, harmed: &[Harmed]) -> Option<HarmedPoints> {
    let is_harmed = |point: &&Point| harmed.iter().any(|harmed| harmed.touches(point));
    let mut points = place.points().iter().filter(is_harmed);
    let oldest = points.next()?;
    let (newest, count) = points.fold((oldest, 1), |(_, count), point| (point, count + 1));
    Some(HarmedPoints { oldest: oldest.id.into(), newest: newest.id.into(), count })
}

fn positions_of(lost: LostRecords) -> Option<LostPositions> {
    let first = lost.after.map(|after| after.0.saturating_add(1));
    let last =
        lost.until.map(|until| until.0).filter(|last| first.is_none_or(|first| *last >= first));
    (first.is_some() || last.is_some()).then_some(LostPositions { first, last })
}

fn of_manifest(place: Place<'_>) -> &'static str {
    if place.manifest.is_some() {
        return "only the version's number is damaged: no target opens this machine until it is \
                mended; points, replica disks and journal are not touched";
    }
    "the machine's points and positions are known no more, and no target opens it: restore this \
     file; its journal and retention files were checked by themselves, and its replica disks \
     remain raw disks"
}

fn of_points(harm: &Harm, points: Option<HarmedPoints>) -> String {
    let unharmed = "later points and the replica disk itself are not touched";
    match (harm, points) {
        (Harm::Replica(_), Some(_)) => {
            "every point of this disk reads from it what was not overwritten since: restore it; \
             other disks are not touched"
                .to_owned()
        }
        (Harm::Replica(_), None) => "it has no point yet, and no other disk is touched".to_owned(),
        (_, None) => "no point that is kept reads this".to_owned(),
        (Harm::Content { range: Some((_, range)), .. }, Some(_)) => format!(
            "bytes {} to {} of the disk cannot be read at these points; their rest, {unharmed}",
            range.offset,
            range.end().saturating_sub(1)
        ),
        (_, Some(_)) => {
            format!("what was overwritten since these points cannot be read; {unharmed}")
        }
    }
}

/// The disks that lie between two positions because of the loss.
fn torn_disks(place: Place<'_>, lost: LostRecords) -> DiskSet {
    match place.manifest.filter(|manifest| is_in_the_way(manifest, lost)) {
        Some(manifest) => {
            let kept = manifest.disks.iter().filter(|disk| disk.is_kept());
            kept.fold(DiskSet::default(), |mut set, disk| {
                set.insert(disk.index);
                set
            })
        }
        None => DiskSet::default(),
    }
}

/// Whether the records are needed to finish an apply that was cut.
fn is_in_the_way(manifest: &Manifest, lost: LostRecords) -> bool {
    let Some(to) = manifest.applying.filter(|_| lost.is_needed) else { return false };
    let begins_before = lost.after.is_none_or(|after| after < to);
    begins_before && lost.until.is_none_or(|until| until > manifest.applied)
}

fn of_positions(place: Place<'_>, lost: LostRecords) -> String {
    let points = "applied points and their retention files are not touched";
    let Some(manifest) = place.manifest else {
        return "without the manifest it is not known whether these records were applied"
            .to_owned();
    };
    if !lost.is_needed {
        return format!(
            "they were applied and are needed no more: {points}, nor are replica disks"
        );
    }
    if is_in_the_way(manifest, lost) {
        return format!(
            "the apply that was cut cannot be finished: the replica disks that it writes to lie \
             between two positions, and no target opens this machine until the file is restored; \
             {points}"
        );
    }
    if lost.until.is_some_and(|until| until <= manifest.applied) {
        return format!(
            "they were applied: {points}, nor are replica disks, but no target opens this machine \
             until the file is restored"
        );
    }
    format!(
        "they and what follows them were not applied and cannot be: the machine must send them \
         again or be read anew; {points}, nor are replica disks"
    )
}

fn set_of(disk: DiskIndex) -> DiskSet {
    let mut set = DiskSet::default();
    set.insert(disk);
    set
}
