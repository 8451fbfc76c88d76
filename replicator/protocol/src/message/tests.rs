//! The bytes of the first message are frozen, and hostile bytes are errors.

use super::*;
use proptest::prelude::*;

fn hello() -> Hello {
    Hello {
        protocol_version: PROTOCOL_VERSION,
        machine: MachineId([0x11; 16]),
        generation: Some(Generation([0x22; 16])),
        run: RunId([0x33; 16]),
        held: Some(Incarnation(3)),
        last_incarnation: Some(Incarnation(3)),
        role_epoch: RoleEpoch(1),
        acknowledged: Sequence(300),
        resync: None,
        disks: vec![DiskDescription {
            index: DiskIndex(0),
            name: "sda".parse().unwrap(),
            size_bytes: 1 << 30,
            logical_block_bytes: 512,
        }],
        agent_version: "0.1.0".into(),
        host_name: "db".into(),
    }
}

/// The hello is what two builds of different age show each other first: its bytes must never change
/// without a new protocol version.
#[test]
fn golden_hello() {
    let bytes = encode(&AgentMessage::Hello(Box::new(hello()))).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let machine = "11".repeat(16);
    let generation = "22".repeat(16);
    let run = "33".repeat(16);
    let expected = [
        "55000000",                   // length
        "00",                         // variant: hello
        "03",                         // protocol version
        &format!("10{machine}"),      // 16 bytes
        &format!("0110{generation}"), // some
        &run,                         // fixed array
        "0103",                       // held
        "0103",                       // last incarnation
        "01",                         // role epoch
        "fb2c01",                     // acknowledged: 300
        "00",                         // no resync
        "01",                         // one disk
        "00",                         // index
        "03736461",                   // sda
        "fc00000040",                 // 1 GiB
        "fb0002",                     // 512
        "05302e312e30",               // 0.1.0
        "026462",                     // db
    ];
    assert_eq!(hex, expected.concat());
}

#[test]
fn messages_come_back() {
    let message = AgentMessage::Hello(Box::new(hello()));
    let bytes = encode(&message).unwrap();
    let length = body_length(bytes[..LENGTH_BYTES].try_into().unwrap()).unwrap();
    assert_eq!(length, bytes.len() - LENGTH_BYTES);
    assert_eq!(decode::<AgentMessage>(&bytes[LENGTH_BYTES..]).unwrap(), message);
}

#[test]
fn a_full_page_of_points_fits() {
    let point = PointSummary {
        point: PointId([0xff; 16]),
        taken_at: WallTime(u64::MAX),
        application_consistent: true,
        label: "x".repeat(POINT_LABEL_LIMIT),
        sequence: Sequence(u64::MAX),
        disks: DiskSet(u64::MAX),
        complete: true,
        proven: true,
        harmed: DiskSet(u64::MAX),
        waits: true,
        suspect: Some("x".repeat(250)),
    };
    let points = vec![point; POINTS_PER_MESSAGE];
    let message = TargetMessage::Points { request: RequestId(u64::MAX), points, more: true };
    let bytes = encode(&message).unwrap();
    assert_eq!(decode::<TargetMessage>(&bytes[LENGTH_BYTES..]).unwrap(), message);
}

#[test]
fn a_standstill_of_every_disk_fits() {
    let disk = |index| DiskStandstill { index: DiskIndex(index), reason: "x".repeat(TEXT_LIMIT) };
    let message = TargetMessage::Standstill { disks: (0..DiskIndex::LIMIT).map(disk).collect() };
    let bytes = encode(&message).unwrap();
    assert_eq!(decode::<TargetMessage>(&bytes[LENGTH_BYTES..]).unwrap(), message);
}

#[test]
fn too_long_is_refused_by_its_length_alone() {
    let limit = u32::try_from(MESSAGE_LIMIT).unwrap();
    assert_eq!(body_length(limit.to_le_bytes()).unwrap(), MESSAGE_LIMIT);
    assert!(matches!(
        body_length((limit + 1).to_le_bytes()),
        Err(MessageError::TooLong { length }) if length == MESSAGE_LIMIT + 1
    ));
    let message = AgentMessage::Goodbye { reason: "x".repeat(MESSAGE_LIMIT) };
    assert!(encode(&message).is_err());
}

#[test]
fn text_is_cut_between_characters() {
    let text = "ä".repeat(TEXT_LIMIT);
    assert_eq!(bounded_text(&text).len(), TEXT_LIMIT);
    let text = format!("x{text}");
    assert_eq!(bounded_text(&text).len(), TEXT_LIMIT - 1);
    assert_eq!(bounded_text("short"), "short");
}

#[test]
fn a_bad_name_does_not_get_in() {
    let good = encode(&AgentMessage::Hello(Box::new(hello()))).unwrap();
    let place = good.windows(3).position(|three| three == b"sda").unwrap();
    let mut bad = good.clone();
    bad[place] = b'/';
    assert!(decode::<AgentMessage>(&good[LENGTH_BYTES..]).is_ok());
    assert!(decode::<AgentMessage>(&bad[LENGTH_BYTES..]).is_err());
}

proptest! {
    /// Cut or garbled messages are errors or other messages, never a panic.
    #[test]
    fn hostile_bytes(cut in 0usize..120, at in 0usize..120, value: u8) {
        let good = encode(&AgentMessage::Hello(Box::new(hello()))).unwrap();
        let mut body = good[LENGTH_BYTES..].to_vec();
        body.truncate(cut);
        let whole = body.len() + LENGTH_BYTES == good.len();
        prop_assert_eq!(decode::<AgentMessage>(&body).is_ok(), whole);
        let place = at % body.len().max(1);
        if let Some(byte) = body.get_mut(place) {
            *byte = value;
        }
        if let Ok(other) = decode::<AgentMessage>(&body) {
            prop_assert!(encode(&other).is_ok());
        }
    }
}
