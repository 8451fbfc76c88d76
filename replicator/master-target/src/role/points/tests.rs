//! A point that is durable and waits for its apply, with a real store and its threads.

use super::super::protected::{Registry, now};
use super::*;
use crate::store::tests::held::{MACHINE, deliver_point, hold_apply};
use crate::store::{Store, StoreOptions};
use redoubt_control::audit::AuditLog;
use redoubt_engine::uring_directory::{UringOptions, open_directory};

const HOUR: Duration = Duration::from_secs(3600);

fn listed(machine: &Protected) -> Vec<(PointId, bool, bool)> {
    match list_page(machine, RequestId(1), Sequence(0)) {
        TargetMessage::Points { points, more: false, .. } => {
            points.iter().map(|point| (point.point, point.waits, point.proven)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_point_that_waits_is_listed_and_waited_for_where_nothing_hinders_it() {
    let data = tempfile::tempdir().unwrap();
    let storage = open_directory(data.path(), UringOptions::default());
    let store = Arc::new(Store::open(storage, StoreOptions::default(), now()).unwrap());
    let registry = Registry::new(store, HOUR, Duration::ZERO, AuditLog::new(data.path()));
    registry.protect(MACHINE, &"web".parse().unwrap()).unwrap();
    let machine = registry.get(MACHINE).unwrap();
    // Its events are heard, as by its task.
    let mut ends = registry.take_started();
    let mut events = ends.remove(0).events;
    let hears = std::thread::spawn(move || while events.blocking_recv().is_some() {});
    let held = hold_apply(&machine.store);
    let point = deliver_point(&machine.store);
    assert_eq!(listed(&machine), [(point, true, false)]);
    let reads = |choice| open(&machine, DiskIndex(0), choice);
    machine.live().apply_error = Some("no room".to_owned());
    for choice in [PointChoice::Latest, PointChoice::Id(point)] {
        let why = reads(choice).map(drop).unwrap_err();
        assert!(why.contains("waits for the replica disks"), "{why}");
        assert!(why.contains("(apply-failed: no room)"), "{why}");
    }
    machine.live().apply_error = None;
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| reads(PointChoice::Id(point)).map(drop));
        drop(held);
        waits.join().unwrap().unwrap();
    });
    assert_eq!(listed(&machine), [(point, false, true)]);
    registry.stop();
    drop((registry, machine));
    hears.join().unwrap();
}
