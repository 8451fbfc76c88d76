//! Who is admitted, who is refused and why, and what a misbehaving agent gets.

use super::*;
use crate::message::{DiskDescription, PROTOCOL_VERSION, RunId};
use crate::pause::PauseWord;
use redoubt_log::{DiskIndex, Generation, Incarnation, RoleEpoch};

const MACHINE: MachineId = MachineId([1; 16]);
const LOG: Generation = Generation([2; 16]);
const RUN: RunId = RunId([3; 16]);

fn past() -> TargetPast {
    let incarnation = Some(Incarnation(4));
    TargetPast { generation: Some(LOG), incarnation, run: Some(RUN), role_epoch: RoleEpoch(1) }
}

/// The run that holds the newest incarnation.
fn hello() -> Hello {
    Hello {
        protocol_version: PROTOCOL_VERSION,
        machine: MACHINE,
        generation: Some(LOG),
        run: RUN,
        held: Some(Incarnation(4)),
        last_incarnation: Some(Incarnation(4)),
        role_epoch: RoleEpoch(1),
        acknowledged: Sequence(90),
        resync: None,
        disks: Vec::new(),
        agent_version: String::new(),
        host_name: String::new(),
    }
}

fn admit(hello: &Hello) -> Result<Admission, RefusalCode> {
    past().admit(MACHINE, hello, Sequence(100)).map_err(|refusal| refusal.code)
}

fn incarnation_and_continuity(hello: &Hello) -> (u64, Continuity) {
    let admission = admit(hello).unwrap();
    (admission.incarnation.0, admission.continuity)
}

#[test]
fn a_run_keeps_its_incarnation_and_a_new_run_gets_the_next() {
    assert_eq!(incarnation_and_continuity(&hello()), (4, Continuity::Goes(LOG)));
    let fresh = Hello { run: RunId([9; 16]), held: None, ..hello() };
    assert_eq!(incarnation_and_continuity(&fresh), (5, Continuity::Goes(LOG)));
    let welcome_lost = Hello { held: None, ..hello() };
    assert_eq!(incarnation_and_continuity(&welcome_lost), (4, Continuity::Goes(LOG)));
}

#[test]
fn an_older_run_and_a_copied_run_are_fenced() {
    let older = Hello { run: RunId([9; 16]), held: Some(Incarnation(3)), ..hello() };
    assert_eq!(admit(&older), Err(RefusalCode::NewerIncarnation));
    let copied = Hello { run: RunId([9; 16]), ..hello() };
    assert_eq!(admit(&copied), Err(RefusalCode::NewerIncarnation));
}

#[test]
fn a_run_that_no_log_can_number_is_refused() {
    for number in [u64::MAX, u64::MAX - 1, 1 << 24, (1 << 24) - 1] {
        let claimed = Some(Incarnation(number));
        let held = Hello { held: claimed, ..hello() };
        let known = Hello { run: RunId([9; 16]), held: None, last_incarnation: claimed, ..hello() };
        for hello in [held, known] {
            assert_eq!(admit(&hello), Err(RefusalCode::Malformed), "{hello:?}");
        }
    }
    // Neither what a machine has told before nor its honest last run lets the numbers go on.
    for newest in [Incarnation(u64::MAX), Incarnation((1 << 24) - 2)] {
        let past = TargetPast { incarnation: Some(newest), ..past() };
        let next = Hello { run: RunId([9; 16]), held: None, ..hello() };
        let refused = past.admit(MACHINE, &next, Sequence(100)).unwrap_err();
        assert_eq!(refused.code, RefusalCode::Malformed);
        assert!(refused.text.contains("enrol it anew"), "{refused}");
    }
    let last = Incarnation((1 << 24) - 2);
    let past = TargetPast { incarnation: Some(last), ..past() };
    let same = Hello { held: Some(last), last_incarnation: Some(last), ..hello() };
    assert_eq!(past.admit(MACHINE, &same, Sequence(100)).unwrap().incarnation, last);
    let before =
        Hello { last_incarnation: Some(Incarnation((1 << 24) - 3)), held: None, ..hello() };
    let before = Hello { run: RunId([9; 16]), ..before };
    assert_eq!(incarnation_and_continuity(&before).0, last.0);
}

#[test]
fn continuity_is_lost_with_a_reason_whenever_it_is_not_proven() {
    let lost = [
        Hello { acknowledged: Sequence(101), ..hello() },
        Hello { generation: Some(Generation([8; 16])), ..hello() },
        Hello { generation: None, ..hello() },
        Hello { resync: Some("asked".into()), ..hello() },
        Hello { last_incarnation: Some(Incarnation(7)), ..hello() },
    ];
    for hello in lost {
        let (_, continuity) = incarnation_and_continuity(&hello);
        assert!(matches!(continuity, Continuity::Lost(_)), "{hello:?}");
    }
    let copied = Hello { run: RunId([9; 16]), held: None, ..hello() };
    let written_by = |run| {
        let durable = Sequence::first_of(Incarnation(run)).next();
        past().admit(MACHINE, &copied, durable).unwrap().continuity
    };
    assert!(matches!(written_by(5), Continuity::Lost(_)), "another run has written");
    assert_eq!(written_by(4), Continuity::Goes(LOG));
    let ahead = Hello { run: RunId([9; 16]), held: None, ..hello() };
    let ahead = Hello { last_incarnation: Some(Incarnation(7)), ..ahead };
    assert_eq!(incarnation_and_continuity(&ahead).0, 8, "no number is given twice");
}

#[test]
fn each_refusal_has_its_code() {
    let disk = |size_bytes, logical_block_bytes| DiskDescription {
        index: DiskIndex(0),
        name: "sda".parse().unwrap(),
        size_bytes,
        logical_block_bytes,
    };
    let cases = [
        (Hello { protocol_version: 99, ..hello() }, RefusalCode::ProtocolVersion),
        (Hello { machine: MachineId([5; 16]), ..hello() }, RefusalCode::ForeignMachine),
        (Hello { role_epoch: RoleEpoch(0), ..hello() }, RefusalCode::FencedRoleEpoch),
        (Hello { disks: vec![disk(100, 512)], ..hello() }, RefusalCode::Malformed),
        (Hello { disks: vec![disk(0, 512)], ..hello() }, RefusalCode::Malformed),
        (Hello { disks: vec![disk(4096, 1024)], ..hello() }, RefusalCode::Malformed),
        (Hello { disks: vec![disk((1 << 63) - 4096, 4096)], ..hello() }, RefusalCode::Malformed),
        (Hello { disks: vec![disk((1 << 50) + 512, 512)], ..hello() }, RefusalCode::Malformed),
        (Hello { disks: vec![disk(512, 512); 2], ..hello() }, RefusalCode::Malformed),
    ];
    for (hello, code) in cases {
        assert_eq!(admit(&hello), Err(code), "{hello:?}");
    }
}

/// A connection comes and says hello.
fn greet(
    session: &mut TargetSession<u32>,
    connection: ConnectionId,
    hello: Hello,
) -> Vec<TargetAction<u32>> {
    let mut actions = session.handle(TargetEvent::Arrived(connection));
    let hello = AgentMessage::Hello(Box::new(hello));
    actions.extend(session.handle(TargetEvent::Received(connection, hello)));
    actions
}

fn streaming() -> TargetSession<u32> {
    let mut session = TargetSession::new(MACHINE, past(), Sequence(100));
    let one = ConnectionId(1);
    greet(&mut session, one, hello());
    let actions = session.handle(TargetEvent::Received(one, AgentMessage::Confirmed));
    assert!(matches!(actions[..], [TargetAction::Fence(_, _, _)]));
    let welcome = Welcome {
        generation: LOG,
        incarnation: Incarnation(4),
        resume: Sequence(100),
        role_epoch: RoleEpoch(1),
        point_interval_milliseconds: 0,
        window_frames: 3,
        disks: Vec::new(),
        resync: None,
        pause: PauseWord::default(),
        full: None,
    };
    session.handle(TargetEvent::Fenced(one, welcome));
    assert_eq!(session.streaming(), Some(one));
    session
}

fn place(previous: u64, last: u64) -> FramePlace {
    FramePlace {
        machine: MACHINE,
        generation: LOG,
        incarnation: Incarnation(4),
        role_epoch: RoleEpoch(1),
        first: Sequence(previous + 1),
        last: Sequence(last),
        previous: Sequence(previous),
        bytes: 1,
    }
}

fn appended(session: &mut TargetSession<u32>, place: FramePlace) -> Vec<u64> {
    let actions = session.handle(TargetEvent::Frame(ConnectionId(1), place, 0));
    let lasts = actions.iter().filter_map(|action| match action {
        TargetAction::Append(place, _) => Some(place.last.0),
        _ => None,
    });
    lasts.collect()
}

#[test]
fn frames_are_put_in_order_and_taken_once() {
    let mut session = streaming();
    assert_eq!(appended(&mut session, place(110, 120)), []);
    assert_eq!(appended(&mut session, place(110, 120)), []);
    assert_eq!(appended(&mut session, place(90, 100)), []);
    assert_eq!(appended(&mut session, place(100, 110)), [110, 120]);
    assert_eq!(appended(&mut session, place(100, 110)), []);
    assert!(session.streaming().is_some());
}

#[test]
fn frames_that_may_not_be_sent_end_the_session() {
    let wrong = [
        FramePlace { machine: MachineId([5; 16]), ..place(100, 110) },
        FramePlace { generation: Generation([5; 16]), ..place(100, 110) },
        FramePlace { incarnation: Incarnation(3), ..place(100, 110) },
        FramePlace { role_epoch: RoleEpoch(0), ..place(100, 110) },
        place(95, 105),
        FramePlace { last: Sequence(0), ..place(100, 110) },
        FramePlace { last: Sequence(u64::MAX), ..place(100, 110) },
        FramePlace { last: Sequence::first_of(Incarnation(5)), ..place(100, 110) },
    ];
    for place in wrong {
        let mut session = streaming();
        assert_eq!(appended(&mut session, place), []);
        assert_eq!(session.streaming(), None, "{place:?}");
    }
}

#[test]
fn the_window_bounds_what_is_held_until_it_is_durable() {
    let mut session = streaming();
    for at in 0..3 {
        assert_eq!(appended(&mut session, place(100 + at, 101 + at)).len(), 1);
    }
    session.handle(TargetEvent::Durable(Sequence(101)));
    assert_eq!(appended(&mut session, place(103, 104)).len(), 1);
    assert_eq!(appended(&mut session, place(104, 105)).len(), 0);
    assert_eq!(session.streaming(), None, "a fourth frame was sent into a window of three");
}

#[test]
fn a_hello_that_nobody_confirms_disturbs_nobody() {
    let mut session = streaming();
    let dead = Hello { run: RunId([9; 16]), held: None, ..hello() };
    greet(&mut session, ConnectionId(2), dead);
    assert_eq!(appended(&mut session, place(100, 110)), [110]);
    let actions = session.handle(TargetEvent::Received(ConnectionId(2), AgentMessage::Confirmed));
    assert!(matches!(
        &actions[0],
        TargetAction::Send(ConnectionId(1), TargetMessage::Refused(refusal))
            if refusal.code == RefusalCode::NewerIncarnation
    ));
}

/// However many connections come and whatever each has said: what may be open are the session, one
/// that may follow it, and one that has just come.
#[test]
fn a_machine_has_three_connections_at_most() {
    let mut session = streaming();
    let mut open = std::collections::BTreeSet::from([ConnectionId(1)]);
    let mut note = |came: ConnectionId, actions: Vec<TargetAction<u32>>| {
        open.insert(came);
        for action in actions {
            if let TargetAction::Close(closed, _) = action {
                assert!(open.remove(&closed), "{closed:?} is closed twice");
            }
        }
        assert!(open.len() <= 3, "{open:?}");
        open.contains(&ConnectionId(1))
    };
    for number in 2..100 {
        let connection = ConnectionId(number);
        let stays = match number % 3 {
            0 => note(connection, session.handle(TargetEvent::Arrived(connection))),
            _ => note(connection, greet(&mut session, connection, hello())),
        };
        assert!(stays, "who only knocks does not end the session");
    }
    // One that was closed says hello all the same.
    let late = AgentMessage::Hello(Box::new(hello()));
    assert!(session.handle(TargetEvent::Received(ConnectionId(2), late)).is_empty());
    let actions = session.handle(TargetEvent::Received(ConnectionId(98), AgentMessage::Confirmed));
    assert!(!note(ConnectionId(98), actions), "who confirms takes the session's place");
}
