//! A verify that an operator asks of this target: the agent does it, and tells how far it is. It is
//! given up when the operator's command goes away.

use super::machine::MachineEvent;
use super::protected::{Protected, Registry};
use super::status::name_of;
use redoubt_control::socket::Responder;
use redoubt_control::{DifferentRange, Response, VerifyReport};
use redoubt_log::DiskIndex;
use redoubt_log::Name;
use redoubt_protocol::TargetMessage;
use redoubt_protocol::message::RequestId;
use redoubt_protocol::verify::VerifyOutcome;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// How often the command hears how far it is, at least.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// What the agent tells of a verify.
pub(super) enum News {
    /// Bytes that are done with, and of how many.
    Progress(u64, u64),
    /// It has ended.
    Ended(Result<VerifyOutcome, String>),
}

/// Who waits for news of a verify.
pub(super) type Listener = mpsc::Sender<News>;

/// Lets the agent verify a disk of the machine, or all; the last response.
pub(super) fn run(
    registry: &Registry,
    machine: &Protected,
    disk: Option<&Name>,
    responder: &mut dyn Responder,
) -> Result<Response, Response> {
    let names = names(machine);
    let disk = disk.map(|disk| find(&names, disk)).transpose()?;
    let request = registry.next_request();
    let (news, heard) = mpsc::channel();
    {
        let mut live = machine.live();
        if live.connected.is_none() {
            let why = "the agent is not connected: `redoubt status` says since when";
            return Err(Response::failed(format!("{}: {why}", machine.name)));
        }
        live.verifies.insert(request, news);
    }
    say(machine, TargetMessage::Verify { request, disk });
    let ended = listen(&heard, responder);
    machine.live().verifies.remove(&request);
    let Some(result) = ended else {
        say(machine, TargetMessage::GiveUpVerify { request });
        return Err(Response::failed("given up: who asked has gone"));
    };
    let outcome = result.map_err(Response::failed)?;
    Ok(Response::Verified { report: Box::new(report(machine, &names, outcome)?) })
}

/// Passes on what the agent tells; `None` when nobody listens any more.
fn listen(
    heard: &mpsc::Receiver<News>,
    responder: &mut dyn Responder,
) -> Option<Result<VerifyOutcome, String>> {
    let mut progress = (0, 0);
    loop {
        match heard.recv_timeout(TELL_EVERY) {
            Ok(News::Progress(done, total)) => progress = (done, total),
            Ok(News::Ended(result)) => return Some(result),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Some(Err("the target is stopping".to_owned()));
            }
        }
        let (done_bytes, total_bytes) = progress;
        responder.send(&Response::Progress { done_bytes, total_bytes }).ok()?;
    }
}

/// The agent told how far a verify is, or how it ended.
pub(super) fn heard(machine: &Protected, request: RequestId, news: News) {
    let mut live = machine.live();
    // Who asked may have gone.
    match news {
        News::Progress(..) => drop(live.verifies.get(&request).map(|to| to.send(news))),
        News::Ended(_) => drop(live.verifies.remove(&request).map(|to| to.send(news))),
    }
}

fn say(machine: &Protected, message: TargetMessage) {
    // The task ends only with the process.
    let _ = machine.events.blocking_send(MachineEvent::Say(message));
}

fn names(machine: &Protected) -> Vec<(DiskIndex, Name)> {
    let disks = machine.store.status().disks;
    disks.iter().map(|disk| (disk.index, name_of(&disk.name))).collect()
}

fn find(names: &[(DiskIndex, Name)], disk: &Name) -> Result<DiskIndex, Response> {
    let found = names.iter().find(|(_, name)| name == disk).map(|(index, _)| *index);
    found.ok_or_else(|| {
        let known: Vec<&str> = names.iter().map(|(_, name)| name.as_str()).collect();
        let known = known.join(", ");
        Response::failed(format!("{disk}: no such disk; there are: {known}"))
    })
}

fn report(
    machine: &Protected,
    names: &[(DiskIndex, Name)],
    outcome: VerifyOutcome,
) -> Result<VerifyReport, Response> {
    let mut differences = Vec::new();
    for range in &outcome.differences {
        let known = names.iter().find(|(index, _)| *index == range.disk);
        let (_, disk) = known.ok_or_else(|| {
            Response::failed(format!("the agent tells of disk {}, which is unknown", range.disk))
        })?;
        let (offset, length) = (range.offset, range.length);
        differences.push(DifferentRange { disk: disk.clone(), offset, length });
    }
    Ok(VerifyReport {
        machine: name_of(machine.name.as_str()),
        equal: outcome.differing_bytes == 0 && outcome.not_compared_bytes == 0,
        compared_bytes: outcome.compared_bytes,
        not_compared_bytes: outcome.not_compared_bytes,
        discarded_bytes: outcome.discarded_bytes,
        differing_bytes: outcome.differing_bytes,
        differences,
        unlisted_differences: outcome.unlisted,
        point: outcome.point.map(Into::into),
        hindrance: outcome.hindrance,
    })
}
