//! `redoubt disks`: what could be protected on this machine. Needs no running role.

use crate::table::Table;
use crate::{output, roles};
use clap::Args;
use redoubt_control::ExitStatus;
use redoubt_control::status::DeviceReport;

/// List this machine's disks, and whether they can be protected.
#[derive(Debug, Args)]
#[command(
    long_about = "List this machine's disks: size, use, stable name, and whether they can be \
        protected, or why not.\n\n\
        Needs no running agent and changes nothing.",
    after_long_help = "Examples:\n  redoubt disks\n  redoubt disks --json | jq -r '.[].device'"
)]
pub struct Disks {
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

/// Lists the disks.
pub fn run(command: &Disks) -> anyhow::Result<ExitStatus> {
    let devices = roles::devices()?;
    match command.json {
        true => output::print_json(&devices)?,
        false => output::print(&render(&devices))?,
    }
    Ok(ExitStatus::Done)
}

/// A table of devices, as `--check` shows it, too.
pub fn render(devices: &[DeviceReport]) -> String {
    let mut table =
        Table::new(["DEVICE", "NAME", "SIZE", "BLOCK", "USED BY", "PROTECTABLE", "REASON"]);
    for device in devices {
        let uses = device.used_by.iter().map(|user| output::harmless(user));
        let own = device.holds_agent_state.then(|| "agent state".to_owned());
        let uses: Vec<String> = uses.chain(own).collect();
        table.row([
            output::harmless(&device.device.to_string_lossy()),
            device.name.to_string(),
            output::bytes(device.size_bytes),
            device.logical_block_bytes.to_string(),
            output::or_dash((!uses.is_empty()).then(|| uses.join(","))),
            device.mode.map_or_else(|| "no".into(), |mode| format!("{mode} mode")),
            reason(device.reason.as_deref(), device.remedy.as_deref()),
        ]);
    }
    table.render()
}

/// Why not, and what to do about it.
pub fn reason(reason: Option<&str>, remedy: Option<&str>) -> String {
    match (reason, remedy) {
        (Some(reason), Some(remedy)) => output::harmless(&format!("{reason}: {remedy}")),
        (reason, _) => output::or_dash(reason.map(output::harmless)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_no_comes_with_its_reason_and_remedy() {
        let device = DeviceReport {
            device: "/dev/sda".into(),
            name: "sda".parse().unwrap(),
            size_bytes: 1 << 30,
            logical_block_bytes: 512,
            used_by: vec!["/".into()],
            holds_agent_state: true,
            mode: None,
            reason: Some("read-only".into()),
            remedy: Some("blockdev --setrw".into()),
        };
        let text = render(&[device]);
        assert!(text.ends_with("no           read-only: blockdev --setrw\n"), "{text}");
        assert!(text.contains("/,agent state"), "{text}");
    }
}
