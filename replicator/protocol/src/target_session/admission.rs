//! Who may write a machine's log, and whether the log can go on. Nothing is stored here: the driver
//! does that.

use crate::frame_place::FramePlace;
use crate::message::{Hello, PROTOCOL_VERSION, Refusal, RefusalCode, RunId};
use redoubt_log::record::DISK_SIZE_LIMIT;
use redoubt_log::{DiskIndex, DiskSet, Generation, Incarnation, MachineId, RoleEpoch, Sequence};

/// What the target has stored of a machine's sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetPast {
    /// The log; `None` before the first session.
    pub generation: Option<Generation>,
    /// The newest incarnation handed out.
    pub incarnation: Option<Incarnation>,
    /// The run it was handed out to, if that is known.
    pub run: Option<RunId>,
    /// The side that may write.
    pub role_epoch: RoleEpoch,
}

/// What a hello leads to; to be stored before the welcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// This run's number: newer than all others, or the one it holds already.
    pub incarnation: Incarnation,
    /// The run.
    pub run: RunId,
    /// Whether the log goes on.
    pub continuity: Continuity,
}

/// Whether the log goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Continuity {
    /// The machine's first session: a generation is to be made.
    First,
    /// The log goes on.
    Goes(Generation),
    /// Continuity is lost: a new generation is to be made, and the reason goes into
    /// `Welcome::resync`.
    Lost(String),
}

impl TargetPast {
    /// Whether the machine of this certificate may write, and from where.
    pub(super) fn admit(
        &self,
        machine: MachineId,
        hello: &Hello,
        durable: Sequence,
    ) -> Result<Admission, Refusal> {
        if hello.protocol_version != PROTOCOL_VERSION {
            return Err(refusal(
                RefusalCode::ProtocolVersion,
                format!(
                    "the agent speaks version {}, the target {PROTOCOL_VERSION}: \
                     install the same release on both",
                    hello.protocol_version
                ),
            ));
        }
        if hello.machine != machine {
            return Err(refusal(
                RefusalCode::ForeignMachine,
                format!(
                    "the hello is of machine {}, the certificate of {machine}: \
                     was a state directory copied?",
                    hello.machine
                ),
            ));
        }
        self.check_role(hello.role_epoch)?;
        check_disks(hello)?;
        let incarnation = self.incarnation_for(hello)?;
        let continuity = self.continuity(hello, durable);
        Ok(Admission { incarnation, run: hello.run, continuity })
    }

    /// Whether a frame is one that this machine's present run may send.
    pub(super) fn check_place(
        &self,
        machine: MachineId,
        place: &FramePlace,
    ) -> Result<(), Refusal> {
        let frame = format!("frame {}..={}", place.first, place.last);
        if place.machine != machine {
            let text = format!("{frame} is of machine {}, not of {machine}", place.machine);
            return Err(refusal(RefusalCode::ForeignMachine, text));
        }
        self.check_role(place.role_epoch)?;
        if place.last.run() > place.incarnation {
            let text = format!("{frame} has numbers of a later run than {}", place.incarnation);
            return Err(refusal(RefusalCode::Malformed, text));
        }
        if Some(place.generation) != self.generation {
            let text = format!("{frame} is of another generation, {}", place.generation);
            return Err(refusal(RefusalCode::Malformed, text));
        }
        if Some(place.incarnation) != self.incarnation {
            let text = format!("{frame} is of another incarnation, {}", place.incarnation);
            return Err(refusal(RefusalCode::Malformed, text));
        }
        Ok(())
    }

    fn check_role(&self, role_epoch: RoleEpoch) -> Result<(), Refusal> {
        if role_epoch == self.role_epoch {
            return Ok(());
        }
        Err(refusal(
            RefusalCode::FencedRoleEpoch,
            format!(
                "the agent is of role epoch {role_epoch}, the replica of {}: \
                 the other side has taken over; reprotect this machine before it sends again",
                self.role_epoch
            ),
        ))
    }

    fn incarnation_for(&self, hello: &Hello) -> Result<Incarnation, Refusal> {
        let newest = self.incarnation.unwrap_or_default();
        let same_run = self.run.is_none_or(|run| run == hello.run);
        if let Some(claimed) = hello.held.max(hello.last_incarnation)
            && claimed >= Incarnation::LIMIT
        {
            let text = format!("the hello tells of run {claimed}, and no machine has so many");
            return Err(refusal(RefusalCode::Malformed, text));
        }
        match hello.held {
            Some(held) if held == newest && same_run => Ok(newest),
            // A target that was restored does not know of later incarnations: numbers go on above
            // them.
            Some(held) if held > newest => after(held),
            Some(held) => Err(refusal(
                RefusalCode::NewerIncarnation,
                format!(
                    "this run of the agent has incarnation {held}, but another has {newest}: \
                     a second agent runs with this machine's identity, or did"
                ),
            )),
            // Its first welcome was lost on the way.
            None if self.incarnation.is_some() && self.run == Some(hello.run) => Ok(newest),
            None => after(newest.max(hello.last_incarnation.unwrap_or_default())),
        }
    }

    fn continuity(&self, hello: &Hello, durable: Sequence) -> Continuity {
        let Some(generation) = self.generation else {
            return match hello.generation {
                None => Continuity::First,
                Some(theirs) => Continuity::Lost(format!(
                    "the agent has a log, {theirs}, of which the target has nothing"
                )),
            };
        };
        if let Some(reason) = &hello.resync {
            return Continuity::Lost(reason.clone());
        }
        let lost_welcome = hello.held.is_none() && self.run == Some(hello.run);
        if lost_welcome && hello.generation.is_none() {
            return Continuity::Goes(generation);
        }
        let known = hello.last_incarnation.max(hello.held).unwrap_or_default();
        let newest = self.incarnation.unwrap_or_default();
        match hello.generation {
            None => Continuity::Lost("the agent has no log yet: it was installed anew".to_owned()),
            Some(theirs) if theirs != generation => {
                Continuity::Lost(format!("the agent has the log {theirs}, the target {generation}"))
            }
            Some(_) if hello.acknowledged > durable => Continuity::Lost(format!(
                "the target has the log up to {durable}, but had acknowledged {}: \
                 it was restored or rolled back",
                hello.acknowledged
            )),
            Some(_) if known > newest => Continuity::Lost(format!(
                "the target knows of {newest} runs, the agent of {known}: the target was restored"
            )),
            // An agent remembers its number before it writes: this log has records of a run that
            // this state directory never had, so of another disk perhaps.
            Some(_) if known < durable.run() => Continuity::Lost(format!(
                "run {} has written the log, the agent knows of {known}: \
                 its state directory was copied or restored",
                durable.run()
            )),
            Some(_) => Continuity::Goes(generation),
        }
    }
}

/// The number of the run that follows this one.
fn after(run: Incarnation) -> Result<Incarnation, Refusal> {
    run.checked_next().ok_or_else(|| {
        let text = format!("run {run} was the machine's last: enrol it anew, by another name");
        refusal(RefusalCode::Malformed, text)
    })
}

fn check_disks(hello: &Hello) -> Result<(), Refusal> {
    let mut seen = DiskSet::default();
    let malformed = |text| Err(refusal(RefusalCode::Malformed, text));
    for disk in &hello.disks {
        let block = u64::from(disk.logical_block_bytes);
        if disk.index.0 >= DiskIndex::LIMIT || seen.contains(disk.index) {
            return malformed(format!("disk {}: index {} is not free", disk.name, disk.index));
        }
        seen.insert(disk.index);
        if hello.disks.iter().filter(|other| other.name == disk.name).count() > 1 {
            return malformed(format!("two disks have the name {}", disk.name));
        }
        if !matches!(block, 512 | 4096) || disk.size_bytes == 0 || disk.size_bytes % block != 0 {
            return malformed(format!(
                "disk {}: {} bytes in blocks of {block} is no size of a disk",
                disk.name, disk.size_bytes
            ));
        }
        if disk.size_bytes > DISK_SIZE_LIMIT {
            return malformed(format!(
                "disk {}: {} bytes are more than a protected disk may have, 1 PiB",
                disk.name, disk.size_bytes
            ));
        }
    }
    Ok(())
}

fn refusal(code: RefusalCode, text: String) -> Refusal {
    Refusal { code, text }
}
