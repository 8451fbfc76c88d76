//! The machines that are protected here: each has a store, two threads, a session task, and what it
//! last said.

use super::error::TargetError;
use super::journal::{self, Job};
use super::machine::MachineEvent;
use super::{apply, checks, status, suspicion, verify};
use crate::store::{MachineStatus, Store, StoreMachine, Suspicion};
use crossbeam::channel::Sender;
use crossbeam::sync::Unparker;
use redoubt_control::Response;
use redoubt_control::audit::AuditLog;
use redoubt_control::chronicle::Chronicler;
use redoubt_log::{DiskIndex, DiskSet, MachineId, Name, Sequence, WallTime};
use redoubt_protocol::message::{DiskStandstill, MarkedPoint, Report, RequestId, RunId};
use redoubt_protocol::{PauseWord, TargetPast};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Semaphore, mpsc};

/// Events that may wait for a machine's task: more than the frames of a window, so that every
/// stream is always read.
const EVENTS_WAITING: usize = 48;

/// Points that an agent may have read at once: each holds a thread, of which there are not many.
pub(super) const READS_AT_ONCE: usize = 4;

/// The wall clock, as the log counts it.
pub(super) fn now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Who waits for a mark.
pub(super) type MarkReply = std::sync::mpsc::Sender<Result<MarkedPoint, String>>;

/// What is known of a machine from one moment to the next.
#[derive(Default)]
pub(super) struct Live {
    /// Since when it has a session.
    pub connected: Option<Instant>,
    /// How many sessions it has had since the target started.
    pub sessions: u64,
    pub said: Option<Said>,
    pub full: Option<String>,
    pub apply_error: Option<String>,
    /// Disks whose replica files are gone or too short, and what is wrong with each.
    pub missing_replicas: BTreeMap<DiskIndex, String>,
    /// Disks whose replicas stand still, as the agent is told it.
    pub standstill: Vec<DiskStandstill>,
    /// Whether the operator has paused the machine, as the agent said last.
    pub told_pause: Option<PauseWord>,
    pub marks: HashMap<RequestId, MarkReply>,
    pub verifies: HashMap<RequestId, verify::Listener>,
}

impl Live {
    /// Whether any replica stands still, or the agent was told so last.
    pub fn stands_still(&self) -> bool {
        let is_told = !self.standstill.is_empty();
        is_told || !self.missing_replicas.is_empty() || self.apply_error.is_some()
    }
}

/// What the agent said last, and when.
pub(super) struct Said {
    pub at: Instant,
    pub report: Report,
}

/// A protected machine.
pub(super) struct Protected {
    pub id: MachineId,
    pub name: Name,
    pub store: StoreMachine,
    pub events: mpsc::Sender<MachineEvent>,
    pub durable: AtomicU64,
    pub applied: AtomicU64,
    pub checks: checks::Turns,
    /// Points that may still be read for its agent at once.
    pub reads: Arc<Semaphore>,
    /// What its agent has said of a pause, for the journal's thread.
    pub pause_word: journal::NewestWord,
    pub audit: AuditLog,
    ended: AtomicU64,
    live: Mutex<Live>,
}

impl Protected {
    /// Notes that the protection of disks was ended here, before it is said: where a session is
    /// just coming to be, nobody hears that, and its welcome may have been written before.
    pub fn note_ended(&self, disks: DiskSet) {
        self.ended.fetch_or(disks.0, Ordering::AcqRel);
    }

    /// Disks whose protection was ended here since the target started.
    pub fn ended(&self) -> DiskSet {
        DiskSet(self.ended.load(Ordering::Acquire))
    }

    /// Why points are suspect.
    pub fn reason_of(&self, suspicion: &Suspicion) -> String {
        let known = self.store.disk_name(suspicion.disk);
        suspicion::reason(suspicion, &known.unwrap_or_else(|| suspicion.disk.to_string()))
    }

    /// What is known of it now: plain values, whole even if a holder of the lock has panicked.
    pub fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether the replica files are there in full.
    pub fn look_at_replica_files(&self) {
        let missing = self.store.missing_replicas().into_iter();
        let missing = missing.map(|(disk, error)| (disk, error.to_string())).collect();
        let known = std::mem::replace(&mut self.live().missing_replicas, missing);
        let live = self.live();
        for (_, error) in live.missing_replicas.iter().filter(|(disk, _)| !known.contains_key(disk))
        {
            tracing::error!(machine = %self.name, %error, "a replica is missing");
        }
    }
}

/// The ends that a machine's session task holds.
pub(super) struct MachineEnds {
    pub machine: Arc<Protected>,
    /// As the store left it, and the last durable record.
    pub past: (TargetPast, Sequence),
    pub events: mpsc::Receiver<MachineEvent>,
    pub journal: Sender<Job>,
}

/// What the store remembers of a machine's sessions.
fn past_of(store: &StoreMachine, status: &MachineStatus) -> TargetPast {
    let admitted = store.admitted();
    TargetPast {
        generation: admitted.map(|_| status.generation),
        incarnation: admitted.map(|admitted| admitted.incarnation),
        run: admitted.map(|admitted| RunId(admitted.run)),
        role_epoch: status.role_epoch,
    }
}

struct Threads {
    journal: Sender<Job>,
    apply: Unparker,
    stopping: Arc<AtomicBool>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    fn stop(self, machine: &Name) {
        self.stopping.store(true, Ordering::Release);
        // It may have failed and gone already.
        let _ = self.journal.send(Job::Stop);
        self.apply.unpark();
        for handle in self.handles {
            if handle.join().is_err() {
                tracing::error!(%machine, "a thread has panicked");
            }
        }
    }
}

struct Entry {
    machine: Arc<Protected>,
    threads: Threads,
}

/// All protected machines. Clones are the same registry.
#[derive(Clone)]
pub(super) struct Registry {
    store: Arc<Store>,
    keep: Duration,
    journal_keep: Duration,
    entries: Arc<Mutex<BTreeMap<MachineId, Entry>>>,
    started: Arc<Mutex<Vec<MachineEnds>>>,
    /// Machines that were removed: one that was on its way in does not come back.
    removed: Arc<Mutex<BTreeSet<MachineId>>>,
    /// Held while a machine is taken in, or shut out.
    admission: Arc<Mutex<()>>,
    audit: AuditLog,
    requests: Arc<AtomicU64>,
}

impl Registry {
    /// No machine yet.
    pub fn new(store: Arc<Store>, keep: Duration, journal_keep: Duration, audit: AuditLog) -> Self {
        Self {
            store,
            keep,
            journal_keep,
            entries: Arc::default(),
            started: Arc::default(),
            removed: Arc::default(),
            admission: Arc::default(),
            audit,
            requests: Arc::default(),
        }
    }

    /// Takes a machine in and starts its threads; one that is in already is left as it is. Waits
    /// for disks.
    pub fn protect(&self, id: MachineId, name: &Name) -> Result<(), TargetError> {
        let _admission = self.admission.lock().unwrap_or_else(PoisonError::into_inner);
        let is_removed =
            || self.removed.lock().unwrap_or_else(PoisonError::into_inner).contains(&id);
        if is_removed()
            || self.get(id).is_some()
            || self.store.unopened().iter().any(|(other, _)| *other == id)
        {
            return Ok(());
        }
        let store = match self.store.machine(id) {
            Ok(store) => store,
            Err(_) => self.store.create_machine(id, name.as_str(), now())?,
        };
        let (events, received) = mpsc::channel(EVENTS_WAITING);
        let status = store.status();
        let past = (past_of(&store, &status), status.durable);
        let machine = Arc::new(Protected {
            id,
            name: name.clone(),
            store,
            events,
            durable: AtomicU64::new(status.durable.0),
            applied: AtomicU64::new(status.applied.0),
            checks: checks::Turns::default(),
            reads: Arc::new(Semaphore::new(READS_AT_ONCE)),
            pause_word: journal::NewestWord::default(),
            audit: self.audit.clone(),
            ended: AtomicU64::default(),
            live: Mutex::default(),
        });
        if let Err(error) = machine.store.check_devices() {
            tracing::error!(machine = %machine.name, %error, "apply waits for a device");
            machine.live().apply_error = Some(error.to_string());
        }
        machine.look_at_replica_files();
        let stopping = Arc::<AtomicBool>::default();
        let apply = apply::start(machine.clone(), self.keep, self.journal_keep, &stopping)?;
        let journal = journal::start(machine.clone(), apply.unparker.clone())?;
        let ends = MachineEnds {
            machine: machine.clone(),
            past,
            events: received,
            journal: journal.jobs.clone(),
        };
        self.lock_started().push(ends);
        let threads = Threads {
            journal: journal.jobs,
            apply: apply.unparker,
            stopping,
            handles: vec![journal.thread, apply.thread],
        };
        self.lock().insert(id, Entry { machine, threads });
        Ok(())
    }

    /// Machines whose session task is still to be started.
    pub fn take_started(&self) -> Vec<MachineEnds> {
        std::mem::take(&mut *self.lock_started())
    }

    /// One machine.
    pub fn get(&self, id: MachineId) -> Option<Arc<Protected>> {
        self.lock().get(&id).map(|entry| entry.machine.clone())
    }

    /// All machines.
    pub fn all(&self) -> Vec<Arc<Protected>> {
        self.lock().values().map(|entry| entry.machine.clone()).collect()
    }

    /// A number for a question to an agent.
    pub fn next_request(&self) -> RequestId {
        RequestId(self.requests.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The store of all of them.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Writes down what changes in what the status shows, until the result is dropped.
    pub fn follow(&self) -> Result<Chronicler, TargetError> {
        let registry = self.clone();
        let see = move || {
            let now = Instant::now();
            registry.all().iter().map(|machine| status::seen(machine, now)).collect()
        };
        Chronicler::start(self.audit.clone(), see)
            .map_err(|source| TargetError::start("the audit log's thread", source))
    }

    /// Writes down that a machine has joined.
    pub async fn note_joined(&self, id: MachineId, name: &Name, remote: SocketAddr) {
        let (log, object) = (self.audit.clone(), name.to_string());
        let told = Response::Told { message: format!("machine {id}, from {remote}") };
        let note = move || log.note_answer(None, "join", &object, &told);
        // It has panicked only where the process ends.
        let _ = tokio::task::spawn_blocking(note).await;
    }

    /// Takes a machine in no more; one that was on its way in is in when this returns.
    pub fn shut_out(&self, id: MachineId) {
        let _admission = self.admission.lock().unwrap_or_else(PoisonError::into_inner);
        self.removed.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    /// Lets a machine go for good: its threads and its task end.
    pub fn remove(&self, id: MachineId) {
        self.shut_out(id);
        let entry = self.lock().remove(&id);
        if let Some(entry) = entry {
            entry.threads.stop(&entry.machine.name);
            // It has ended only where the process ends.
            let _ = entry.machine.events.blocking_send(MachineEvent::End);
        }
    }

    /// Ends the threads, each after what it does now.
    pub fn stop(&self) {
        for (_, entry) in std::mem::take(&mut *self.lock()) {
            entry.threads.stop(&entry.machine.name);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<MachineId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_started(&self) -> MutexGuard<'_, Vec<MachineEnds>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
