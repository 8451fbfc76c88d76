//! The thread that applies a machine's journal to its replica disks and lets old points go. It
//! waits for the journal's thread, never the other way round.

use super::error::TargetError;
use super::machine::MachineEvent;
use super::protected::{Protected, now};
use super::status;
use crate::store::{ApplyOutcome, DiskStatus};
use crossbeam::sync::{Parker, Unparker};
use redoubt_protocol::TargetMessage;
use redoubt_protocol::message::{DiskStandstill, bounded_text};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long it sleeps when nothing was said: old points go even while a machine is silent.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// How often points, segments and old retention files are looked at.
const CLEAN_EVERY: Duration = Duration::from_secs(1);

/// A running thread.
pub(super) struct ApplyThread {
    pub unparker: Unparker,
    pub thread: JoinHandle<()>,
}

/// Starts a machine's thread; it ends soon after `stopping` is set and it is unparked.
pub(super) fn start(
    machine: Arc<Protected>,
    keep: Duration,
    journal_keep: Duration,
    stopping: &Arc<AtomicBool>,
) -> Result<ApplyThread, TargetError> {
    let parker = Parker::new();
    let unparker = parker.unparker().clone();
    let apply = Apply { machine, keep, journal_keep, cleaned: Instant::now() };
    let stopping = stopping.clone();
    let thread = std::thread::Builder::new()
        .name("apply".to_owned())
        .spawn(move || apply.run(&parker, &stopping))
        .map_err(|source| TargetError::start("an apply thread", source))?;
    Ok(ApplyThread { unparker, thread })
}

struct Apply {
    machine: Arc<Protected>,
    keep: Duration,
    journal_keep: Duration,
    cleaned: Instant,
}

impl Apply {
    fn run(mut self, parker: &Parker, stopping: &AtomicBool) {
        while !stopping.load(Ordering::Acquire) {
            let busy = self.step();
            self.tell_standstill();
            self.clean();
            if !busy {
                parker.park_timeout(IDLE_WAIT);
            }
        }
    }

    /// Applies one interval; whether there may be another.
    fn step(&mut self) -> bool {
        match self.machine.store.apply_next(now()) {
            Ok(ApplyOutcome::Idle) => {
                self.look_at_replicas();
                false
            }
            Ok(ApplyOutcome::Applied { to, .. }) => {
                self.machine.applied.store(to.0, Ordering::Release);
                self.machine.live().apply_error = None;
                self.machine.live().missing_replicas.clear();
                // The task ends only with the process.
                let _ = self.machine.events.blocking_send(MachineEvent::Applied(to));
                true
            }
            Err(error) => {
                let text = error.to_string();
                self.machine.look_at_replica_files();
                let known = self.machine.live().apply_error.replace(text.clone());
                if known.as_ref() != Some(&text) {
                    tracing::error!(machine = %self.machine.name, %error, "apply stands still");
                }
                false
            }
        }
    }

    /// Tells the agent which replicas stand still, where that has changed.
    fn tell_standstill(&self) {
        if !self.machine.live().stands_still() {
            return;
        }
        let stored = self.machine.store.status().disks;
        let mut live = self.machine.live();
        let still = |disk: &DiskStatus| {
            let reason = bounded_text(&status::standstill(disk.index, &live)?).to_owned();
            Some(DiskStandstill { index: disk.index, reason })
        };
        let active = stored.iter().filter(|disk| disk.protection.is_active());
        let disks: Vec<DiskStandstill> = active.filter_map(still).collect();
        if live.standstill == disks {
            return;
        }
        live.standstill.clone_from(&disks);
        drop(live);
        // The task ends only with the process.
        let say = MachineEvent::Say(TargetMessage::Standstill { disks });
        let _ = self.machine.events.blocking_send(say);
    }

    /// What was missing may be there again, though nothing waits for it.
    fn look_at_replicas(&self) {
        let is_missing = !self.machine.live().missing_replicas.is_empty();
        if is_missing {
            self.machine.look_at_replica_files();
        }
        let is_wrong = self.machine.live().apply_error.is_some();
        if is_wrong && self.machine.store.check_devices().is_ok() {
            self.machine.live().apply_error = None;
        }
    }

    fn clean(&mut self) {
        if self.cleaned.elapsed() < CLEAN_EVERY {
            return;
        }
        self.cleaned = Instant::now();
        let store = &self.machine.store;
        store.look_at_history();
        let dropped = store.drop_expired(now(), self.keep);
        let freed = store.free_segments(now(), self.journal_keep);
        if let Err(error) = dropped.and(freed) {
            tracing::error!(machine = %self.machine.name, %error, "old points or segments stay");
        }
    }
}
