//! The thread that owns the tracker: drains the ring into the log, reads what the log lacks, takes
//! points, drops epochs. One loop, one owner: nobody else touches the tracker, and the loop never
//! waits for the network.

use crate::coverage::Coverage;
use crate::disks::{ProtectedDisks, Seen};
use crate::error::AgentError;
use crate::frame_log::{FrameLog, Ready, Terms};
use crate::marks::{Here, MarkRequest, Marks};
use crate::pace::Pace;
use crate::pause::{PAUSED, PauseOrder, PauseReply, ToCome};
use crate::reader::{READ_BYTES, Reader};
use crate::session::Note;
use crate::snapshot::{SharedLink, SharedSnapshot, Snapshot, Unsealed};
use crate::suspects::Suspects;
use crate::unprotect::{EndReply, Endings, Which, forget_strangers};
use crate::verify::{Hands, POINT_LABEL, Standing, Verify, VerifyRequest};
use crossbeam::channel::{Receiver, Sender, TryRecvError, TrySendError};
use redoubt_control::audit::AuditLog;
use redoubt_log::{DiskSet, GapReason, MachineId, Name, PointId, PointKind, Sequence, WallTime};
use redoubt_protocol::AgentPast;
use redoubt_protocol::message::Welcome;
use redoubt_tracker::probe::{Attached, Capability};
use redoubt_tracker::{CaptureMode, ChangeSource, LogSink, Tracking};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::UnboundedSender;

/// Frames that may wait for the sealer before the ring is left alone: the batch behind them holds
/// as much again.
const BACKLOG_FRAMES: usize = 4;

/// How long an idle loop sleeps: the agent's share of the RPO, at 50 cheap wake-ups a second. The
/// ring wakes it earlier when it fills.
const IDLE_WAIT: Duration = Duration::from_millis(20);

/// How long it sleeps while reads are under way: an acknowledged read is short.
const READ_WAIT: Duration = Duration::from_millis(1);

/// How long after a read has failed the next one is tried.
const READ_RETRY: Duration = Duration::from_secs(1);

/// Bytes of the ring above which finished reads wait: finishing one drains the ring up to its end,
/// and what is drained is kept in memory until it leaves.
const FINISH_FILL_MOST: u64 = 8 << 20;

/// Part of the ring that may fill while frames find no way out. Beyond it capture would only pay
/// for what is lost anyway: it is switched off, and the bitmap alone goes on.
const RING_FILL_MOST: f64 = 0.75;

/// How often the snapshot for the status is made.
const SNAPSHOT_EVERY: Duration = Duration::from_millis(250);

/// How often the bitmap is cut where it can be: what a restart has to read again was written within
/// two of these.
const ROTATE_EVERY: Duration = Duration::from_secs(5);
/// A write may be in flight for so long, and at most twice that, before it is let go.
const OVERDUE_AFTER: Duration = Duration::from_secs(30);

/// What the owner is told.
pub(crate) enum Command {
    /// A session stands, on these terms.
    Started { welcome: Box<Welcome>, past: AgentPast, resumed: bool },
    /// The log's continuity is lost: nothing is logged until a session starts anew.
    Resync,
    /// A point is asked for.
    Mark(MarkRequest),
    /// The operator pauses, or ends the pause.
    Pause(PauseOrder, PauseReply),
    /// The operator ends the protection of disks.
    Unprotect(Which, EndReply),
    /// Disks are to be compared with their replicas.
    Verify(VerifyRequest),
    /// The agent ends.
    Stop,
}

/// What the owner shares with the session.
#[derive(Clone)]
pub(crate) struct Shared {
    /// The newest sequence that is durable at the master target.
    pub acknowledged: Arc<AtomicU64>,
    /// The newest sequence that the replica disks hold.
    pub applied: Arc<AtomicU64>,
    pub snapshot: SharedSnapshot,
    pub link: SharedLink,
}

/// The owner's loop.
pub(crate) struct Owner {
    pub source: Attached,
    pub tracking: Tracking,
    pub machine: MachineId,
    pub disks: ProtectedDisks,
    pub commands: Receiver<Command>,
    pub frames: Sender<Ready>,
    pub shared: Shared,
    pub reader: Reader,
    pub log: Option<FrameLog>,
    pub marks: Marks,
    pub endings: Endings,
    pub suspects: Suspects,
    pub audit: AuditLog,
    pub name: Name,
    notes: UnboundedSender<Note>,
    to_come: ToCome,
    resync: bool,
    coverage: Coverage,
    pub unacknowledged: Unsealed,
    pub seen_acknowledged: Sequence,
    /// When it was last written down how far the target has the log.
    pub remembered: Instant,
    overloaded: bool,
    rotated: Instant,
    /// When writes that do not end were last looked for.
    looked_for_overdue: Instant,
    /// No read is issued before this.
    read_again: Instant,
    /// Since when not all of every disk is in the log.
    behind_since: Option<Instant>,
    /// The last number of a log that began anew: none is used twice.
    sequences_used: Sequence,
    skipped_runs: u64,
    pub verify: Verify,
    /// Those that were answered before this run.
    skipped_before: u64,
    /// Whether the order of events was proven when the tracker was attached.
    order_proven: bool,
    /// The agent stops and its session is gone already; or the sealer has failed, which is told by
    /// whoever waits for its thread.
    sealer_has_ended: bool,
    pace: Pace,
}

/// What the owner is made of.
pub(crate) struct Parts {
    pub source: Attached,
    pub machine: MachineId,
    pub disks: ProtectedDisks,
    pub commands: Receiver<Command>,
    pub frames: Sender<Ready>,
    pub shared: Shared,
    pub name: Name,
    pub audit: AuditLog,
    /// What the session is told.
    pub notes: UnboundedSender<Note>,
    /// Held by each conversation with an operator.
    pub conversations: Weak<()>,
    pub verify: Verify,
}

impl Owner {
    /// An owner of tracked disks, of which nothing is logged yet.
    pub fn new(parts: Parts) -> Result<Self, AgentError> {
        let Parts { mut source, machine, mut disks, commands, frames, shared, .. } = parts;
        let Parts { name, audit, verify, notes, conversations, .. } = parts;
        let (mode, order_proven) = match source.capability() {
            Capability::Data => (CaptureMode::Data, true),
            Capability::Order(reason) => {
                tracing::warn!(%reason, "data is not captured: every write is read back");
                (CaptureMode::Metadata, true)
            }
            Capability::Bitmap(reason) => {
                tracing::error!(%reason, "the order of writes is not proven, and so is no point");
                (CaptureMode::Metadata, false)
            }
        };
        quieten(&mut source)?;
        let names = disks.names();
        forget_strangers(&mut source, |index| names.iter().any(|(known, ..)| *known == index))?;
        let skipped = skipped_runs(&source)?;
        let skipped_before = disks.look_for_skipped(source.adopted(), skipped)?;
        let reader = Reader::new(disks.take_files())?;
        let now = Instant::now();
        Ok(Self {
            source,
            tracking: Tracking::new(mode),
            machine,
            disks,
            commands,
            frames,
            shared,
            reader,
            log: None,
            marks: Marks::new(now),
            endings: Endings::new(conversations),
            suspects: Suspects::default(),
            audit,
            name,
            notes,
            to_come: ToCome::default(),
            resync: false,
            coverage: Coverage::default(),
            unacknowledged: Unsealed::default(),
            seen_acknowledged: Sequence(0),
            remembered: now,
            overloaded: false,
            rotated: now,
            looked_for_overdue: now,
            read_again: now,
            behind_since: Some(now),
            sequences_used: Sequence(0),
            skipped_runs: skipped,
            verify,
            skipped_before,
            order_proven,
            sealer_has_ended: false,
            pace: Pace::new(now),
        })
    }

    /// Runs until it is told to stop, or its other ends are gone.
    pub fn run(mut self) -> Result<(), AgentError> {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => break,
                Ok(command) => self.obey(command)?,
                Err(TryRecvError::Empty) => {}
            }
            self.look_at_sizes()?;
            let busy = if self.log.is_some() { self.advance()? } else { false };
            if self.sealer_has_ended {
                break;
            }
            self.tell();
            if self.settle_ends() {
                tracing::info!("nothing is left to protect: the agent ends");
                return Ok(());
            }
            if !busy {
                let reading = self.reader.in_flight() > 0 || self.verify.is_reading();
                self.source.wait(if reading { READ_WAIT } else { IDLE_WAIT })?;
            }
        }
        self.stop()
    }

    fn obey(&mut self, command: Command) -> Result<(), AgentError> {
        match command {
            Command::Started { welcome, past, resumed } => self.started(&welcome, past, resumed),
            Command::Resync => {
                if let Some(log) = self.log.take() {
                    self.sequences_used = log.position();
                }
                self.resync = true;
                let why = "the log begins anew: try again once the disks stream";
                self.marks.fail_all(why);
                self.verify.fail(&mut self.tracking, why);
                self.pause_capture()
            }
            Command::Mark(request) if self.disks.is_paused() => {
                (request.reply)(Err(PAUSED.to_owned()));
                Ok(())
            }
            Command::Mark(request) => {
                let behind = self.source.produced();
                self.marks.ask(request, behind);
                Ok(())
            }
            Command::Pause(order, reply) => self.pause(order, reply),
            Command::Unprotect(which, reply) => self.unprotect(&which, reply),
            Command::Verify(request) => {
                let (logging, by_operator) = (self.log.is_some(), self.disks.is_paused());
                let untracked = self.disks.untracked(&self.tracking);
                let standing = Standing { logging, by_operator, untracked };
                self.verify.begin(request, &mut self.tracking, standing, Instant::now());
                Ok(())
            }
            Command::Stop => Ok(()),
        }
    }

    /// A session stands. Unless it resumes, the log behind its resume position is made from the
    /// bitmap.
    fn started(
        &mut self,
        welcome: &Welcome,
        past: AgentPast,
        resumed: bool,
    ) -> Result<(), AgentError> {
        let interval = Duration::from_millis(welcome.point_interval_milliseconds);
        self.marks.set_interval((!interval.is_zero()).then_some(interval));
        self.disks.remember(past)?;
        self.hear_at_welcome(welcome.pause)?;
        self.hear_of_ends(&welcome.disks)?;
        if resumed && self.log.is_some() {
            return Ok(());
        }
        let terms = Terms::of(self.machine, welcome);
        let mut log = FrameLog::new(terms, welcome.resume, self.sequences_used, self.time());
        self.unacknowledged = Unsealed::default();
        self.endings.log_begins();
        self.suspects.log_begins();
        self.seen_acknowledged = welcome.resume;
        self.disks.begin(
            &mut self.source,
            &mut self.tracking,
            &mut log,
            welcome,
            std::mem::take(&mut self.resync),
        )?;
        self.log = Some(log);
        self.overloaded = false;
        if self.disks.is_paused() { self.pause_capture() } else { Ok(()) }
    }

    /// One round. Returns whether there is more to do at once.
    fn advance(&mut self) -> Result<bool, AgentError> {
        let now = self.time();
        let log = self.log.as_mut().expect("only called with a log");
        // However long the last round took: what is drained now may have waited in the ring for it.
        log.set_time(now.0, self.coverage.since().unwrap_or(now.1));
        self.seal_ready()?;
        self.acknowledge(now.1)?;
        self.coverage.observe(self.source.produced(), now);
        let log = self.log.as_mut().expect("only called with a log");
        if log.backlog() >= BACKLOG_FRAMES {
            self.relieve()?;
            self.marks.expire(now.1);
            return Ok(false);
        }
        let ring_is_empty = self.source.ring_fill() == 0;
        if self.overloaded && ring_is_empty && log.backlog() == 0 && !self.disks.is_paused() {
            self.resume_capture(GapReason::RingOverflow)?;
        }
        let log = self.log.as_mut().expect("only called with a log");
        let more = self.tracking.pump(&mut self.source, log)?;
        self.coverage.drained(self.tracking.drained());
        if !more && now.1 - self.looked_for_overdue >= OVERDUE_AFTER {
            self.looked_for_overdue = now.1;
            self.tracking.look_for_overdue(&mut self.source);
        }
        // Before finished reads are logged: a point stands right behind what was just checked.
        self.take_points(now.1)?;
        self.tell_ends();
        // Before the reads are looked at: what is asked for here starts there.
        let Self { source, tracking, reader, disks, .. } = self;
        let found = self.verify.advance(&mut Hands { source, tracking, reader }, disks, now.1)?;
        found.iter().for_each(|found| self.suspects.add(found, now.0));
        self.tell_suspects();
        self.read()?;
        self.seal_ready()?;
        Ok(more || self.verify.wants_drain(self.tracking.drained()))
    }

    /// Frames find no way out: when the ring has filled as well, capture stops paying for what will
    /// be lost.
    fn relieve(&mut self) -> Result<(), AgentError> {
        let most = self.source.ring_bytes() as f64 * RING_FILL_MOST;
        if !self.overloaded && self.source.ring_fill() as f64 > most {
            tracing::warn!("changes come faster than they leave: only the bitmap goes on");
            self.overloaded = true;
            self.pause_capture()?;
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), AgentError> {
        if self.source.ring_fill() > FINISH_FILL_MOST {
            return Ok(());
        }
        let log = self.log.as_mut().expect("only called with a log");
        let finished = self.reader.reap(0)?;
        let indexes = self.tracking.indexes();
        for read in finished {
            let produced = self.source.produced();
            if self.verify.takes(&read, &mut self.tracking, produced, Instant::now()) {
                continue;
            }
            // Its protection may have ended meanwhile.
            if !indexes.contains(&read.order.disk) {
                continue;
            }
            match &read.completion.result {
                Ok(length) => {
                    let data = &read.completion.buffer[..*length];
                    self.tracking.finish_read(&mut self.source, read.order, data, log)?;
                }
                Err(error) => {
                    self.tracking.fail_read(read.order);
                    self.disks.read_failed(read.order, error);
                    self.read_again = Instant::now() + READ_RETRY;
                }
            }
        }
        let waits = self.overloaded || self.disks.is_paused();
        if waits || Instant::now() < self.read_again {
            return Ok(());
        }
        let mut idle = 0;
        while self.reader.has_room() && log.backlog() < BACKLOG_FRAMES && idle < indexes.len() {
            let index = self.disks.next_to_read(&indexes);
            match self.tracking.next_read(index, READ_BYTES) {
                Some(order) => {
                    idle = 0;
                    self.reader.submit(order)?;
                }
                None => idle += 1,
            }
        }
        Ok(())
    }

    fn take_points(&mut self, now: Instant) -> Result<(), AgentError> {
        self.marks.expire(now);
        let drained = self.tracking.drained();
        let wanted = self.verify.wants_point(drained, self.tracking.settled());
        let rotates = now - self.rotated >= ROTATE_EVERY;
        if !wanted && !self.marks.is_due(now) && !rotates {
            return Ok(());
        }
        // Behind the drained position: what the point claims was there as the log has it.
        self.look_at_sizes()?;
        let unchanged = self.look_at_counters()?;
        let settled = self.tracking.settled();
        let all = self.all_disks();
        let log = self.log.as_mut().expect("only called with a log");
        // What has risen since the ring was drained is answered by the next batch, before a point.
        if unchanged
            && log.is_checked()
            && let Some(at) = self.coverage.time()
        {
            let proven = self.order_proven;
            let protected = self.disks.indexes();
            let here = Here { drained, at, settled, all, protected, proven };
            self.marks.take(log, &here, now);
            if self.verify.wants_point(drained, settled) {
                let (point, kind) = (PointId::random(), PointKind::CrashConsistent);
                let sequence = log.marker(point, kind, POINT_LABEL.to_owned(), &here);
                self.marks.taken(sequence, now);
                self.verify.point(point, sequence, &mut self.tracking);
            }
        }
        if rotates {
            self.rotated = now;
            self.tracking.rotate(&mut self.source)?;
        }
        Ok(())
    }

    /// Reads every counter of what was lost or missed, behind the drained position; whether all
    /// stand where they stood.
    ///
    /// The kernel skips a program that runs already on the same processor: whatever it would have
    /// seen is unknown, so everything is read again, and no point is taken before.
    fn look_at_counters(&mut self) -> Result<bool, AgentError> {
        self.disks.remember_unmarked(&self.tracking)?;
        let skipped = skipped_runs(&self.source)?;
        if skipped == self.skipped_runs {
            return Ok(self.tracking.counters_stand(&self.source));
        }
        if self.overloaded || self.disks.is_paused() {
            return Ok(false);
        }
        tracing::warn!(skipped, before = self.skipped_runs, "the kernel has skipped the tracker");
        self.skipped_runs = skipped;
        let log = self.log.as_mut().expect("only called with a log");
        for index in self.tracking.indexes() {
            self.tracking.demand_whole(&mut self.source, index, GapReason::MissedEvents, log)?;
        }
        self.disks.remember_skipped(skipped)?;
        Ok(false)
    }

    /// Hands frames to the sealer as long as it takes them.
    fn seal_ready(&mut self) -> Result<(), AgentError> {
        let Some(log) = &mut self.log else { return Ok(()) };
        while let Some(ready) = log.take() {
            let (since, last) = (ready.since, ready.frame.header().last);
            match self.frames.try_send(ready) {
                Ok(()) => self.unacknowledged.sealed(last, since),
                Err(TrySendError::Full(ready)) => {
                    log.put_back(ready);
                    return Ok(());
                }
                Err(TrySendError::Disconnected(ready)) => {
                    log.put_back(ready);
                    self.sealer_has_ended = true;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    pub fn pause_capture(&mut self) -> Result<(), AgentError> {
        for index in self.tracking.indexes() {
            self.tracking.pause(&mut self.source, index)?;
        }
        Ok(())
    }

    pub fn resume_capture(&mut self, reason: GapReason) -> Result<(), AgentError> {
        self.overloaded = false;
        let log = self.log.as_mut().expect("only called with a log");
        for index in self.tracking.indexes() {
            self.tracking.resume(&mut self.source, index, reason, log)?;
        }
        Ok(())
    }

    pub fn all_disks(&self) -> DiskSet {
        let mut all = DiskSet::default();
        self.tracking.indexes().into_iter().for_each(|index| all.insert(index));
        all
    }

    /// Makes the snapshot that the status and the reports show.
    fn tell(&mut self) {
        let now = Instant::now();
        if !self.pace.due(now, SNAPSHOT_EVERY) {
            return;
        }
        let settled = self.tracking.settled() == self.all_disks();
        let whole = self.log.is_some() && self.disks.all_present() && settled;
        self.behind_since = if whole { None } else { self.behind_since.or(Some(now)) };
        let oldest = self.unacknowledged.oldest();
        let oldest = oldest.or(self.log.as_ref().and_then(FrameLog::oldest));
        let oldest = [oldest, self.behind_since].into_iter().flatten().min();
        let seen = Seen {
            source: &self.source,
            tracking: &self.tracking,
            log: self.log.as_ref(),
            skipped: self.skipped_runs.saturating_sub(self.skipped_before),
            order_proven: self.order_proven,
        };
        let mut disks = self.disks.tell(&seen, &self.pace, now);
        let to_come = self.to_come.count(&self.tracking, &self.source, now);
        disks.iter_mut().for_each(|disk| disk.to_come = to_come.get(&disk.index).copied());
        *self.shared.snapshot.lock() = Snapshot {
            taken: now,
            oldest,
            known: self.coverage.since().unwrap_or(now),
            logging: self.log.is_some(),
            by_operator: self.disks.is_paused(),
            overloaded: self.overloaded,
            sealed: self.unacknowledged.end(),
            disks,
        };
    }

    /// Programs and pins stay: the bitmap goes on, capture would only fill a ring that nobody
    /// drains.
    fn stop(mut self) -> Result<(), AgentError> {
        self.marks.fail_all("the agent stops");
        self.verify.fail(&mut self.tracking, "the agent stops");
        self.remember_at_end();
        self.pause_capture()
    }

    /// Tells the session, which is gone only when the agent ends.
    pub fn note(&self, note: Note) {
        let _ = self.notes.send(note);
    }

    pub fn time(&self) -> (WallTime, Instant) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanoseconds = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        (WallTime(nanoseconds), Instant::now())
    }
}

/// An earlier run may have left capture on: nobody drains it until a session stands, and what it
/// has captured is in the bitmap, too.
fn quieten(source: &mut Attached) -> Result<(), AgentError> {
    for pinned in source.disks() {
        source.set_mode(pinned.disk, CaptureMode::Bitmap)?;
        source.forget_partial(pinned.disk);
    }
    source.drain(source.produced(), &mut |_| {});
    for pinned in source.disks() {
        source.forget_partial(pinned.disk);
    }
    Ok(())
}

/// Runs of any program that the kernel has skipped, ever.
fn skipped_runs(source: &Attached) -> Result<u64, AgentError> {
    Ok(source.program_counters()?.iter().map(|program| program.recursion_misses).sum())
}
