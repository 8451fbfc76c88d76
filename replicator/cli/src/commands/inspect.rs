//! `redoubt inspect`: a target's directory, explained and checked without any role. What there is
//! to tell is the target's; this only prints it.

use crate::output::{self, bytes, harmless, or_dash};
use crate::progress::Progress;
use crate::roles;
use crate::table::Table;
use clap::Args;
use redoubt_control::inspection::{
    Damage, DiskInspection, FinishedApply, Inspection, JournalInspection, LogInspection,
    MachineInspection, PointInspection, RetentionInspection, SiteInspection, Verdict,
};
use redoubt_control::{ExitStatus, InspectOptions};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Explain a target's directory and check every checksum in it.
#[derive(Debug, Args)]
#[command(
    long_about = "Explain a target's directory and check every checksum in it: the site's \
        identity, and each machine's replica disks, recovery points, journal and retention \
        files.\n\n\
        Nothing but the files is needed: no target, no network, no configuration; a read-only \
        mount will do. Nothing is written, and a target may run on the directory meanwhile. What \
        is damaged is named by file and byte, with what that means and what it leaves unharmed; \
        then the exit status is 3. Replica disks are raw disks without checksums: only comparing \
        them with their source proves what they hold.",
    after_long_help = "Examples:\n  \
        redoubt inspect /var/lib/redoubt/target\n  \
        redoubt inspect /mnt/copy --json | jq '.damage[] | {path, byte, means}'\n  \
        redoubt inspect --finish /var/lib/redoubt/target   # no target will start here again"
)]
pub struct Inspect {
    /// The target's data directory.
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// First finish an apply that was cut half done, where no target will start again, so that each
    /// replica disk is a plain raw disk.
    #[arg(long)]
    finish: bool,

    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

/// Looks, and prints what there is.
pub fn run(command: &Inspect) -> anyhow::Result<ExitStatus> {
    let options = InspectOptions { directory: command.directory.clone(), finish: command.finish };
    let mut progress = Progress::new(format!("inspect {}", command.directory.display()));
    let inspection = roles::inspect(&options, &mut |done, total| progress.step(done, total));
    drop(progress);
    let inspection = inspection?;
    if command.json {
        output::print_json(&inspection)?;
    } else {
        output::print(&render(&inspection, command.finish))?;
    }
    Ok(match inspection.verdict {
        Verdict::Unharmed => ExitStatus::Done,
        Verdict::Damaged => ExitStatus::No,
        Verdict::NewerVersion => ExitStatus::Failed,
    })
}

fn render(inspection: &Inspection, finish: bool) -> String {
    let mut parts = vec![head(inspection)];
    if finish {
        parts.push(finished(&inspection.finished));
    }
    parts.extend(inspection.machines.iter().map(|machine| of_machine(machine, inspection)));
    if !inspection.leftovers.is_empty() {
        let mut text = String::from("left by a cut, needed by nothing:\n");
        inspection.leftovers.iter().for_each(|path| line(&mut text, 1, &path_of(path)));
        parts.push(text);
    }
    if !inspection.damage.is_empty() {
        parts.push(damaged(inspection));
    }
    parts.push(verdict(inspection));
    parts.join("\n")
}

fn head(inspection: &Inspection) -> String {
    let mut text = path_of(&inspection.directory) + "\n";
    match &inspection.site {
        Some(site) => of_site(&mut text, site),
        None => line(&mut text, 1, "no site: its identity is not here"),
    }
    if inspection.running {
        line(&mut text, 1, "a target runs on it: the picture may be moving, and only what had");
        line(&mut text, 1, "settled was judged");
    }
    text
}

fn of_site(text: &mut String, site: &SiteInspection) {
    let fingerprint = site.fingerprint.as_deref().map(|print| &print[..print.len().min(16)]);
    let address = site.address.as_deref().map(harmless);
    line(
        text,
        1,
        &format!(
            "site: fingerprint {}, address {}, {} invitations unused",
            or_dash(fingerprint),
            or_dash(address),
            site.unused_invitations
        ),
    );
    for machine in &site.machines {
        let name = machine.name.as_deref().map(harmless);
        line(text, 1, &format!("joined: {} ({})", or_dash(name), machine.id));
    }
}

fn finished(applies: &[FinishedApply]) -> String {
    if applies.is_empty() {
        return "nothing was half done: there was nothing to finish\n".to_owned();
    }
    let mut text = String::new();
    for apply in applies {
        let name = harmless(&apply.name);
        if let Some(why) = &apply.failed {
            line(&mut text, 0, &format!("{name}: the apply to {} was NOT finished", apply.to));
            line(&mut text, 1, &harmless(why));
            continue;
        }
        let at = apply.point.map_or_else(
            || "which is no recovery point".to_owned(),
            |point| format!("recovery point {point}"),
        );
        line(&mut text, 0, &format!("{name}: finished the apply to {}, {at}", apply.to));
        for disk in &apply.disks {
            let place = format!("{}: {}", harmless(&disk.name), path_of(&disk.replica_path));
            let is = match disk.last_point {
                None => "a raw disk; it has no recovery point yet".to_owned(),
                Some(point) if disk.ahead_of_point => format!(
                    "a raw disk ahead of its last point {point}: that point needs a view (`redoubt \
                     copy-out`) or a rollback"
                ),
                Some(point) => format!("a raw disk at point {point}"),
            };
            line(&mut text, 1, &format!("{place}: {is}"));
        }
    }
    text
}

fn of_machine(machine: &MachineInspection, inspection: &Inspection) -> String {
    let name = machine.name.as_deref().map_or_else(|| "machine".to_owned(), harmless);
    let is = match (machine.unharmed, inspection.damage_of(machine.id).next()) {
        (true, _) => "unharmed",
        (false, Some(_)) => "DAMAGED",
        (false, None) => "of a newer version",
    };
    let mut text = format!("{name} ({}): {is}\n", machine.id);
    if let Some(log) = &machine.log {
        of_log(&mut text, log, &machine.journal, inspection.running);
    }
    let tables = [
        disks(&machine.disks),
        points(&machine.points),
        segments(&machine.journal),
        retention(&machine.retention),
    ];
    for table in tables.iter().filter(|table| !table.is_empty()) {
        text.push('\n');
        table.lines().for_each(|row| line(&mut text, 1, row));
    }
    text
}

fn of_log(text: &mut String, log: &LogInspection, journal: &JournalInspection, is_running: bool) {
    let LogInspection { generation, incarnation, role_epoch, applied, durable, .. } = log;
    let run = format!("incarnation {incarnation}, role epoch {role_epoch}");
    line(text, 1, &format!("generation {generation}, {run}"));
    let waits = format!("{} with {} points", bytes(journal.waiting_bytes), journal.waiting_points);
    line(text, 1, &format!("applied up to {applied}, journal up to {durable}: {waits} wait"));
    match log.applying {
        Some(to) if is_running => line(text, 1, &format!("an apply to {to} is under way")),
        Some(to) => {
            line(
                text,
                1,
                &format!("an apply to {to} was cut: a target that starts finishes it, or"),
            );
            line(text, 1, "`redoubt inspect --finish` where none will");
        }
        None => {}
    }
}

fn disks(disks: &[DiskInspection]) -> String {
    let mut table = Table::new(["DISK", "SIZE", "BLOCK", "REPLICA", "STATE", "LAST POINT"]);
    for disk in disks {
        let state = match () {
            () if !disk.present => "missing",
            () if disk.mid_apply => "mid-apply",
            () if disk.last_point.is_none() => "no point yet",
            () if disk.ahead_of_point => "ahead of its point",
            () => "at its point",
        };
        table.row([
            harmless(&disk.name),
            disk.size_bytes.to_string(),
            disk.logical_block_bytes.to_string(),
            path_of(&disk.replica_path),
            state.to_owned(),
            or_dash(disk.last_point),
        ]);
    }
    if disks.is_empty() { String::new() } else { table.render() }
}

fn points(points: &[PointInspection]) -> String {
    let mut table =
        Table::new(["POINT", "TAKEN AT", "KIND", "SEQUENCE", "DISKS", "STATE", "LABEL"]);
    for point in points {
        let complete = if point.complete { "complete" } else { "some disks" };
        let state = match point.harmed_disks.as_slice() {
            [] => complete.to_owned(),
            harmed => format!("DAMAGED: {}", harmless(&harmed.join(","))),
        };
        table.row([
            point.id.to_string(),
            point.taken_at.to_string(),
            point.kind.to_string(),
            point.sequence.to_string(),
            harmless(&point.disks.join(",")),
            state,
            or_dash(point.label.as_deref().map(harmless)),
        ]);
    }
    if points.is_empty() { String::new() } else { table.render() }
}

fn segments(journal: &JournalInspection) -> String {
    let mut table =
        Table::new(["SEGMENT", "ENTRIES", "FIRST", "LAST", "END", "SIZE", "TAIL", "STATE"]);
    for segment in &journal.segments {
        table.row([
            segment.number.to_string(),
            segment.entries.to_string(),
            or_dash(segment.first),
            or_dash(segment.last),
            segment.end_byte.to_string(),
            segment.size_bytes.to_string(),
            segment.tail.to_string(),
            match (segment.unharmed, segment.needed) {
                (false, _) => "DAMAGED",
                (true, true) => "whole",
                (true, false) => "whole, needed no more",
            }
            .to_owned(),
        ]);
    }
    if journal.segments.is_empty() { String::new() } else { table.render() }
}

fn retention(files: &[RetentionInspection]) -> String {
    let mut table =
        Table::new(["RETENTION AFTER", "TO", "DISKS", "PIECES", "CONTENT", "STORED", "STATE"]);
    for file in files {
        table.row([
            file.from.to_string(),
            file.to.to_string(),
            harmless(&file.disks.join(",")),
            file.pieces.to_string(),
            bytes(file.content_bytes),
            bytes(file.stored_bytes),
            if file.unharmed { "whole" } else { "DAMAGED" }.to_owned(),
        ]);
    }
    if files.is_empty() { String::new() } else { table.render() }
}

fn damaged(inspection: &Inspection) -> String {
    let mut text = String::from("damaged:\n");
    for damage in &inspection.damage {
        let place = format!("{}, byte {}", path_of(&damage.path), damage.byte);
        line(&mut text, 1, &format!("{place}: {}", harmless(&damage.what)));
        let touched = touched(damage);
        if !touched.is_empty() {
            line(&mut text, 2, &touched);
        }
        line(&mut text, 2, &harmless(&damage.means));
    }
    text.push_str("unharmed:\n");
    inspection.machines.iter().for_each(|machine| line(&mut text, 1, &unharmed(machine)));
    text
}

/// The disks, points and positions that damage touches.
fn touched(damage: &Damage) -> String {
    let mut parts = Vec::new();
    if !damage.disks.is_empty() {
        parts.push(format!("disks {}", harmless(&damage.disks.join(", "))));
    }
    if let Some(points) = damage.points {
        let (oldest, newest) = (points.oldest, points.newest);
        parts.push(format!("points: {}, from {oldest} to {newest}", points.count));
    }
    if let Some(positions) = damage.positions {
        let to = positions.last.map_or_else(|| "the end".to_owned(), |last| last.to_string());
        let from = positions.first.map_or_else(|| "an unknown one".to_owned(), |at| at.to_string());
        parts.push(format!("positions from {from} to {to}"));
    }
    parts.join("; ")
}

/// What of a machine is as it was written.
fn unharmed(machine: &MachineInspection) -> String {
    let name = machine.name.as_deref().map_or_else(|| machine.id.to_string(), harmless);
    if machine.unharmed {
        return format!("{name}: everything");
    }
    let points = machine.points.iter().filter(|point| point.harmed_disks.is_empty()).count();
    let segments = &machine.journal.segments;
    let whole = segments.iter().filter(|segment| segment.unharmed).count();
    let files = machine.retention.iter().filter(|file| file.unharmed).count();
    let disks = machine.disks.iter().filter(|disk| disk.present).count();
    format!(
        "{name}: {points} of {} points, {disks} of {} replica disks are there, {whole} of {} \
         segments, {files} of {} retention files",
        machine.points.len(),
        machine.disks.len(),
        segments.len(),
        machine.retention.len()
    )
}

fn verdict(inspection: &Inspection) -> String {
    let mut text = String::new();
    for newer in &inspection.newer {
        let (version, known) = (newer.version, newer.known);
        let path = path_of(&newer.path);
        let what = format!("{path}: has version {version}, this program knows up to {known}");
        line(&mut text, 0, &format!("{what}; use a newer one"));
    }
    let checked = bytes(inspection.checked_bytes);
    line(
        &mut text,
        0,
        &match inspection.verdict {
            Verdict::Unharmed => format!("every checksum is right: {checked} checked"),
            Verdict::Damaged => {
                format!("{} damaged places; {checked} checked", inspection.damage.len())
            }
            Verdict::NewerVersion => {
                format!("no damage where this program can tell: {checked} checked")
            }
        },
    );
    if inspection.machines.iter().any(|machine| !machine.disks.is_empty()) {
        line(&mut text, 0, "replica disks have no checksums: only their sources prove them");
    }
    text
}

fn line(text: &mut String, depth: usize, words: &str) {
    writeln!(text, "{:width$}{words}", "", width = 2 * depth)
        .expect("a string takes all that is written to it");
}

fn path_of(path: &Path) -> String {
    harmless(&path.display().to_string())
}
