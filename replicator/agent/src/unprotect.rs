//! The end of a disk's protection: its tracking, its lock and its place in the state file go, and
//! the log says so. It is remembered first, so that a cut in the middle is finished by the next
//! start; and it needs no target, which learns it from the log as soon as there is one.

use crate::error::AgentError;
use crate::frame_log::FrameLog;
use crate::owner::Owner;
use crate::pause::ORDERED_AT_TARGET;
use crate::session::Note;
use redoubt_log::{DiskIndex, DiskSet, Name, Sequence};
use redoubt_protocol::message::KnownDisk;
use redoubt_tracker::ChangeSource;
use redoubt_tracker::LogSink;
use redoubt_tracker::probe::Attached;
use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::{Duration, Instant};

/// How long who ordered an end waits until the target has it; it is done anyway.
const TARGET_PATIENCE: Duration = Duration::from_secs(10);

/// How long an agent that has nothing left to protect waits for its last answers to be read.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// Which disks.
#[derive(Clone, Debug)]
pub(crate) enum Which {
    /// All of them.
    All,
    /// The one that the operator names.
    Named(Name),
    /// Those that the target names; what is gone already is fine.
    Told(DiskSet),
}

/// Whether the target has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TargetKnows {
    /// It has, durably.
    Yes,
    /// It is connected, but has not confirmed it.
    NotYet,
    /// There is no session: it learns it at the next one, if there is one.
    NotConnected,
}

/// What was ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub disks: Vec<Name>,
    pub target: TargetKnows,
    /// Whether nothing is protected any more: the agent ends.
    pub is_last: bool,
}

/// Who hears how it ended.
pub(crate) type EndReply = Box<dyn FnOnce(Result<Ended, String>) + Send>;

struct Waiting {
    disks: Vec<(DiskIndex, Name)>,
    deadline: Instant,
    reply: EndReply,
}

/// Ends that the target does not have yet, and who waits for that.
pub(crate) struct Endings {
    /// Where the present log ends a disk's story.
    told: BTreeMap<DiskIndex, Sequence>,
    waiting: Vec<Waiting>,
    /// Conversations with operators hold this as long as they last.
    conversations: Weak<()>,
    nothing_left_since: Option<Instant>,
}

impl Endings {
    /// None yet.
    pub fn new(conversations: Weak<()>) -> Self {
        Self { told: BTreeMap::new(), waiting: Vec::new(), conversations, nothing_left_since: None }
    }

    /// A log begins: what was told in another one counts no more.
    pub fn log_begins(&mut self) {
        self.told.clear();
    }
}

impl Owner {
    /// Ends the protection of disks, and answers once the target has that, or cannot have it now.
    pub fn unprotect(&mut self, which: &Which, reply: EndReply) -> Result<(), AgentError> {
        let disks = self.disks.chosen(which);
        if let (Which::Named(name), true) = (which, disks.is_empty()) {
            let known: Vec<String> =
                self.disks.names().iter().map(|(_, name, _)| name.to_string()).collect();
            reply(Err(format!("{name}: no such disk here; there are {}", known.join(", "))));
            return Ok(());
        }
        if !disks.is_empty() {
            self.verify.fail(&mut self.tracking, "the protection of a disk ends");
        }
        let mut failed = None;
        for (index, name) in &disks {
            if let Err(error) = self.end(*index) {
                tracing::error!(disk = %name, %error, "the protection of a disk does not end");
                failed = Some(format!("{name}: {error}"));
                break;
            }
            tracing::warn!(disk = %name, "protected no more");
            if matches!(which, Which::Told(_)) {
                let object = format!("{}/{name}", self.name);
                let reason = Some(ORDERED_AT_TARGET.to_owned());
                self.audit.note(None, "unprotect", &object, "done", reason);
            }
        }
        // Also where one has failed: those before it have ended.
        self.note(Note::Disks(self.disks.descriptions()));
        self.show_orders();
        if self.disks.is_empty() {
            self.marks.fail_all("the protection of every disk has ended");
        }
        match failed {
            Some(why) => reply(Err(why)),
            None => {
                let deadline = Instant::now() + TARGET_PATIENCE;
                self.endings.waiting.push(Waiting { disks, deadline, reply });
            }
        }
        Ok(())
    }

    /// Lets one disk go. What fails behind the state file is left to the next start, or to
    /// `redoubt agent --detach`.
    fn end(&mut self, index: DiskIndex) -> Result<(), AgentError> {
        self.disks.remember_end(index)?;
        self.tracking.remove(index);
        let is_pinned = self.source.disks().iter().any(|pinned| pinned.disk == index);
        if is_pinned {
            self.source.remove_disk(index)?;
        }
        self.reader.close(index)?;
        self.disks.release(index);
        if self.disks.is_empty() { Ok(self.source.remove_pins()?) } else { Ok(()) }
    }

    /// What the target says of the disks at the start of a session: those that were ended there
    /// end here, and what it never knew it need not be told.
    pub fn hear_of_ends(&mut self, known: &[KnownDisk]) -> Result<(), AgentError> {
        let mut over = DiskSet::default();
        known.iter().filter(|disk| disk.ended).for_each(|disk| over.insert(disk.index));
        self.disks.learn_indexes(known)?;
        if self.disks.chosen(&Which::Told(over)).is_empty() {
            return Ok(());
        }
        self.unprotect(&Which::Told(over), Box::new(|_| {}))
    }

    /// Says in the log which disks it tells of no more; called where nothing in it is unchecked.
    pub fn tell_ends(&mut self) {
        let Some(log) = self.log.as_mut().filter(|log| log.is_checked()) else { return };
        for ended in &self.disks.state.ended {
            let told = &mut self.endings.told;
            told.entry(ended.index).or_insert_with(|| end_in(log, ended.index));
        }
    }

    /// The target has everything up to here: it need not be told again what lies before.
    pub fn ends_acknowledged(&mut self, sequence: Sequence) -> Result<(), AgentError> {
        let known = self.endings.told.extract_if(.., |_, place| *place <= sequence);
        let known: Vec<DiskIndex> = known.map(|(index, _)| index).collect();
        if known.is_empty() { Ok(()) } else { self.disks.forget_ends(&known) }
    }

    /// Answers who has waited long enough; whether nothing is left to do for ever.
    pub fn settle_ends(&mut self) -> bool {
        if self.endings.waiting.is_empty() && !self.disks.is_empty() {
            return false;
        }
        let now = Instant::now();
        let is_connected = self.log.is_some() && self.shared.link.get().connected;
        let (ended, is_last) = (&self.disks.state.ended, self.disks.is_empty());
        let knows = |waiting: &Waiting| {
            let is_open =
                |(index, _): &(DiskIndex, Name)| ended.iter().any(|known| known.index == *index);
            match waiting.disks.iter().any(is_open) {
                false => Some(TargetKnows::Yes),
                true if !is_connected => Some(TargetKnows::NotConnected),
                true if waiting.deadline <= now => Some(TargetKnows::NotYet),
                true => None,
            }
        };
        let answers: Vec<Option<TargetKnows>> = self.endings.waiting.iter().map(knows).collect();
        for (at, target) in answers.into_iter().enumerate().rev() {
            if let Some(target) = target {
                let Waiting { disks, reply, .. } = self.endings.waiting.remove(at);
                let disks = disks.into_iter().map(|(_, name)| name).collect();
                reply(Ok(Ended { disks, target, is_last }));
            }
        }
        is_last && self.endings.waiting.is_empty() && self.endings.are_read(now)
    }
}

impl Endings {
    /// Whether nobody reads an answer any more.
    fn are_read(&mut self, now: Instant) -> bool {
        let since = *self.nothing_left_since.get_or_insert(now);
        // The first is the socket's own.
        self.conversations.strong_count() <= 1 || now - since >= ANSWER_PATIENCE
    }
}

/// Ends a disk's story; returns the place.
fn end_in(log: &mut FrameLog, disk: DiskIndex) -> Sequence {
    log.disk_removed(disk);
    log.checkpoint();
    log.position()
}

/// Lets disks go that were pinned by a run that died between two steps of an end.
pub(crate) fn forget_strangers(
    source: &mut Attached,
    protected: impl Fn(DiskIndex) -> bool,
) -> Result<(), AgentError> {
    for pinned in source.disks() {
        if !protected(pinned.disk) {
            tracing::warn!(disk = %pinned.disk, "tracked, and protected no more: let go");
            source.remove_disk(pinned.disk)?;
        }
    }
    source.drain(source.produced(), &mut |_| {});
    Ok(())
}
