//! A verify under way, as the owner of the tracker carries it on between its other work: batches
//! are read and hashed, a point is put behind each, and the target is asked what it has there. It
//! never waits, and calls nothing equal that was not compared.

mod batch;
mod command;
mod plan;
mod run;

pub(crate) use command::{VerifyCommand, verify};
pub(crate) use run::{Found, Hands};

use crate::disks::ProtectedDisks;
use crate::error::AgentError;
use crate::reader::Finished;
use crate::requests::{Ask, CheckAnswer};
use crate::snapshot::SharedLink;
use redoubt_control::audit::AuditLog;
use redoubt_log::Name;
use redoubt_log::{ByteRange, DiskIndex, DiskSet, PointId, Sequence};
use redoubt_protocol::verify::VerifyOutcome;
use redoubt_tracker::probe::Attached;
use redoubt_tracker::{ReadOrder, RingPosition, Tracking};
use run::{Run, RunDisk, Step};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// After a gap writes may be in flight that nobody saw begin: a check that such a write outlives
/// would find a difference where nothing is wrong. So long they are given to end.
const GAP_QUIET: Duration = Duration::from_secs(2);

/// Why a verify ends for which nobody waits.
const GIVEN_UP: &str = "given up: who asked has gone";

/// The label of the points that a verify takes.
pub(crate) const POINT_LABEL: &str = "verify";

/// What a verify tells whoever asked for it.
pub(crate) enum VerifyEvent {
    /// Bytes that are done with, and of how many.
    Progress(u64, u64),
    /// It has ended; nothing follows.
    Ended(Result<VerifyOutcome, String>),
}

/// A verify that somebody asks for.
pub(crate) struct VerifyRequest {
    /// Which disk; `None` means all.
    pub disk: Option<DiskIndex>,
    pub tell: Box<dyn FnMut(VerifyEvent) + Send>,
    /// Nobody waits for it any more.
    pub given_up: Arc<AtomicBool>,
}

/// What the owner knows that a verify rests on.
pub(crate) struct Standing {
    /// A log is written.
    pub logging: bool,
    pub by_operator: bool,
    /// Protected disks of which nothing can be compared.
    pub untracked: Vec<Untracked>,
}

/// A protected disk that is not tracked: absent, or not what it was.
pub(crate) struct Untracked {
    pub name: Name,
    pub size: u64,
    /// A reason code and the device.
    pub reason: String,
}

/// The verify of this machine, if one is under way: one at a time.
pub(crate) struct Verify {
    asks: mpsc::Sender<Ask>,
    link: SharedLink,
    audit: AuditLog,
    names: Vec<(DiskIndex, Name)>,
    /// Reads under way for a verify, be it one that has ended.
    reads: Vec<ReadOrder>,
    /// How many gaps each disk has had, and when the last was seen.
    gaps: HashMap<DiskIndex, (u64, Instant)>,
    /// The answer to a verify that has ended: the target is asked one thing at a time.
    stale: Option<Receiver<CheckAnswer>>,
    run: Option<Run>,
    /// The names of the disks of the run, for the audit log.
    under_way: String,
}

impl Verify {
    /// Nothing is verified.
    pub fn new(
        asks: mpsc::Sender<Ask>,
        link: SharedLink,
        audit: AuditLog,
        names: Vec<(DiskIndex, Name)>,
    ) -> Self {
        let (reads, gaps, under_way) = Default::default();
        Self { asks, link, audit, names, reads, gaps, stale: None, run: None, under_way }
    }

    /// Begins, or says why not.
    pub fn begin(
        &mut self,
        mut request: VerifyRequest,
        tracking: &mut Tracking,
        standing: Standing,
        now: Instant,
    ) {
        if self.is_given_up() {
            self.fail(tracking, GIVEN_UP);
        }
        let sized = |index| tracking.size(index).map(|size| (index, size));
        let asked = |index: &DiskIndex| request.disk.is_none_or(|disk| disk == *index);
        let disks: Vec<_> =
            tracking.indexes().into_iter().filter(asked).filter_map(sized).collect();
        let why = if self.run.is_some() {
            "a verify of this machine runs already: wait for its end, or end it (Ctrl-C)"
        } else if standing.by_operator {
            "replication is paused: nothing can be compared before it goes on"
        } else if !standing.logging || !self.link.get().connected {
            "the target cannot be reached now: `redoubt status` says why"
        } else if disks.is_empty() {
            "this agent does not track the disk: `redoubt status` says why"
        } else {
            tracing::info!(disks = disks.len(), "verify begins");
            self.under_way = self.named(disks.iter().map(|(index, _)| *index));
            self.audit.note(None, "verify", &self.under_way, "begun", None);
            let untracked = match request.disk {
                Some(_) => Vec::new(),
                None => standing.untracked,
            };
            let named = disks.into_iter().map(|(index, size)| {
                let name = self.named(std::iter::once(index));
                RunDisk { index, name, size }
            });
            self.run = Some(Run::new(request, named.collect(), &untracked, now));
            return;
        };
        (request.tell)(VerifyEvent::Ended(Err(why.to_owned())));
    }

    /// Ends it without a result, if one is under way.
    pub fn fail(&mut self, tracking: &mut Tracking, why: &str) {
        if let Some(run) = self.run.take() {
            tracing::warn!(why, "verify ends without a result");
            let reason = Some(why.to_owned());
            self.audit.note(None, "verify", &self.under_way, "failed", reason);
            tracking.forget_checks();
            self.stale = self.stale.take().or(run.fail(why));
        }
    }

    /// Whether a batch is being read or waits for its point: the owner should not sleep long.
    pub fn is_reading(&self) -> bool {
        self.run.as_ref().is_some_and(Run::is_reading)
    }

    /// Takes a finished read if it is one of a verify.
    /// The ring is filled up to `produced` by now.
    pub fn takes(
        &mut self,
        read: &Finished,
        tracking: &mut Tracking,
        produced: RingPosition,
        now: Instant,
    ) -> bool {
        let Some(at) = self.reads.iter().position(|order| *order == read.order) else {
            return false;
        };
        self.reads.swap_remove(at);
        if let Some(run) = &mut self.run {
            run.take_read(read, tracking, produced, now);
        }
        true
    }

    /// Whether the ring must be drained before a batch that was read can have its point.
    pub fn wants_drain(&self, drained: RingPosition) -> bool {
        self.run.as_ref().is_some_and(|run| run.wants_drain(drained))
    }

    /// Whether a point is wanted in the log where the ring is drained up to `drained` and these
    /// disks are settled.
    pub fn wants_point(&self, drained: RingPosition, settled: DiskSet) -> bool {
        self.run.as_ref().is_some_and(|run| run.wants_point(drained, settled))
    }

    /// The point stands right behind everything drained.
    pub fn point(&mut self, point: PointId, sequence: Sequence, tracking: &mut Tracking) {
        if let Some(run) = &mut self.run {
            run.fix(point, sequence, tracking);
        }
    }

    /// Goes on as far as that is possible without waiting; returns what was found to differ.
    pub fn advance(
        &mut self,
        hands: &mut Hands<'_, Attached>,
        disks: &mut ProtectedDisks,
        now: Instant,
    ) -> Result<Vec<Found>, AgentError> {
        self.look_for_gaps(hands.tracking, now);
        if self.is_given_up() {
            self.fail(hands.tracking, GIVEN_UP);
        }
        let Some(mut run) = self.run.take() else { return Ok(Vec::new()) };
        let is_quiet = |(_, seen): &(u64, Instant)| now - *seen >= GAP_QUIET;
        let mut ready = hands.tracking.settled();
        for index in self.gaps.iter().filter(|(_, gap)| !is_quiet(gap)).map(|(index, _)| index) {
            ready.remove(*index);
        }
        if !self.link.get().connected {
            ready = DiskSet::default();
        }
        self.stale.take_if(|stale| !matches!(stale.try_recv(), Err(TryRecvError::Empty)));
        let asks = self.stale.is_none().then_some(&self.asks);
        let step = run.step(hands, asks, ready, &mut self.reads, now)?;
        let found = run.take_found();
        for found in &found {
            disks.differs(found.disk);
            self.record(found);
        }
        match step {
            Step::GoesOn => self.run = Some(run),
            Step::Ended => {
                self.audit.note(None, "verify", &self.under_way, "ended", None);
                hands.tracking.forget_checks();
                self.stale = self.stale.take().or(run.finish());
            }
            Step::Failed(why) => {
                self.run = Some(run);
                self.fail(hands.tracking, &why);
            }
        }
        Ok(found)
    }

    fn is_given_up(&self) -> bool {
        let given_up = |run: &Run| run.request.given_up.load(Ordering::Acquire);
        self.run.as_ref().is_some_and(given_up)
    }

    fn look_for_gaps(&mut self, tracking: &Tracking, now: Instant) {
        for index in tracking.indexes() {
            let gaps = tracking.gaps(index);
            let known = self.gaps.entry(index).or_insert((0, now));
            if known.0 != gaps {
                *known = (gaps, now);
            }
        }
    }

    fn named(&self, disks: impl Iterator<Item = DiskIndex>) -> String {
        let name = |disk| {
            let known = self.names.iter().find(|(index, _)| *index == disk);
            known.map_or_else(|| disk.to_string(), |(_, name)| name.to_string())
        };
        disks.map(name).collect::<Vec<_>>().join(", ")
    }

    /// Something differed, and is read again by now: it is said once, where it can be found later.
    fn record(&self, found: &Found) {
        let Found { disk, different, point } = found;
        let Some(first) = different.iter().next() else { return };
        let name = self.named(std::iter::once(*disk));
        let (bytes, ranges) = (different.total_bytes(), different.len());
        tracing::warn!(disk = %name, bytes, ranges, first = %first, %point,
            "the replica differs from the disk: what differs is read again");
        let described = Some(describe(bytes, ranges, first));
        // A sync by the owner, as of the state file whenever an epoch is dropped; and rare.
        self.audit.note(None, "verify-difference", &name, "is read again", described);
    }
}

fn describe(bytes: u64, ranges: usize, first: ByteRange) -> String {
    format!(
        "{bytes} bytes in {ranges} ranges, the first at {} ({} bytes)",
        first.offset, first.length
    )
}
