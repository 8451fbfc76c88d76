//! The thread that appends a machine's frames to its journal and says what is durable. Frames that
//! find no room wait here, unacknowledged; an admission of another run comes behind everything that
//! was appended before it.

use super::error::TargetError;
use super::machine::MachineEvent;
use super::protected::Protected;
use crate::store::{Admitted, DiskSpec, HelloAnswer, Placement, StoreError};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use crossbeam::sync::Unparker;
use redoubt_control::Response;
use redoubt_control::lines::Lines;
use redoubt_engine::buffer::AlignedBuffer;
use redoubt_log::{DiskSet, Sequence};
use redoubt_protocol::{PauseWord, TargetMessage};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Frames of one commit: a window's worth.
const BATCH_FRAMES: usize = 32;

/// How often a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// Who is admitted.
pub(super) struct Fence {
    pub admitted: Admitted,
    pub new_generation: bool,
    /// Why an earlier log does not go on.
    pub resync: Option<String>,
    /// Whether the agent remembers of no session.
    pub first: bool,
    pub disks: Vec<DiskSpec>,
}

type FenceReply = tokio::sync::oneshot::Sender<Result<HelloAnswer, StoreError>>;

/// What the thread is to do. The channel is unbounded; the session's window bounds the frames in
/// it.
pub(super) enum Job {
    /// Append a journal entry's buffer, its frame at its place.
    Append(AlignedBuffer),
    /// Fence every older run, then say where the log goes on.
    Fence(Fence, FenceReply),
    /// The agent has said whether the operator has paused the machine: the store keeps it.
    Pause,
    /// End.
    Stop,
}

/// The newest word of an agent on a pause that is still to be kept. However often the agent speaks,
/// no more than this waits.
#[derive(Default)]
pub(super) struct NewestWord(Mutex<Option<PauseWord>>);

impl NewestWord {
    /// Puts a word in; whether the thread is to be told.
    pub fn put(&self, word: PauseWord) -> bool {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = *waiting;
        *waiting = Some(known.map_or(word, |known| known.merge(word)));
        known.is_none()
    }

    fn take(&self) -> Option<PauseWord> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Entries of the audit log that an agent may cause one after the other, and how long each takes to
/// come back: the log has an end, and what operators did must not be pushed out of it.
const LINES: u32 = 16;
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A running thread.
pub(super) struct JournalThread {
    pub jobs: Sender<Job>,
    pub thread: JoinHandle<()>,
}

/// Starts a machine's thread.
pub(super) fn start(
    machine: Arc<Protected>,
    apply: Unparker,
) -> Result<JournalThread, TargetError> {
    let (jobs, todo) = unbounded();
    let ended = machine.store.let_go();
    let (waiting, full, not_placed) = Default::default();
    let lines = || Lines::new(LINES, LINE_EVERY, Instant::now());
    let (pauses, resyncs, suspicions) = (lines(), lines(), lines());
    // Those that a start finds were told when they came.
    drop(machine.store.take_suspicions());
    let told_of_clock = false;
    let mut journal = Journal {
        machine,
        apply,
        waiting,
        full,
        ended,
        not_placed,
        pauses,
        resyncs,
        suspicions,
        told_of_clock,
    };
    let thread = std::thread::Builder::new()
        .name("journal".to_owned())
        .spawn(move || journal.run(&todo))
        .map_err(|source| TargetError::start("a journal thread", source))?;
    Ok(JournalThread { jobs, thread })
}

struct Journal {
    machine: Arc<Protected>,
    apply: Unparker,
    /// Frames in order that are not in the journal yet.
    waiting: Vec<AlignedBuffer>,
    full: bool,
    /// Disks that the agent has let go, as far as that was written down.
    ended: DiskSet,
    /// Why the last admission failed, where a device that waits for a disk was the cause.
    not_placed: Option<String>,
    /// What is written down of pauses ordered at the agent.
    pauses: Lines,
    /// What is written down of logs that begin anew.
    resyncs: Lines,
    /// What is written down of points that have become suspect.
    suspicions: Lines,
    /// Whether the agent of this session was said to have a clock that nobody can follow.
    told_of_clock: bool,
}

impl Journal {
    fn run(&mut self, todo: &Receiver<Job>) {
        loop {
            let patience = if self.full { FULL_RETRY } else { Duration::MAX };
            match next(todo, patience) {
                Ok(Job::Append(entry)) => self.waiting.push(entry),
                Ok(Job::Fence(fence, reply)) => {
                    self.fence(&fence, reply);
                    continue;
                }
                Ok(Job::Pause) => {
                    self.pause();
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            let mut fence = None;
            while self.waiting.len() < BATCH_FRAMES {
                match todo.try_recv() {
                    Ok(Job::Append(entry)) => self.waiting.push(entry),
                    Ok(Job::Pause) => self.pause(),
                    Ok(Job::Fence(asked, reply)) => {
                        fence = Some((asked, reply));
                        break;
                    }
                    Ok(Job::Stop) => return,
                    Err(_) => break,
                }
            }
            self.write();
            if let Some((asked, reply)) = fence {
                self.fence(&asked, reply);
            }
        }
    }

    /// Appends what waits, as far as there is room, by one sync.
    fn write(&mut self) {
        let mut batch: Vec<&mut [u8]> = self.waiting.iter_mut().map(|entry| &mut **entry).collect();
        let appended = self.machine.store.append(&mut batch);
        self.waiting.drain(..appended.entries);
        match self.machine.store.commit() {
            Ok(sequence) => self.durable(sequence),
            Err(error) => return self.failed(&error),
        }
        match appended.stopped {
            None => self.set_full(None),
            Some(error) if error.is_full() => self.set_full(Some(error.to_string())),
            Some(error) => self.failed(&error),
        }
    }

    fn durable(&mut self, sequence: Sequence) {
        self.machine.durable.store(sequence.0, Ordering::Release);
        self.tell(MachineEvent::Durable(sequence));
        self.apply.unpark();
        self.note_endings();
        self.note_suspicions();
    }

    /// Writes down which points are suspect by now.
    fn note_suspicions(&mut self) {
        for suspicion in self.machine.store.take_suspicions() {
            let machine = &self.machine;
            let name = machine.store.disk_name(suspicion.disk);
            let name = name.unwrap_or_else(|| suspicion.disk.to_string());
            let why = machine.reason_of(&suspicion);
            tracing::warn!(machine = %machine.name, disk = name, why, "older points are suspect");
            if self.suspicions.next(Instant::now()).is_some() {
                let told = Response::Told { message: format!("older points of it are: {why}") };
                let object = format!("{}/{name}", machine.name);
                machine.audit.note_answer(None, "suspect", &object, &told);
            }
        }
    }

    /// Writes down which disks the agent has let go, now that it is durable.
    fn note_endings(&mut self) {
        let ended = self.machine.store.let_go();
        for disk in DiskSet(ended.0 & !self.ended.0).iter() {
            let name = self.machine.store.disk_name(disk).unwrap_or_else(|| disk.to_string());
            let object = format!("{}/{name}", self.machine.name);
            tracing::warn!(disk = object, "the agent has let a disk go");
            let told = Response::Told { message: "the agent has let it go".to_owned() };
            self.machine.audit.note_answer(None, "unprotect", &object, &told);
        }
        self.ended = ended;
    }

    /// Keeps the agent's word, or answers with a later one.
    fn pause(&mut self) {
        let machine = &self.machine;
        let Some(word) = machine.pause_word.take() else { return };
        let known = machine.store.status().pause;
        if word > known && !word.can_be_followed() {
            if std::mem::replace(&mut self.told_of_clock, true) {
                return;
            }
            let (machine, said_at) = (&machine.name, word.said_at.0);
            tracing::error!(%machine, said_at, "the agent's word on a pause is not kept: no later \
                 one could follow; set its clock and say it again");
            return;
        }
        let counts = match machine.store.pause(word) {
            Ok(counts) => counts,
            Err(error) => {
                let machine = &machine.name;
                tracing::error!(%machine, %error, "what the agent says of a pause is not kept");
                return;
            }
        };
        machine.live().told_pause = Some(word);
        if counts != word {
            self.tell(MachineEvent::Say(TargetMessage::Pause(counts)));
        }
        if counts.paused != known.paused {
            let action = if counts.paused { "pause" } else { "resume" };
            tracing::info!(machine = %machine.name, action, "ordered at the agent");
            let message = match self.pauses.next(Instant::now()) {
                Some(0) => "ordered at the agent".to_owned(),
                Some(more) => format!("ordered at the agent; {more} before it are not written"),
                None => return,
            };
            let told = Response::Told { message };
            machine.audit.note_answer(None, action, machine.name.as_str(), &told);
        }
    }

    fn set_full(&mut self, why: Option<String>) {
        if self.full != why.is_some() {
            self.full = why.is_some();
            tracing::warn!(machine = %self.machine.name, full = self.full, "room in the store");
            self.machine.live().full = why.clone();
            self.tell(MachineEvent::Full(why));
        }
    }

    /// The frames are given up: they are not acknowledged, and the agent sends them again.
    fn failed(&mut self, error: &StoreError) {
        tracing::error!(machine = %self.machine.name, %error, "the journal does not take a frame");
        self.waiting.clear();
        self.set_full(None);
        self.tell(MachineEvent::Failed(error.to_string()));
    }

    fn fence(&mut self, fence: &Fence, reply: FenceReply) {
        // What found no room until now was never acknowledged: the new session sends it again.
        self.waiting.clear();
        self.set_full(None);
        self.told_of_clock = false;
        let store = &self.machine.store;
        let waited = store.waiting();
        let answer = if fence.first { store.check_first(&fence.disks) } else { Ok(()) }
            .and_then(|()| store.hello(fence.admitted, fence.new_generation, &fence.disks));
        self.note_placed(&waited, answer.as_ref().err());
        if let (Ok(_), Some(why)) = (&answer, &fence.resync) {
            self.note_resync(why);
        }
        // The session that asked may have ended.
        let _ = reply.send(answer);
    }

    /// Writes down why the whole of a machine's disks comes again.
    fn note_resync(&mut self, why: &str) {
        let machine = &self.machine;
        tracing::warn!(machine = %machine.name, why, "the log begins anew");
        if let Some(unwritten) = self.resyncs.next(Instant::now()) {
            let more = match unwritten {
                0 => String::new(),
                more => format!("; {more} before it are not written"),
            };
            let told = Response::Told { message: format!("the log begins anew: {why}{more}") };
            machine.audit.note_answer(None, "resync", machine.name.as_str(), &told);
        }
    }

    /// Writes down which devices that waited hold a replica now; or, once, why one does not.
    fn note_placed(&mut self, waited: &[Placement], error: Option<&StoreError>) {
        let waits = self.machine.store.waiting();
        let note = |placement: &Placement, response| {
            let Placement { machine, disk, device } = placement;
            let object = format!("{machine}/{disk} on {}", device.display());
            self.machine.audit.note_answer(None, "place", &object, &response);
        };
        for placed in waited.iter().filter(|placed| !waits.contains(placed)) {
            let message = "its agent has announced the disk".to_owned();
            note(placed, Response::Told { message });
        }
        let refused = error.and_then(|error| {
            let placement = waits.iter().find(|waiting| concerns(error, waiting))?;
            Some((placement, error.to_string()))
        });
        if let Some((placement, why)) = &refused
            && self.not_placed.as_ref() != Some(why)
        {
            note(placement, Response::failed(why));
        }
        self.not_placed = refused.map(|(_, why)| why);
    }

    fn tell(&self, event: MachineEvent) {
        // The task ends only with the process.
        let _ = self.machine.events.blocking_send(event);
    }
}

/// Whether an error is that of a device that waits.
fn concerns(error: &StoreError, waiting: &Placement) -> bool {
    match error {
        StoreError::WrongDevice { path, .. } => *path == waiting.device,
        StoreError::Storage(error) => error.path == waiting.device,
        _ => false,
    }
}

fn next(todo: &Receiver<Job>, patience: Duration) -> Result<Job, RecvTimeoutError> {
    match patience {
        Duration::MAX => todo.recv().map_err(|_| RecvTimeoutError::Disconnected),
        patience => todo.recv_timeout(patience),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redoubt_log::WallTime;

    #[test]
    fn however_often_an_agent_speaks_of_a_pause_one_word_waits() {
        let (newest, mut jobs, mut word) = (NewestWord::default(), 0, PauseWord::default());
        for flip in 0..1000 {
            word = word.say(flip % 2 == 0, WallTime(flip));
            jobs += u32::from(newest.put(word));
        }
        assert_eq!((jobs, newest.take(), newest.take()), (1, Some(word), None));
        assert!(newest.put(word));
    }
}
