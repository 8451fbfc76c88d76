//! What the status shows, followed: each change of it becomes an entry of the audit log. An entry
//! that finds no room waits for it; meanwhile what follows it is not lost, but told as one change.

use crate::audit::{AuditEntry, AuditLog};
use crate::lines::Lines;
use crate::status::{DiskState, TrackerMode};
use redoubt_log::Name;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the status is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long a state must last to be an entry: a disk under load leaves `streaming` for moments,
/// many times a minute. Sessions and counts, which tell why, are told however short they were.
const HOLD: Duration = Duration::from_millis(500);

/// Between two entries of one count for one reason: where it rises all the time, the log must not
/// be full of it.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// Lines of one machine at once, and how long each takes to come back: one of 63 disks begins, ends
/// and begins again without a pause, and one whose agent is hostile, or whose line is bad for
/// weeks, leaves the log to others. Meanwhile its changes wait, and are told as one.
const LINES: u32 = 256;
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What the status shows of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSight {
    /// Its name.
    pub name: Name,
    /// How many sessions it has had, in this run of the role.
    pub sessions: u64,
    /// Whether it has one.
    pub connected: bool,
    /// Its disks.
    pub disks: Vec<DiskSight>,
}

/// What the status shows of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSight {
    /// Its name within the machine.
    pub name: Name,
    /// What goes on.
    pub state: DiskState,
    /// Why.
    pub reason: Option<String>,
    /// How it is tracked, where that is known.
    pub mode: Option<TrackerMode>,
    /// Events that the full ring lost.
    pub losses: u64,
    /// Program runs that were skipped, submissions and completions that were missed.
    pub misses: u64,
    /// Gaps of its log in this run, and the reason of the last; 0 where only the agent knows.
    pub gaps: (u64, String),
    /// What is lost of what is kept of it.
    pub harm: Option<String>,
}

/// What was written of a value that must last, and since when another stands.
#[derive(Debug)]
struct Lasting<T> {
    written: Option<T>,
    other: Option<(T, Instant)>,
}

impl<T> Default for Lasting<T> {
    fn default() -> Self {
        Self { written: None, other: None }
    }
}

impl<T: Clone + PartialEq> Lasting<T> {
    /// Whether this value is to be written now.
    fn is_news(&mut self, value: &T, now: Instant, lines: &mut Lines) -> bool {
        if self.written.as_ref() == Some(value) {
            self.other = None;
            return false;
        }
        let since = match &self.other {
            Some((other, since)) if other == value => *since,
            _ => {
                self.other = Some((value.clone(), now));
                now
            }
        };
        if now.saturating_duration_since(since) < HOLD || lines.next(now).is_none() {
            return false;
        }
        (self.written, self.other) = (Some(value.clone()), None);
        true
    }
}

/// What was written of a count.
#[derive(Debug, Default)]
struct Count {
    written: u64,
    why: String,
    at: Option<Instant>,
}

impl Count {
    /// Whether this count is to be written now; one that begins anew with a role is none.
    fn is_news(&mut self, count: u64, why: &str, now: Instant, lines: &mut Lines) -> bool {
        self.written = self.written.min(count);
        let is_due = self.at.is_none_or(|at| now.saturating_duration_since(at) >= COUNT_EVERY);
        let is_news = count > self.written && (is_due || why != self.why);
        let is_news = is_news && lines.next(now).is_some();
        if is_news {
            *self = Self { written: count, why: why.to_owned(), at: Some(now) };
        }
        is_news
    }
}

#[derive(Debug)]
struct MachineTold {
    sessions: u64,
    connected: bool,
    disks: BTreeMap<Name, DiskTold>,
    lines: Lines,
}

#[derive(Debug, Default)]
struct DiskTold {
    state: Lasting<(DiskState, Option<String>)>,
    mode: Lasting<TrackerMode>,
    losses: Count,
    misses: Count,
    gaps: Count,
    harm: Option<String>,
}

/// What was told of each machine.
#[derive(Debug, Default)]
pub struct Chronicle {
    machines: BTreeMap<Name, MachineTold>,
}

impl Chronicle {
    /// What there is to be told of what is seen now.
    pub fn look(&mut self, machines: &[MachineSight], now: Instant) -> Vec<AuditEntry> {
        let mut entries = Vec::new();
        for machine in machines {
            let new = || MachineTold::new(now);
            let told = self.machines.entry(machine.name.clone()).or_insert_with(new);
            told.look_at_session(machine, now, &mut entries);
            for disk in &machine.disks {
                let object = format!("{}/{}", machine.name, disk.name);
                told.disks.entry(disk.name.clone()).or_default().look(
                    disk,
                    &object,
                    now,
                    (&mut told.lines, &mut entries),
                );
            }
            told.disks.retain(|name, _| machine.disks.iter().any(|disk| disk.name == *name));
        }
        self.machines.retain(|name, _| machines.iter().any(|machine| machine.name == *name));
        entries
    }
}

impl MachineTold {
    fn new(now: Instant) -> Self {
        let lines = Lines::new(LINES, LINE_EVERY, now);
        Self { sessions: 0, connected: false, disks: BTreeMap::new(), lines }
    }

    fn look_at_session(
        &mut self,
        machine: &MachineSight,
        now: Instant,
        entries: &mut Vec<AuditEntry>,
    ) {
        let mut say = |outcome| {
            entries.push(AuditEntry::now("session", machine.name.as_str(), outcome, None));
        };
        let is_new = machine.sessions > self.sessions;
        let ends = self.connected && (is_new || !machine.connected);
        if (is_new || ends) && self.lines.next(now).is_none() {
            return;
        }
        if ends {
            say("offline");
        }
        if is_new {
            say("online");
            // It came and went between two looks.
            if !machine.connected {
                say("offline");
            }
        }
        (self.sessions, self.connected) = (machine.sessions, machine.connected);
    }
}

impl DiskTold {
    fn look(
        &mut self,
        disk: &DiskSight,
        object: &str,
        now: Instant,
        (lines, entries): (&mut Lines, &mut Vec<AuditEntry>),
    ) {
        let mut say = |action, outcome: &str, reason| {
            entries.push(AuditEntry::now(action, object, outcome, reason));
        };
        if self.losses.is_news(disk.losses, "", now, lines) {
            say("losses", &disk.losses.to_string(), None);
        }
        if self.misses.is_news(disk.misses, "", now, lines) {
            say("misses", &disk.misses.to_string(), None);
        }
        let (gaps, why) = &disk.gaps;
        if self.gaps.is_news(*gaps, why, now, lines) {
            say("gap", &format!("{gaps} in this run"), Some(why.clone()));
        }
        if disk.harm != self.harm {
            say("harm", if disk.harm.is_some() { "found" } else { "over" }, disk.harm.clone());
            self.harm.clone_from(&disk.harm);
        }
        if self.state.is_news(&(disk.state, disk.reason.clone()), now, lines) {
            say("state", disk.state.as_str(), disk.reason.clone());
        }
        if let Some(mode) = disk.mode
            && self.mode.is_news(&mode, now, lines)
        {
            say("mode", mode.as_str(), None);
        }
    }
}

/// A thread that follows a role's status; it ends, and has written what it saw, when this is
/// dropped.
#[derive(Debug)]
pub struct Chronicler {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Chronicler {
    /// Starts it.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        log: AuditLog,
        mut see: impl FnMut() -> Vec<MachineSight> + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let run = move || {
            let mut writer = Writer { log, waiting: VecDeque::new(), has_failed: false };
            let mut chronicle = Chronicle::default();
            loop {
                let is_over =
                    !matches!(stopped.recv_timeout(LOOK_EVERY), Err(RecvTimeoutError::Timeout));
                if writer.write() {
                    writer.waiting.extend(chronicle.look(&see(), Instant::now()));
                    writer.write();
                }
                if is_over {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("chronicle".to_owned()).spawn(run)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Chronicler {
    fn drop(&mut self) {
        self.stop = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that follows the status has panicked");
        }
    }
}

/// Entries of one look that may wait for room: what a look finds is bounded by what there is.
struct Writer {
    log: AuditLog,
    waiting: VecDeque<AuditEntry>,
    has_failed: bool,
}

impl Writer {
    /// Writes what waits; whether that is all.
    fn write(&mut self) -> bool {
        while let Some(entry) = self.waiting.front() {
            if let Err(error) = self.log.append(entry) {
                if !std::mem::replace(&mut self.has_failed, true) {
                    tracing::error!(%error, "changes of state wait for the audit log");
                }
                return false;
            }
            self.has_failed = false;
            self.waiting.pop_front();
        }
        true
    }
}

#[cfg(test)]
mod tests;
