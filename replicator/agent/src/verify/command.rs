//! A verify that an operator asks of this agent over its socket: passes on how far it is, and gives
//! it up when who asked goes away.

use super::{VerifyEvent, VerifyRequest};
use crate::owner::Command;
use crossbeam::channel::Sender;
use redoubt_control::socket::Responder;
use redoubt_control::{DifferentRange, Response, VerifyReport};
use redoubt_log::DiskIndex;
use redoubt_log::Name;
use redoubt_protocol::verify::VerifyOutcome;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// How often the command hears how far it is, at least.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// What is to be verified, of which machine.
pub(crate) struct VerifyCommand<'a> {
    pub machine: &'a Name,
    pub disks: &'a [(DiskIndex, Name)],
    pub disk: Option<&'a Name>,
}

/// Verifies; the last response, or why there is none.
pub(crate) fn verify(
    command: &VerifyCommand<'_>,
    owner: &Sender<Command>,
    responder: &mut dyn Responder,
) -> Result<Response, String> {
    let disk = command.disk.map(|disk| find(command.disks, disk)).transpose()?;
    let (events, heard) = mpsc::channel();
    let given_up = Arc::new(AtomicBool::new(false));
    let tell = Box::new(move |event| {
        // Who asked may have gone.
        let _ = events.send(event);
    });
    let request = VerifyRequest { disk, tell, given_up: given_up.clone() };
    let stopping = || "the agent is stopping".to_owned();
    owner.send(Command::Verify(request)).map_err(|_| stopping())?;
    let mut progress = (0, 0);
    loop {
        match heard.recv_timeout(TELL_EVERY) {
            Ok(VerifyEvent::Progress(done, total)) => progress = (done, total),
            Ok(VerifyEvent::Ended(result)) => {
                let report = Box::new(report(command, result?)?);
                return Ok(Response::Verified { report });
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(stopping()),
        }
        let (done_bytes, total_bytes) = progress;
        if responder.send(&Response::Progress { done_bytes, total_bytes }).is_err() {
            given_up.store(true, Ordering::Release);
            return Err("given up: who asked has gone".to_owned());
        }
    }
}

fn find(disks: &[(DiskIndex, Name)], disk: &Name) -> Result<DiskIndex, String> {
    let found = disks.iter().find(|(_, name)| name == disk).map(|(index, _)| *index);
    found.ok_or_else(|| {
        let known: Vec<&str> = disks.iter().map(|(_, name)| name.as_str()).collect();
        format!("{disk}: no such disk here; there are {}", known.join(", "))
    })
}

fn report(command: &VerifyCommand<'_>, outcome: VerifyOutcome) -> Result<VerifyReport, String> {
    let mut differences = Vec::new();
    for range in &outcome.differences {
        let known = command.disks.iter().find(|(index, _)| *index == range.disk);
        let (_, disk) = known.ok_or_else(|| format!("disk {} has no name", range.disk))?;
        let (offset, length) = (range.offset, range.length);
        differences.push(DifferentRange { disk: disk.clone(), offset, length });
    }
    Ok(VerifyReport {
        machine: command.machine.clone(),
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
