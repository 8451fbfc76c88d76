//! Orders at a target whose agents are away, with a real store and a real site.

use super::*;
use crate::store::{Admitted, DiskSpec, Store, StoreOptions};
use redoubt_control::{AuditEntry, Handler, Peer, Responder, SocketError};
use redoubt_engine::uring_directory::{UringOptions, open_directory};
use redoubt_log::frame::{FrameBuilder, FrameKey, FrameLimits, FrameMeta, FramePool, SealBuffers};
use redoubt_log::segment::{ENTRY_HEADER_SIZE, entry_length};
use redoubt_log::{
    DiskIndex, Generation, Incarnation, MachineId, Record, RoleEpoch, Sequence, WallTime,
};
use redoubt_protocol::PauseWord;
use std::sync::Arc;

const MACHINE: MachineId = MachineId([1; 16]);
const OTHER: MachineId = MachineId([2; 16]);
const HOUR: Duration = Duration::from_secs(3600);

/// A target with one machine of two disks.
fn target(data: &Path) -> Control {
    let site = Arc::new(Site::open_or_create(&data.join("site")).unwrap());
    let storage = open_directory(data, UringOptions::default());
    let store = Arc::new(Store::open(storage, StoreOptions::default(), now()).unwrap());
    let audit = AuditLog::new(data);
    let registry = Registry::new(store, HOUR, Duration::ZERO, audit.clone());
    Control { registry, site, audit, data: data.to_owned() }
}

fn protect(control: &Control, id: MachineId, name: &str) -> Arc<Protected> {
    control.registry.protect(id, &name.parse().unwrap()).unwrap();
    let machine = control.registry.get(id).unwrap();
    let spec = |(index, name): (u8, &str)| DiskSpec {
        index: DiskIndex(index),
        name: name.to_owned(),
        size: 1 << 20,
        logical_block_size: 512,
    };
    let admitted = Admitted { incarnation: Incarnation(1), run: [1; 16] };
    let disks: Vec<DiskSpec> = [(0, "first"), (1, "second")].map(spec).into();
    machine.store.hello(admitted, false, &disks).unwrap();
    machine
}

fn said(answer: Answer<Response>) -> String {
    match answer {
        Ok(Response::Told { message }) | Err(Response::Failed { message, .. }) => message,
        other => panic!("{other:?}"),
    }
}

/// Nobody listens.
struct Unheard;

impl Responder for Unheard {
    fn send(&mut self, _: &Response) -> Result<(), SocketError> {
        Ok(())
    }
}

#[test]
fn an_order_is_written_down_before_it_is_carried_out_and_where_it_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let control = target(data.path());
    protect(&control, MACHINE, "web");
    let order = |json: &str| {
        let request: Request = serde_json::from_str(json).unwrap();
        control.handle(Peer { uid: 7, pid: 1 }, request, &mut Unheard);
        let written = std::fs::read_to_string(data.path().join("audit.jsonl")).unwrap();
        let entries = written.lines().map(|line| serde_json::from_str(line).unwrap());
        let entries: Vec<AuditEntry> = entries.collect();
        std::fs::remove_file(data.path().join("audit.jsonl")).unwrap();
        let told = entries.iter().map(|it| {
            assert_eq!(it.actor, Some(7));
            format!("{} {} {}", it.action, it.object, it.outcome)
        });
        told.collect::<Vec<String>>()
    };
    let pause = order(r#"{"request":"pause","machine":null}"#);
    assert_eq!(pause, ["pause web begun", "pause web done"]);
    let of_nobody = order(r#"{"request":"pause","machine":"nobody"}"#);
    assert_eq!(of_nobody, ["pause nobody failed"]);
    let all = r#"{"request":"unprotect","machine":null,"disk":null,"delete_replica":true}"#;
    assert_eq!(order(all), ["delete-replica unnamed failed"]);
    let one = all.replace(r#""disk":null"#, r#""disk":"first""#);
    assert_eq!(order(&one), ["delete-replica web/first begun", "delete-replica web/first done"]);
    let place = order(r#"{"request":"place","machine":"web","disk":"x","on":"/dev/none"}"#);
    let object = "web/x on /dev/none";
    assert_eq!(place, [format!("place {object} begun"), format!("place {object} failed")]);
}

#[test]
fn an_agent_that_was_not_heard_has_let_nothing_go() {
    let data = tempfile::tempdir().unwrap();
    let control = target(data.path());
    let machine = protect(&control, MACHINE, "web");
    let second: Name = "second".parse().unwrap();
    let mut ending = Ending { disk: Some(&second), delete_replica: false };
    let told = said(control.unprotect(&machine, &ending));
    assert!(told.contains("is not connected, and lets it go when it comes"), "{told}");
    for delete_replica in [false, true] {
        ending.delete_replica = delete_replica;
        let told = said(control.unprotect(&machine, &ending));
        assert!(told.contains("it had ended here before"), "{told}");
        assert!(!told.contains("has let it go"), "{told}");
    }
    control.registry.stop();
}

/// The journal's entry of a frame that lets a disk go.
fn letting_go(generation: Generation, disk: DiskIndex) -> Vec<u8> {
    let mut builder = FrameBuilder::new(FrameLimits::default(), &FramePool::new(1));
    builder.push(Record::DiskRemoved { disk }, &[]).unwrap();
    let frame = builder.finish(&FrameMeta {
        machine: MACHINE,
        generation,
        incarnation: Incarnation(1),
        role_epoch: RoleEpoch(0),
        first: Sequence(1),
        previous: Sequence(0),
        earliest: WallTime(1),
        latest: WallTime(1),
        ends_at_write_boundary: true,
    });
    let sealed = frame.seal(&FrameKey::new([1; 32]), &mut SealBuffers::default());
    let mut entry = vec![0; entry_length(sealed.bytes().len())];
    entry[ENTRY_HEADER_SIZE..][..sealed.bytes().len()].copy_from_slice(sealed.bytes());
    entry
}

/// The agent's word is in the journal, and no sync has followed: a power cut would take it back.
#[test]
fn what_is_not_durable_was_not_said_by_the_agent() {
    let data = tempfile::tempdir().unwrap();
    let control = target(data.path());
    let machine = protect(&control, MACHINE, "web");
    let mut entry = letting_go(machine.store.status().generation, DiskIndex(1));
    let appended = machine.store.append(&mut [&mut entry]);
    assert!(appended.stopped.is_none(), "{:?}", appended.stopped);
    let second: Name = "second".parse().unwrap();
    let ending = Ending { disk: Some(&second), delete_replica: false };
    let told = said(control.unprotect(&machine, &ending));
    assert!(told.contains("lets it go when it comes"), "{told}");
    machine.store.commit().unwrap();
    let told = said(control.unprotect(&machine, &ending));
    assert!(told.contains("had let it go before"), "{told}");
    control.registry.stop();
}

#[test]
fn a_word_that_does_not_count_is_not_told_as_if_it_did() {
    let data = tempfile::tempdir().unwrap();
    let control = target(data.path());
    let machine = protect(&control, MACHINE, "web");
    let end = PauseWord { said_at: WallTime(u64::MAX), paused: true };
    machine.store.pause(end).unwrap();
    let told = said(control.pause(&machine, false));
    assert!(told.contains("web: paused by a later word"), "{told}");
    control.registry.stop();
}

#[test]
fn a_removal_that_cannot_be_finished_keeps_nobody_else_out() {
    let data = tempfile::tempdir().unwrap();
    let control = target(data.path());
    protect(&control, MACHINE, "web").store.begin_removal().unwrap();
    control.registry.stop();
    drop(control);
    let journal = data.path().join(format!("machines/{MACHINE}/journal"));
    std::fs::remove_dir_all(&journal).unwrap();
    std::fs::write(&journal, "no directory").unwrap();
    let control = target(data.path());
    finish_removals(&control.registry, &control.site, &control.audit);
    let audited = std::fs::read_to_string(data.path().join("audit.jsonl")).unwrap();
    assert!(audited.contains("\"failed\"") && audited.contains("is not finished"), "{audited}");
    protect(&control, OTHER, "db");
    // It would be made anew upon what is left of it.
    control.registry.protect(MACHINE, &"web".parse().unwrap()).unwrap();
    assert!(control.registry.get(MACHINE).is_none());
    let made = control.registry.store().create_machine(MACHINE, "web", now());
    assert!(matches!(made, Err(StoreError::RemovalUnfinished(MACHINE))));
    control.registry.stop();
    drop(control);
    std::fs::remove_file(&journal).unwrap();
    let control = target(data.path());
    finish_removals(&control.registry, &control.site, &control.audit);
    assert!(control.registry.store().removing().is_empty());
    control.registry.stop();
}
