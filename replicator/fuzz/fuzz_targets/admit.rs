//! A hostile agent's hellos and frames, at a target that knows anything of its machine: any answer
//! but a panic, and nobody is admitted, nor any frame taken, under a number that no log can have.
#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use redoubt_log::{DiskIndex, Generation, Incarnation, MachineId, RoleEpoch, Sequence};
use redoubt_protocol::message::{DiskDescription, Hello, PROTOCOL_VERSION, RunId, Welcome};
use redoubt_protocol::{
    AgentMessage, ConnectionId, FramePlace, PauseWord, TargetAction, TargetEvent, TargetPast,
    TargetSession,
};

const MACHINE: MachineId = MachineId([7; 16]);

/// A number that mostly lies at one of the ends, where adding and shifting break.
fn number(input: &mut Unstructured<'_>) -> Result<u64> {
    let near = u64::from(input.arbitrary::<u8>()?);
    Ok(match input.int_in_range(0..=4_u8)? {
        0 => near,
        1 => u64::MAX - near,
        2 => (1 << 24) - 128 + near,
        3 => ((1 << 24) - 128 + near) << 40,
        _ => input.arbitrary()?,
    })
}

fn maybe<T>(input: &mut Unstructured<'_>, of: impl Fn(u64) -> T) -> Result<Option<T>> {
    Ok(if input.arbitrary()? { Some(of(number(input)?)) } else { None })
}

/// One of two, so that what is told is often what is known.
fn bytes(input: &mut Unstructured<'_>) -> Result<[u8; 16]> {
    Ok([input.int_in_range(1..=2_u8)?; 16])
}

fn disk(input: &mut Unstructured<'_>) -> Result<DiskDescription> {
    let name = format!("d{}", input.int_in_range(0..=3_u8)?);
    Ok(DiskDescription {
        index: DiskIndex(input.arbitrary()?),
        name: name.parse().expect("it is a name"),
        size_bytes: number(input)?,
        logical_block_bytes: *input.choose(&[512, 4096, 0, 1 << 31])?,
    })
}

fn hello(input: &mut Unstructured<'_>) -> Result<Hello> {
    let disks = input.int_in_range(0..=4_usize)?;
    Ok(Hello {
        protocol_version: PROTOCOL_VERSION,
        machine: MACHINE,
        generation: if input.arbitrary()? { Some(Generation(bytes(input)?)) } else { None },
        run: RunId(bytes(input)?),
        held: maybe(input, Incarnation)?,
        last_incarnation: maybe(input, Incarnation)?,
        role_epoch: RoleEpoch(0),
        acknowledged: Sequence(number(input)?),
        resync: None,
        disks: (0..disks).map(|_| disk(input)).collect::<Result<_>>()?,
        agent_version: String::new(),
        host_name: String::new(),
    })
}

fn place(input: &mut Unstructured<'_>, incarnation: Incarnation) -> Result<FramePlace> {
    Ok(FramePlace {
        machine: MACHINE,
        generation: Generation(bytes(input)?),
        incarnation,
        role_epoch: RoleEpoch(0),
        first: Sequence(number(input)?),
        last: Sequence(number(input)?),
        previous: Sequence(number(input)?),
        bytes: 1,
    })
}

fn welcome(incarnation: Incarnation, resume: Sequence) -> Welcome {
    Welcome {
        generation: Generation([1; 16]),
        incarnation,
        resume,
        role_epoch: RoleEpoch(0),
        point_interval_milliseconds: 0,
        window_frames: 4,
        disks: Vec::new(),
        resync: None,
        pause: PauseWord::default(),
        full: None,
    }
}

fn meet(input: &mut Unstructured<'_>) -> Result<()> {
    let past = TargetPast {
        generation: if input.arbitrary()? { Some(Generation([1; 16])) } else { None },
        incarnation: maybe(input, Incarnation)?,
        run: if input.arbitrary()? { Some(RunId(bytes(input)?)) } else { None },
        role_epoch: RoleEpoch(0),
    };
    // What an earlier release has stored of a hostile agent is among it.
    let durable = Sequence(number(input)?);
    let mut session = TargetSession::new(MACHINE, past, durable);
    for connection in 1..=input.int_in_range(1..=3_u64)? {
        let connection = ConnectionId(connection);
        let hello = AgentMessage::Hello(Box::new(hello(input)?));
        session.handle(TargetEvent::Arrived(connection));
        session.handle(TargetEvent::Received(connection, hello));
        let actions = session.handle(TargetEvent::Received(connection, AgentMessage::Confirmed));
        let Some(admission) = actions.into_iter().find_map(|action| match action {
            TargetAction::Fence(_, _, admission) => Some(admission),
            _ => None,
        }) else {
            continue;
        };
        let run = admission.incarnation;
        assert!(run < Incarnation::LIMIT, "run {run} has no numbers");
        session.handle(TargetEvent::Fenced(connection, welcome(run, durable)));
        for _ in 0..input.int_in_range(0..=4_u8)? {
            let place = place(input, run)?;
            for action in session.handle(TargetEvent::Frame(connection, place, ())) {
                let TargetAction::Append(place, ()) = action else { continue };
                assert!(place.last.run() <= run, "a number of a later run was taken");
                session.handle(TargetEvent::Durable(place.last));
            }
        }
    }
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    // An input that is too short to be a whole story has told what it could.
    let _ = meet(&mut Unstructured::new(bytes));
});
