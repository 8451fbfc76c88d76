//! One machine of the store: the handle that the journal's thread, the apply's thread and readers
//! use at once. It fences older runs of the agent before it states where the log goes on.

use super::apply::{ApplyOutcome, apply_next};
use super::error::{Result, StoreError};
use super::journal::{Appended, Journal, JournalState};
use super::layout::{MachineLayout, parse_sealed_name};
use super::manifest::{Disk, Manifest, Point, Protection, RetentionSpan};
use super::placement::Placements;
use super::points::{self, ListedPoint};
use super::recovery::recover;
use super::root::StoreOptions;
use super::rules::{Rule, holds};
use super::shared::{Shared, lock};
use super::suspicion::Suspicion;
use super::view::{PointChoice, View};
use redoubt_engine::storage::Storage;
use redoubt_log::{DiskIndex, Generation, Incarnation, MachineId, RoleEpoch, Sequence, WallTime};
use redoubt_protocol::PauseWord;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A disk as the agent announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// Its index in the log.
    pub index: DiskIndex,
    /// Its stable name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// 512 or 4096.
    pub logical_block_size: u32,
}

/// A run of the agent, and the number that its frames carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The number: newer than all others for a new run.
    pub incarnation: Incarnation,
    /// The run, as it names itself.
    pub run: [u8; 16],
}

/// Where an agent goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloAnswer {
    /// The log's generation; where the agent's is another one, its log does not continue this one.
    pub generation: Generation,
    /// The number that this run's frames must carry; older ones are refused from now on.
    pub incarnation: Incarnation,
    /// The side that may write.
    pub role_epoch: RoleEpoch,
    /// Everything up to here is durable; the next frame's `previous` is this.
    pub resume: Sequence,
    /// What the store has of each disk, at the resume position; those whose replica was deleted
    /// are among them.
    pub disks: Vec<DiskStatus>,
    /// Whether the operator has paused the machine.
    pub pause: PauseWord,
}

/// What the store has of a disk, at the journal's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskStatus {
    /// Its index in the log.
    pub index: DiskIndex,
    /// Its stable name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Whether any record ever wrote to it: if not, every byte reads as zero.
    pub has_data: bool,
    /// Whether the log says that it is whole.
    pub consistent: bool,
    /// Whether the replica disk is ahead of its last point, so that the point needs a view.
    pub ahead_of_point: bool,
    /// Whether it is still protected.
    pub protection: Protection,
    /// The replica disk, as the storage knows it.
    pub replica: PathBuf,
}

/// How far a machine has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineStatus {
    /// The machine.
    pub machine: MachineId,
    /// Its name.
    pub name: String,
    /// The log's generation.
    pub generation: Generation,
    /// The last incarnation handed out.
    pub incarnation: Incarnation,
    /// The side that may write.
    pub role_epoch: RoleEpoch,
    /// The last durable record.
    pub durable: Sequence,
    /// The last record that the replica disks hold.
    pub applied: Sequence,
    /// The end of an apply that runs or was cut.
    pub applying: Option<Sequence>,
    /// Journal bytes that wait to be applied, to within a MiB a segment.
    pub pending_bytes: u64,
    /// The newest applied point.
    pub last_point: Option<Point>,
    /// Whether the journal takes frames.
    pub journal: JournalState,
    /// Whether the operator has paused it.
    pub pause: PauseWord,
    /// Each disk that has a replica.
    pub disks: Vec<DiskStatus>,
}

/// A machine of the store. Clones are the same machine.
#[derive(Clone)]
pub struct StoreMachine {
    pub(super) shared: Arc<Shared>,
}

impl StoreMachine {
    /// Opens what the manifest describes, and removes what no manifest speaks of; `None` where
    /// there is no manifest.
    pub(super) fn open(
        storage: &Arc<dyn Storage>,
        placements: &Arc<Placements>,
        options: StoreOptions,
        machine: MachineId,
        now: WallTime,
    ) -> Result<Option<Self>> {
        let layout = MachineLayout::new(machine);
        let Some(mut manifest) = Manifest::load(&**storage, &layout.manifest())? else {
            return expect_no_files(&**storage, &layout).map(|()| None);
        };
        if manifest.machine != machine {
            return Err(StoreError::damaged(&layout.manifest(), 0, "it is another machine's"));
        }
        // A process that died may have left the manifest replaced, but not durably.
        storage.sync_directory(layout.root())?;
        let lost = clean_retention(&**storage, &layout, &mut manifest)?;
        let journal = recover(storage, &layout, &manifest, options.segment_bytes, now)?;
        let shared = Shared::new(options, layout, manifest, journal, placements.clone());
        shared.remove_stray_replicas()?;
        lost.iter().for_each(|span| drop(shared.open_retention(span)));
        Ok(Some(Self { shared: Arc::new(shared) }))
    }

    /// The machine.
    pub fn id(&self) -> MachineId {
        self.shared.machine
    }

    /// Its name at this site.
    pub fn name(&self) -> String {
        lock(&self.shared.manifest).name.clone()
    }

    /// Who was admitted last, if anyone ever was.
    pub fn admitted(&self) -> Option<Admitted> {
        let manifest = lock(&self.shared.manifest);
        manifest.run.map(|run| Admitted { incarnation: manifest.incarnation, run })
    }

    /// Admits a run of the agent: takes in the disks that are new, makes durable what older runs
    /// sent and fences them, durably, and only then says where the log goes on. The same run may be
    /// admitted again. With `new_generation` a new log begins: the positions go on, the points
    /// stay, and no disk is consistent until the new log says so.
    pub fn hello(
        &self,
        admitted: Admitted,
        new_generation: bool,
        disks: &[DiskSpec],
    ) -> Result<HelloAnswer> {
        let mut journal = lock(&self.shared.journal);
        if admitted.incarnation < journal.fence.incarnation {
            let newest = journal.fence.incarnation;
            let reason = format!("incarnation {} is fenced by {newest}", admitted.incarnation);
            return Err(StoreError::Refused { machine: self.shared.machine, reason });
        }
        for disk in disks {
            self.add_disk(&mut journal, disk)?;
        }
        let resume = journal.commit(&self.shared.index)?;
        let mut fence = journal.fence;
        fence.incarnation = admitted.incarnation;
        if new_generation {
            fence.generation = Generation::random();
        }
        if (fence != journal.fence || self.admitted() != Some(admitted))
            && holds(Rule::FenceDurable)
        {
            self.change(|manifest| {
                manifest.generation = fence.generation;
                manifest.incarnation = fence.incarnation;
                manifest.run = Some(admitted.run);
            })?;
        }
        journal.fence = fence;
        let pause = lock(&self.shared.manifest).pause;
        Ok(HelloAnswer {
            generation: fence.generation,
            incarnation: fence.incarnation,
            role_epoch: fence.role_epoch,
            resume,
            disks: self.disk_status(&journal),
            pause,
        })
    }

    /// An operator pauses the machine or ends that, or the agent tells what it was told: the later
    /// word counts, durably. Returns what counts.
    pub fn pause(&self, word: PauseWord) -> Result<PauseWord> {
        let known = lock(&self.shared.manifest).pause;
        if known.merge(word) != known {
            self.change(|manifest| manifest.pause = manifest.pause.merge(word))?;
        }
        Ok(lock(&self.shared.manifest).pause)
    }

    /// Lets another side write: frames of the old one are refused from now on.
    pub fn set_role_epoch(&self, epoch: RoleEpoch) -> Result<()> {
        let mut journal = lock(&self.shared.journal);
        self.change(|manifest| manifest.role_epoch = epoch)?;
        journal.fence.role_epoch = epoch;
        Ok(())
    }

    /// Appends entries, in order: each an aligned buffer with its frame at `ENTRY_HEADER_SIZE`, and
    /// at least `entry_length` bytes long. Checksum and records are checked, the MAC is not: the
    /// caller did. Nothing is durable before [`StoreMachine::commit`].
    pub fn append(&self, batch: &mut [&mut [u8]]) -> Appended {
        lock(&self.shared.journal).append(&self.shared.index, batch)
    }

    /// Makes durable what was appended, by one sync; returns the last durable sequence, which may
    /// be acknowledged.
    pub fn commit(&self) -> Result<Sequence> {
        lock(&self.shared.journal).commit(&self.shared.index)
    }

    /// Applies the next interval, if one is due, and finishes one that was cut. After an error
    /// nothing is lost: call again when the reason is gone.
    pub fn apply_next(&self, now: WallTime) -> Result<ApplyOutcome> {
        // What a device was is proven anew after anything that went wrong.
        apply_next(&self.shared, now).inspect_err(|_| self.shared.let_devices_go())
    }

    /// Removes points older than `keep`; returns how many.
    pub fn drop_expired(&self, now: WallTime, keep: Duration) -> Result<usize> {
        points::drop_expired(&self.shared, now, keep)
    }

    /// Removes journal segments that were applied longer than `keep` ago, and where the journal has
    /// no room all that were applied, the open one too; returns how many.
    pub fn free_segments(&self, now: WallTime, keep: Duration) -> Result<usize> {
        let shared = &self.shared;
        let full = lock(&shared.index).full;
        self.raise_floor(full, now)?;
        let keep = u64::try_from(keep.as_nanos()).unwrap_or(u64::MAX);
        let keep = if full { 0 } else { keep };
        // By a clock that went back it was applied just now.
        let is_due = |since: WallTime| now.0.saturating_sub(since.0) >= keep;
        let mut removed = 0;
        loop {
            let due = {
                let mut index = lock(&shared.index);
                let place = index.spent.iter().position(|(_, since)| is_due(*since));
                place.map(|place| index.spent.remove(place))
            };
            let Some((number, _)) = due else { break };
            shared.storage.remove(&shared.layout.segment(number))?;
            removed += 1;
        }
        if removed > 0 {
            shared.storage.sync_directory(&shared.layout.journal())?;
        }
        Ok(removed)
    }

    /// Gives up the segments that are applied to their end. An apply does so as well, but not while
    /// it stands still for want of the very room that they take. Where the journal has no room, its
    /// open segment goes too: the next one is made when it is gone, not before.
    fn raise_floor(&self, full: bool, now: WallTime) -> Result<()> {
        let shared = &self.shared;
        let mut journal = full.then(|| lock(&shared.journal));
        let mut manifest = lock(&shared.manifest);
        let open = journal.as_ref();
        let without = open.and_then(|open| open.floor_without_segments(manifest.applied));
        let floor = without.or_else(|| lock(&shared.index).floor(manifest.applied));
        let Some(floor) = floor.filter(|floor| floor.segment > manifest.journal.segment) else {
            return Ok(());
        };
        let mut next = manifest.clone();
        next.journal = floor;
        shared.save(&next)?;
        *manifest = next;
        if let (Some(journal), Some(_)) = (&mut journal, without) {
            journal.tail = None;
        }
        lock(&shared.index).move_floor(floor, now);
        Ok(())
    }

    /// The applied points, oldest first.
    pub fn points(&self) -> Vec<Point> {
        lock(&self.shared.manifest).points.clone()
    }

    /// The applied points and, behind them, those that are durable and wait for that, oldest first.
    pub fn listed_points(&self) -> Vec<ListedPoint> {
        points::listed(&self.shared)
    }

    /// Suspicions that have become durable since this was last asked, or that a start has found.
    pub fn take_suspicions(&self) -> Vec<Suspicion> {
        std::mem::take(&mut lock(&self.shared.index).untold)
    }

    /// Opens a disk as it was at a point.
    pub fn view(&self, disk: DiskIndex, point: PointChoice) -> Result<View> {
        View::open(&self.shared, disk, point)
    }

    /// Reads every retention file and checks every checksum; returns the bytes of old content that
    /// they hold.
    pub fn check_retention(&self) -> Result<u64> {
        let spans = self.shared.published();
        spans.iter().map(|span| self.shared.open_retention(span)?.check()).sum()
    }

    /// How far it has come. Waits for a journal write that is under way.
    pub fn status(&self) -> MachineStatus {
        let journal = lock(&self.shared.journal);
        let mut disks = self.disk_status(&journal);
        disks.retain(|disk| disk.protection != Protection::Deleted);
        let manifest = lock(&self.shared.manifest);
        MachineStatus {
            machine: manifest.machine,
            name: manifest.name.clone(),
            generation: manifest.generation,
            incarnation: manifest.incarnation,
            role_epoch: manifest.role_epoch,
            durable: journal.durable,
            applied: manifest.applied,
            applying: manifest.applying,
            pending_bytes: lock(&self.shared.index).bytes_after(manifest.applied),
            last_point: manifest.points.last().cloned(),
            journal: journal.state.clone(),
            pause: manifest.pause,
            disks,
        }
    }

    fn disk_status(&self, journal: &Journal) -> Vec<DiskStatus> {
        let continues = journal.consistency.generation() == journal.fence.generation;
        let status = |disk: &Disk| DiskStatus {
            index: disk.index,
            name: disk.name.clone(),
            size: disk.size,
            has_data: journal.written.contains(disk.index),
            consistent: continues && journal.consistency.since(disk.index).is_some(),
            ahead_of_point: disk.ahead_of_point,
            protection: match disk.protection {
                Protection::Active if journal.removed.contains(disk.index) => {
                    Protection::EndedByAgent
                }
                known => known,
            },
            replica: disk.replica_path(&self.shared.layout),
        };
        lock(&self.shared.manifest).disks.iter().map(status).collect()
    }

    /// Changes the manifest, durably.
    pub(super) fn change(&self, change: impl FnOnce(&mut Manifest)) -> Result<()> {
        let mut manifest = lock(&self.shared.manifest);
        let mut next = manifest.clone();
        change(&mut next);
        self.shared.save(&next)?;
        *manifest = next;
        Ok(())
    }
}

/// A machine's files come after its manifest: where there are any without it, it is lost, and what
/// they hold must not make room for a new machine.
fn expect_no_files(storage: &dyn Storage, layout: &MachineLayout) -> Result<()> {
    for directory in [layout.journal(), layout.disks(), layout.retention()] {
        if !storage.list(&directory)?.is_empty() {
            return Err(StoreError::damaged(&layout.manifest(), 0, "the manifest is missing"));
        }
    }
    Ok(())
}

/// Removes what no manifest speaks of: nothing was written on its account. What the manifest lists
/// was sealed, and is kept, above all where its apply was cut: the replica may hold new data
/// already. What it lists and is not there is returned: that costs points, and nothing else.
fn clean_retention(
    storage: &dyn Storage,
    layout: &MachineLayout,
    manifest: &mut Manifest,
) -> Result<Vec<RetentionSpan>> {
    if !holds(Rule::SealedIsKept) && manifest.applying.take().is_some() {
        let applied = manifest.applied;
        manifest.retention.retain(|span| span.to <= applied);
        manifest.save(storage, &layout.manifest())?;
    }
    let names = storage.list(&layout.retention())?;
    let listed = |(from, to): (Sequence, Sequence)| {
        manifest.retention.iter().any(|span| (span.from, span.to) == (from, to))
    };
    for name in &names {
        if !parse_sealed_name(name).is_some_and(listed) {
            storage.remove(&layout.retention().join(name))?;
        }
    }
    storage.sync_directory(&layout.retention())?;
    let there: BTreeSet<_> = names.iter().filter_map(|name| parse_sealed_name(name)).collect();
    let is_lost = |span: &&RetentionSpan| !there.contains(&(span.from, span.to));
    Ok(manifest.retention.iter().filter(is_lost).copied().collect())
}
