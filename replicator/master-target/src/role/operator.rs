//! What an operator orders at the target beyond marks and copies: pause, resume, unprotect, place.
//! What was ordered is durable here before the agent hears of it, so that one that cannot be
//! reached learns it when it comes.

use super::control::{Answer, Control};
use super::error::TargetError;
use super::machine::MachineEvent;
use super::protected::{Protected, Registry, now};
use crate::store::{DiskStatus, PlaceAt, Protection, StoreError};
use redoubt_control::audit::AuditLog;
use redoubt_control::{ExitStatus, Request, Response};
use redoubt_engine::device::Device;
use redoubt_log::{DiskSet, Name};
use redoubt_protocol::message::{Refusal, RefusalCode};
use redoubt_protocol::{TargetEvent, TargetMessage};
use redoubt_transport::{Site, TransportError};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a connected agent may take to do what it was told; the order stands anyway.
const AGENT_PATIENCE: Duration = Duration::from_secs(15);

/// How often a wait for the agent looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What to unprotect.
pub(super) struct Ending<'a> {
    pub disk: Option<&'a Name>,
    pub delete_replica: bool,
}

impl Control {
    /// Pauses a machine, or ends its pause, whoever paused it.
    pub(super) fn pause(&self, machine: &Protected, paused: bool) -> Answer<Response> {
        let word = machine.store.status().pause.say(paused, now());
        let word = machine.store.pause(word).map_err(Response::failed)?;
        say(machine, TargetMessage::Pause(word));
        let heard = wait_for_agent(machine, || machine.live().told_pause >= Some(word));
        // What counts is said, not what was asked for: a later word may have come from the agent.
        let state = if word.paused { "paused" } else { "resumed" };
        let name = &machine.name;
        if word.paused != paused {
            return Err(Response::failed(format!(
                "{name}: {state} by a later word of its agent; see `redoubt status`, and ask again"
            )));
        }
        Ok(told(match heard {
            Heard::Yes => format!("{name}: {state}"),
            Heard::NotYet => format!("{name}: {state} here; its agent has not confirmed it yet"),
            Heard::NotConnected => {
                format!("{name}: {state} here; its agent is not connected, and hears of it then")
            }
        }))
    }

    /// Ends the protection of a disk or of all, and deletes what was kept of it if that was asked
    /// for.
    pub(super) fn unprotect(&self, machine: &Protected, ending: &Ending<'_>) -> Answer<Response> {
        let disks = chosen(machine, ending.disk)?;
        if ending.delete_replica {
            // Before anything has changed.
            machine.store.check_unread().map_err(Response::failed)?;
        }
        let set = set_of(disks.iter());
        // What the journal has and no sync has followed may yet be lost: that is no word of the
        // agent's.
        let before = machine.store.let_go();
        let is_over = |disk: &DiskStatus| match disk.protection {
            Protection::Active => false,
            Protection::EndedByAgent => before.contains(disk.index),
            Protection::EndedByTarget | Protection::Deleted => true,
        };
        let active = set_of(disks.iter().filter(|disk| !is_over(disk)));
        let let_go_before = disks.iter().all(|disk| before.contains(disk.index));
        machine.store.end_protection(set).map_err(Response::failed)?;
        machine.note_ended(set);
        say(machine, TargetMessage::Unprotect { disks: set });
        let let_go = || machine.store.let_go().0 & active.0 == active.0;
        let agent = if !active.is_empty() {
            match wait_for_agent(machine, let_go) {
                Heard::Yes => "its agent has let it go",
                Heard::NotYet => "its agent has not confirmed it yet",
                Heard::NotConnected => "its agent is not connected, and lets it go when it comes",
            }
        } else if let_go_before {
            "its agent had let it go before"
        } else {
            // No word of the agent need come any more: it may know of it for long.
            "it had ended here before, and its agent lets it go when it hears of it"
        };
        let name = &machine.name;
        let what = ending.disk.map_or_else(|| name.to_string(), |disk| format!("{name}/{disk}"));
        if !ending.delete_replica {
            return Ok(told(format!(
                "{what}: protected no more, {agent}; replica and points stay"
            )));
        }
        match ending.disk {
            Some(_) => {
                for disk in &disks {
                    machine.store.delete_replica(disk.index).map_err(Response::failed)?;
                }
                let kept = kept_devices(&disks);
                Ok(told(format!(
                    "{what}: protected no more, {agent}; its replica is deleted{kept}"
                )))
            }
            None => {
                self.remove(machine)?;
                let kept = kept_devices(&disks);
                Ok(told(format!(
                    "{what}: forgotten with all its points; invite it anew to protect it{kept}"
                )))
            }
        }
    }

    /// Shuts a machine out and deletes all that is kept of it. What a cut leaves is taken up at the
    /// next start.
    fn remove(&self, machine: &Protected) -> Answer<()> {
        machine.store.begin_removal().map_err(Response::failed)?;
        self.site.remove_machine(machine.id).map_err(Response::failed)?;
        let refusal = Refusal {
            code: RefusalCode::Unprotected,
            text: "its protection was ended at the target, and its replica deleted: run `redoubt \
                   unprotect` on it to be rid of the tracker, or invite it anew"
                .to_owned(),
        };
        say_event(machine, MachineEvent::Session(TargetEvent::Refuse(refusal)));
        self.registry.remove(machine.id);
        self.registry.store().finish_removal(machine.id).map_err(Response::failed)
    }

    /// Makes a block device the replica of a disk, now or when its agent announces it.
    pub(super) fn place(&self, machine: &Name, disk: &Name, on: &Path) -> Answer<Response> {
        let device = Device::examine(on).map_err(Response::failed)?;
        let wrong = |what: &str| Response::failed(format!("{}: {what}", on.display()));
        if device.read_only {
            return Err(wrong("is read-only: blockdev --setrw makes it writable"));
        }
        if !device.users.is_empty() {
            let what = format!("is in use ({}): free it first", device.users.join(", "));
            return Err(wrong(&what));
        }
        let devices = self.registry.store().devices();
        let same = devices.iter().find(|placed| {
            Device::examine(&placed.device).is_ok_and(|known| known.number == device.number)
        });
        if let Some(placed) = same {
            let own = (machine.as_str(), disk.as_str());
            let what = format!("is the replica of {}/{} already", placed.machine, placed.disk);
            return match (placed.machine.as_str(), placed.disk.as_str()) == own {
                true => Ok(told(format!("{}: {what}", on.display()))),
                false => Err(wrong(&what)),
            };
        }
        let path = device.stable.as_deref().unwrap_or(on);
        let shown = path.display();
        let known = self.registry.all().into_iter().find(|known| known.name == *machine);
        let active = known.as_ref().and_then(|known| {
            let disks = known.store.status().disks;
            disks.into_iter().find(|it| it.name == disk.as_str() && it.protection.is_active())
        });
        if let (Some(known), Some(active)) = (&known, &active) {
            known.store.place(active.index, path).map_err(|error| in_use(error, on))?;
            return Ok(told(format!("{machine}/{disk}: its replica is {shown}")));
        }
        // One that has joined has its store from its first connection on.
        let comes = || Ok(self.site.is_invited(machine)? || self.site.has_joined(machine)?);
        let comes = || comes().map_err(|error: TransportError| Response::failed(error));
        if known.is_none() && !comes()? {
            let what = format!(
                "{machine}: no such machine here, and no open invitation for one: \
                 `redoubt invite --machine {machine}` first"
            );
            return Err(Response::failed(what));
        }
        let at = PlaceAt { machine: machine.as_str(), disk: disk.as_str(), device: path };
        let placed = self.registry.store().place_later(at).map_err(|error| in_use(error, on))?;
        Ok(told(match placed {
            true => format!("{machine}/{disk}: its replica is {shown}"),
            false => {
                format!("{machine}/{disk}: its replica will be {shown} once its agent announces it")
            }
        }))
    }
}

/// Finishes what a cut has left of removals, before anybody is served. A machine of which that
/// fails stays shut out, and keeps nobody else from being served: the next start tries again.
pub(super) fn finish_removals(registry: &Registry, site: &Site, log: &AuditLog) {
    let store = registry.store();
    for machine in store.removing() {
        registry.shut_out(machine);
        let finished = site
            .remove_machine(machine)
            .map_err(TargetError::from)
            .and_then(|()| Ok(store.finish_removal(machine)?));
        let response = match finished {
            Ok(()) => {
                tracing::warn!(%machine, "a removal that was cut has been finished");
                told("a removal that was cut has been finished".to_owned())
            }
            Err(error) => {
                tracing::error!(%machine, %error, "a removal that was cut is not finished");
                Response::failed(format!(
                    "a removal that was cut is not finished, the next start tries again: {error}"
                ))
            }
        };
        log.note_answer(None, "delete-replica", &machine.to_string(), &response);
    }
}

/// The disks that an operator means.
fn chosen(machine: &Protected, disk: Option<&Name>) -> Answer<Vec<DiskStatus>> {
    let mut disks = machine.store.status().disks;
    let Some(disk) = disk else { return Ok(disks) };
    let names: Vec<String> = disks.iter().map(|disk| disk.name.clone()).collect();
    disks.retain(|known| known.name == disk.as_str());
    match disks.is_empty() {
        false => Ok(disks),
        true => {
            Err(Response::failed(format!("{disk}: no such disk; there are: {}", names.join(", "))))
        }
    }
}

fn set_of<'a>(disks: impl Iterator<Item = &'a DiskStatus>) -> DiskSet {
    let mut set = DiskSet::default();
    disks.for_each(|disk| set.insert(disk.index));
    set
}

/// What deleting does not do.
fn kept_devices(disks: &[DiskStatus]) -> String {
    let devices = disks.iter().filter(|disk| disk.replica.is_absolute());
    let devices: Vec<String> = devices.map(|disk| disk.replica.display().to_string()).collect();
    match devices.is_empty() {
        true => String::new(),
        false => format!("; {} is let go with what is on it", devices.join(", ")),
    }
}

/// What a device that somebody holds exclusively answers, in words.
fn in_use(error: StoreError, on: &Path) -> Response {
    // An agent or another target that has it is named by the error itself.
    let is_busy = matches!(&error, StoreError::Storage(error)
        if error.source.kind() == std::io::ErrorKind::ResourceBusy
            && error.source.get_ref().is_none());
    match is_busy {
        true => Response::failed(format!(
            "{}: is in use (mounted, part of another device, or opened exclusively; see lsblk and \
             fuser): free it first",
            on.display()
        )),
        false => Response::failed(error),
    }
}

enum Heard {
    Yes,
    NotYet,
    NotConnected,
}

/// Waits until the agent has done what it was told; an agent that is not connected, or goes
/// meanwhile, is not waited for.
fn wait_for_agent(machine: &Protected, is_done: impl Fn() -> bool) -> Heard {
    let deadline = Instant::now() + AGENT_PATIENCE;
    loop {
        match (is_done(), machine.live().connected.is_some()) {
            (true, _) => return Heard::Yes,
            (false, false) => return Heard::NotConnected,
            (false, true) if Instant::now() >= deadline => return Heard::NotYet,
            (false, true) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

fn told(message: String) -> Response {
    Response::Told { message }
}

fn say(machine: &Protected, message: TargetMessage) {
    say_event(machine, MachineEvent::Say(message));
}

fn say_event(machine: &Protected, event: MachineEvent) {
    // The task ends with the machine only.
    let _ = machine.events.blocking_send(event);
}

/// A whole machine is deleted by its name only, for what is gone is gone.
pub(super) fn check_named(request: &Request) -> Answer<()> {
    if !matches!(request, Request::Unprotect { machine: None, disk: None, delete_replica: true }) {
        return Ok(());
    }
    let message = "deleting all that is kept of a machine needs its name: give --machine";
    Err(Response::Failed { status: ExitStatus::Usage, message: message.to_owned() })
}

#[cfg(test)]
mod tests;
