//! `redoubt status`: what goes on, for people or programs, once or every second.

use crate::arguments::Side;
use crate::failure::explain;
use crate::output::{self, Reader};
use crate::table::Table;
use crate::talk;
use clap::Args;
use redoubt_control::status::{DiskState, DiskStatus, MachineStatus, PlacementStatus, RoleStatus};
use redoubt_control::{Client, ExitStatus, Request, Response, Role, RuntimeDirectory};
use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

/// Show every protected disk: its state, why, and what remains to be done.
#[derive(Debug, Args)]
#[command(
    long_about = "Show every protected disk: its state, why, and what remains to be done.\n\n\
        Where agent and target both run here, both are shown; one that does not answer within some \
        seconds is named, and the exit status is 1. STATE is initial-sync, streaming, \
        catch-up, verifying or paused; REASON says why it is not simply streaming. RPO is the age \
        of what the target holds for certain; that of an idle machine does not grow.\n\n\
        Exit status 3: what the target keeps of a machine is damaged or missing; REASON says what.",
    after_long_help = "Examples:\n  \
        redoubt status --watch\n  \
        redoubt status --side target --json | jq '.machines[].disks[] | {name, state}'"
)]
pub struct Status {
    /// Show this role only.
    #[arg(long, value_enum, value_name = "SIDE")]
    side: Option<Side>,

    /// Show it again every second, until interrupted.
    #[arg(long)]
    watch: bool,

    /// Print one JSON object a role and line.
    #[arg(long)]
    json: bool,
}

const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Shows the status.
pub fn run(command: &Status, directory: &RuntimeDirectory) -> anyhow::Result<ExitStatus> {
    let redraw = command.watch && !command.json && io::stdout().is_terminal();
    loop {
        let Told { roles, failure } = ask(command.side, directory)?;
        let text = match command.json {
            true => lines(&roles)?,
            false => roles.iter().map(render).collect::<Vec<_>>().join("\n"),
        };
        let reader = match (redraw, command.watch && !command.json) {
            (true, _) => output::show(&redrawn(&text))?,
            (false, true) => output::show(&format!("{text}\n"))?,
            (false, false) => output::show(&text)?,
        };
        match failure {
            Some(failure) if !command.watch => return Err(failure),
            _ if reader == Reader::Gone => return Ok(ExitStatus::Done),
            // The one that answers is watched on: the other may come back.
            Some(failure) => tracing::warn!("{}", explain(&failure)),
            None if !command.watch => {
                let is_harmed = roles.iter().any(RoleStatus::is_harmed);
                return Ok(if is_harmed { ExitStatus::No } else { ExitStatus::Done });
            }
            None => {}
        }
        thread::sleep(WATCH_INTERVAL);
    }
}

/// What at least one role has told, and why the other has not.
struct Told {
    roles: Vec<RoleStatus>,
    failure: Option<anyhow::Error>,
}

fn ask(side: Option<Side>, directory: &RuntimeDirectory) -> anyhow::Result<Told> {
    let roles = side.map_or_else(|| vec![Role::Agent, Role::Target], |side| vec![side.into()]);
    // At the same time: one that hangs must not hold up the other.
    let answers: Vec<_> = thread::scope(|scope| {
        let asked = roles.iter().map(|role| scope.spawn(|| ask_one(directory, *role)));
        let asked: Vec<_> = asked.collect();
        asked.into_iter().map(|asked| asked.join().expect("asking does not panic")).collect()
    });
    let mut told = Told { roles: Vec::new(), failure: None };
    for answer in answers {
        match answer {
            Ok(status) => told.roles.push(status),
            Err(error) if side.is_none() && talk::is_no_role(&error) => {}
            Err(error) => told.failure = Some(talk::both(told.failure, error)),
        }
    }
    match told.roles.is_empty() {
        true => Err(told.failure.unwrap_or_else(|| talk::nobody(directory))),
        false => Ok(told),
    }
}

fn ask_one(directory: &RuntimeDirectory, role: Role) -> anyhow::Result<RoleStatus> {
    let client = Client::connect(directory, role)?;
    match talk::ask(client, &Request::Status, talk::LOOK_PATIENCE, &mut |_| {})? {
        Response::Status { status } => Ok(status),
        other => Err(talk::unexpected(&other)),
    }
}

fn lines(roles: &[RoleStatus]) -> anyhow::Result<String> {
    let mut text = String::new();
    for role in roles {
        text.push_str(&serde_json::to_string(role)?);
        text.push('\n');
    }
    Ok(text)
}

/// From the top of the terminal, each line and the rest cleared: no flicker.
fn redrawn(text: &str) -> String {
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

fn render(status: &RoleStatus) -> String {
    let waiting: String = status.placements.iter().map(placement).collect();
    if status.machines.is_empty() {
        return format!("{}: protects no machine yet\n{waiting}", status.role);
    }
    let mut table = Table::new([
        "MACHINE",
        "LINK",
        "RPO",
        "DISK",
        "STATE",
        "REASON",
        "REMAINING",
        "ETA",
        "CHURN",
        "SENT",
        "TRACKER",
        "ACKED",
        "POINT",
    ]);
    for machine in &status.machines {
        if machine.disks.is_empty() {
            table.row(row(machine, None));
        }
        for disk in &machine.disks {
            table.row(row(machine, Some(disk)));
        }
    }
    format!("{}\n{}{waiting}", status.role, table.render())
}

fn placement(waiting: &PlacementStatus) -> String {
    let PlacementStatus { machine, disk, device } = waiting;
    let device = output::harmless(&device.to_string_lossy());
    format!("{machine}/{disk}: {device} will be its replica once its agent announces it\n")
}

fn row(machine: &MachineStatus, disk: Option<&DiskStatus>) -> [String; 13] {
    let of = |text: fn(&DiskStatus) -> String| output::or_dash(disk.map(text));
    [
        machine.name.to_string(),
        String::from(if machine.connected { "up" } else { "down" }),
        output::or_dash(machine.rpo_seconds.map(|rpo| format!("{rpo:.1}s"))),
        of(|disk| disk.name.to_string()),
        match &machine.reason {
            Some(_) => DiskState::Paused.to_string(),
            None => of(|disk| disk.state.to_string()),
        },
        match &machine.reason {
            Some(reason) => output::harmless(reason),
            None => of(reasons),
        },
        of(|disk| output::bytes(disk.bytes_remaining)),
        of(|disk| output::or_dash(disk.eta_seconds.map(output::seconds))),
        of(|disk| format!("{}/s", output::bytes(disk.churn_bytes_per_second))),
        of(|disk| format!("{}/s", output::bytes(disk.sent_bytes_per_second))),
        of(tracker),
        of(|disk| {
            let place = |at: redoubt_control::status::PositionStatus| {
                format!("{}/{}", at.acknowledged, at.sequence)
            };
            output::or_dash(disk.position.map(place))
        }),
        of(|disk| output::or_dash(disk.last_point)),
    ]
}

/// Why it does not simply stream, and what is lost whatever goes on.
fn reasons(disk: &DiskStatus) -> String {
    let told = disk.reason.iter().chain(&disk.harm).map(String::as_str).collect::<Vec<_>>();
    output::or_dash((!told.is_empty()).then(|| output::harmless(&told.join("; ")).to_string()))
}

fn tracker(disk: &DiskStatus) -> String {
    output::or_dash(disk.tracker.map(|tracker| {
        let faults = match (tracker.losses, tracker.misses) {
            (0, 0) => String::new(),
            (losses, misses) => format!(" ({losses} lost, {misses} missed)"),
        };
        format!("{} {}{faults}", tracker.mode, tracker.verdict)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> RoleStatus {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_row_a_disk() {
        let status = parse(
            r#"{"role": "agent", "machines": [{
                "id": "05050505-0505-0505-0505-050505050505", "name": "web-01", "connected": true,
                "rpo_seconds": 0.25, "disks": [{
                    "name": "sda", "state": "initial-sync", "reason": null,
                    "bytes_remaining": 1048576, "eta_seconds": 61, "churn_bytes_per_second": 0,
                    "sent_bytes_per_second": 2048,
                    "tracker": {"mode": "data", "losses": 1, "misses": 0, "verdict": "proven"},
                    "position": null, "replica_path": null, "applied_point": null,
                    "last_point": null
                }]
            }]}"#,
        );
        let text = render(&status);
        let words: Vec<&str> = text.lines().nth(2).unwrap().split("  ").map(str::trim).collect();
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        assert_eq!(
            words,
            [
                "web-01",
                "up",
                "0.2s",
                "sda",
                "initial-sync",
                "-",
                "1.0 MiB",
                "1m01s",
                "0 B/s",
                "2.0 KiB/s",
                "data proven (1 lost, 0 missed)",
                "-",
                "-"
            ]
        );
    }

    #[test]
    fn a_machine_whose_store_did_not_open_is_shown_and_harmed() {
        let mut status = parse(
            r#"{"role": "target", "machines": [{
                "id": "05050505-0505-0505-0505-050505050505", "name": "web-01",
                "connected": false, "reason": "store-damaged: x: damaged", "rpo_seconds": null,
                "disks": []
            }]}"#,
        );
        let text = render(&status);
        assert!(text.contains("paused  store-damaged: x: damaged"), "{text}");
        assert!(status.is_harmed());
        status.machines[0].reason = None;
        assert!(!status.is_harmed());
    }

    #[test]
    fn a_redraw_clears_what_was_there() {
        assert_eq!(redrawn("a\nb\n"), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
    }

    #[test]
    fn nothing_protected_is_said() {
        let text = render(&parse(r#"{"role": "target", "machines": []}"#));
        assert_eq!(text, "target: protects no machine yet\n");
    }

    #[test]
    fn a_device_that_waits_for_its_disk_is_shown() {
        let text = render(&parse(
            r#"{"role": "target", "machines": [], "placements": [
                {"machine": "web-01", "disk": "sda", "device": "/dev/vg/x"}]}"#,
        ));
        let line = "web-01/sda: /dev/vg/x will be its replica once its agent announces it\n";
        assert_eq!(text, format!("target: protects no machine yet\n{line}"));
    }
}
