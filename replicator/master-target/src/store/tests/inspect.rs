//! An inspection of what is whole: at rest, between any two steps of a machine's life, and after
//! every cut. It never finds damage there, and never writes.

use super::agent::{Agent, MACHINE, consistent, entry_of, marker, write, zero};
use super::hooked::hooked;
use super::world::{Verdict, World, all_disks};
use crate::store::inspect::{StoreInspection, inspect};
use crate::store::{Store, StoreOptions};
use redoubt_control::inspection::SegmentTail;
use redoubt_engine::directory::DirectoryStorage;
use redoubt_engine::lying::LyingStorage;
use redoubt_engine::storage::{BlockFile, Open, Result, Storage, StorageError};
use redoubt_log::{MachineId, WallTime};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A storage that takes nothing but looks; closed, it does not even show its files.
struct ReadOnly<'a> {
    storage: &'a dyn Storage,
    is_closed: bool,
}

fn forbidden<T>(path: &Path, what: &str) -> Result<T> {
    panic!("an inspection tried to {what} {}", path.display());
}

impl Storage for ReadOnly<'_> {
    fn open(&self, path: &Path, how: Open) -> Result<Arc<dyn BlockFile>> {
        assert_eq!(how, Open::ReadOnly, "{}", path.display());
        if self.is_closed {
            let source = io::Error::from(io::ErrorKind::PermissionDenied);
            return Err(StorageError {
                path: path.to_owned(),
                operation: "open".to_owned(),
                source,
            });
        }
        self.storage.open(path, how)
    }
    fn create_directory(&self, path: &Path) -> Result<()> {
        forbidden(path, "create")
    }
    fn list(&self, path: &Path) -> Result<Vec<String>> {
        self.storage.list(path)
    }
    fn remove(&self, path: &Path) -> Result<()> {
        forbidden(path, "remove")
    }
    fn remove_tree(&self, path: &Path) -> Result<()> {
        forbidden(path, "remove")
    }
    fn rename(&self, from: &Path, _: &Path) -> Result<()> {
        forbidden(from, "rename")
    }
    fn sync_directory(&self, path: &Path) -> Result<()> {
        forbidden(path, "sync")
    }
    fn load(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        self.storage.load(path)
    }
    fn replace(&self, path: &Path, _: &[u8]) -> Result<()> {
        forbidden(path, "replace")
    }
    fn free_space(&self) -> Result<u64> {
        self.storage.free_space()
    }
}

/// Looks at a store; no target runs on it unless `is_running`.
pub(super) fn look(storage: &dyn Storage, is_running: bool) -> StoreInspection {
    let storage = ReadOnly { storage, is_closed: false };
    let mut progress = |done, total| assert!(done <= total);
    inspect(&storage, Path::new(""), &|| is_running, &mut progress).unwrap()
}

pub(super) fn expect_clean(storage: &dyn Storage, is_running: bool) -> Verdict {
    let seen = look(storage, is_running);
    match (seen.damage.first(), seen.newer.first()) {
        (None, None) => Ok(()),
        found => Err(format!("found at a store that is whole: {found:?}")),
    }
}

/// Initial sync, some points, the removal of old ones. Stops where the power is cut.
pub(super) fn life(world: &mut World) {
    for step in 0..4_u32 {
        let mut records = vec![write(0, step as usize, 10 + step)];
        records.push(if step == 2 { zero(0, 0, 3) } else { write(1, 5, 20) });
        records.extend([consistent(0), consistent(1), world.marker()]);
        // Two frames for one sync, the first of more than one sector.
        world.send_records((0..24).map(|block| write(1, block % 5, 30 * step + 1)).collect());
        world.send_records(records);
        world.deliver();
        for action in 0..2 {
            if world.disk.is_crashed() {
                return;
            }
            let now = WallTime(world.now);
            if action == 0 {
                drop(world.machine().apply_next(now));
            } else {
                drop(world.machine().drop_expired(now, Duration::from_nanos(2)));
                drop(world.machine().free_segments(now, Duration::ZERO));
            }
        }
    }
}

#[test]
fn a_whole_store_is_explained() {
    let mut world = World::new(1);
    life(&mut world);
    let mut leaves_waiting = vec![write(0, 1, 99)];
    leaves_waiting.push(world.marker());
    world.send_records(leaves_waiting);
    world.deliver();
    let seen = look(&world.disk, false);
    assert!(seen.damage.is_empty() && seen.newer.is_empty() && seen.checked_bytes > 0, "{seen:?}");
    let [machine] = &seen.machines[..] else { panic!("one machine") };
    assert_eq!((machine.id, machine.name.as_deref()), (MACHINE.into(), Some("m")));
    assert!(machine.unharmed);
    let status = world.machine().status();
    let log = machine.log.as_ref().unwrap();
    assert_eq!((log.applied, log.applying), (status.applied.0, None));
    assert_eq!((log.durable, log.incarnation), (status.durable.0, status.incarnation.0));
    let ids: Vec<_> = world.machine().points().iter().map(|point| point.id.into()).collect();
    let shown: Vec<_> = machine.points.iter().map(|point| point.id).collect();
    assert_eq!(shown, ids);
    assert!(machine.points.iter().all(|point| point.harmed_disks.is_empty() && point.complete));
    assert_eq!(machine.points[0].disks, ["disk0", "disk1"]);
    assert_eq!(machine.disks.len(), 2);
    for disk in &machine.disks {
        assert!(disk.present && disk.has_data && disk.consistent);
        assert!(!disk.mid_apply && !disk.ahead_of_point);
        assert_eq!(disk.last_point, ids.last().copied());
    }
    assert_eq!(machine.journal.waiting_points, 1);
    assert!(machine.journal.waiting_bytes >= 4096);
    let entries: u64 = machine.journal.segments.iter().map(|segment| segment.entries).sum();
    assert!(entries >= 1 && entries <= world.agent.log.len() as u64);
    assert!(machine.journal.segments.iter().all(|segment| segment.tail == SegmentTail::Whole));
    assert_eq!(machine.journal.segments.last().unwrap().last, Some(world.agent.last().0));
    assert!(!machine.retention.is_empty());
    assert!(machine.retention.iter().all(|file| file.unharmed && file.content_bytes > 0));
}

#[test]
fn a_store_is_whole_between_any_two_steps_of_a_running_target() {
    // What a look beside the running target sees, and what stays where it is killed there.
    let mut world = World::new(3);
    let disk = world.disk.clone();
    let looks = std::rc::Rc::new(std::cell::Cell::new(0));
    let count = looks.clone();
    let look = move || {
        count.set(count.get() + 1);
        for is_running in [true, false] {
            expect_clean(&disk, is_running).unwrap();
        }
    };
    hooked(look, || life(&mut world));
    assert!(looks.get() > 100, "{} looks", looks.get());
}

#[test]
fn nothing_is_found_while_segments_and_files_come_and_go() {
    const POINTS: u32 = 400;
    let root = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(DirectoryStorage::new(root.path()));
    let options = StoreOptions { segment_bytes: 5 * 4096, ..StoreOptions::default() };
    let store = Store::open(storage.clone(), options, WallTime(0)).unwrap();
    let machine = store.create_machine(MACHINE, "m", WallTime(0)).unwrap();
    let hello = super::world::admit(&machine, None).unwrap();
    let mut agent = Agent::new(hello.generation, hello.incarnation);
    let is_over = AtomicBool::new(false);
    let mut looks = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=POINTS {
                let now = WallTime(u64::from(number));
                let mut records = vec![write(0, 0, number), write(1, 2, number)];
                records.extend([consistent(0), consistent(1), marker(all_disks(), now)]);
                let mut entry = entry_of(&agent.send(records, 0, now).bytes);
                assert!(machine.append(&mut [&mut entry]).stopped.is_none());
                machine.commit().unwrap();
                machine.apply_next(now).unwrap();
                machine.drop_expired(now, Duration::from_nanos(20)).unwrap();
                machine.free_segments(now, Duration::from_nanos(3)).unwrap();
            }
            is_over.store(true, Ordering::Release);
        });
        while !is_over.load(Ordering::Acquire) {
            expect_clean(&*storage, true).unwrap();
            looks += 1;
        }
    });
    assert!(looks > 3, "{looks} looks");
    let seen = look(&*storage, false);
    assert!(seen.damage.is_empty() && seen.leftovers.is_empty(), "{seen:?}");
    assert!(seen.machines[0].points.len() <= 22);
}

#[test]
fn a_store_is_whole_after_a_cut_at_any_step() {
    let mut torn = 0;
    for seed in 0..6 {
        for operations in 0.. {
            let mut world = World::new(seed);
            world.disk.crash_after(operations);
            life(&mut world);
            if !world.disk.is_crashed() {
                break;
            }
            world.disk.restart();
            if let Err(what) = expect_clean(&world.disk, false) {
                panic!("seed {seed}, cut after {operations} operations: {what}");
            }
            let seen = look(&world.disk, false);
            let segments = seen.machines.iter().flat_map(|machine| &machine.journal.segments);
            torn += segments.filter(|segment| segment.tail == SegmentTail::Torn).count();
        }
    }
    assert!(torn > 0, "cuts leave torn tails");
}

#[test]
fn a_random_life_with_cuts_is_whole_whenever_it_is_looked_at() {
    for seed in 0..150 {
        let mut world = World::new(seed);
        world.readers = false;
        world.look = Some(|disk: &LyingStorage| expect_clean(disk, false));
        if let Err(what) = world.run(120) {
            panic!("seed {seed}: {what}");
        }
    }
}

#[test]
fn a_machine_whose_creation_was_cut_is_a_leftover() {
    let world = World::new(1);
    let other = MachineId([9; 16]);
    for directory in ["journal", "disks", "retention"] {
        let path = format!("machines/{other}/{directory}");
        world.disk.create_directory(Path::new(&path)).unwrap();
    }
    let seen = look(&world.disk, false);
    assert!(seen.damage.is_empty());
    assert_eq!(seen.machines.len(), 1);
    assert_eq!(seen.leftovers, [Path::new(&format!("machines/{other}"))]);
}

#[test]
fn who_may_not_read_learns_so() {
    let world = World::new(1);
    let closed = ReadOnly { storage: &world.disk, is_closed: true };
    let seen = inspect(&closed, Path::new(""), &|| false, &mut |_, _| {});
    let error = seen.unwrap_err().to_string();
    assert!(error.contains("manifest") && error.contains("permission denied"), "{error}");
}
