//! Every change of what the status shows has one entry, and what only flickers has none.

use super::*;

fn disk() -> DiskSight {
    DiskSight {
        name: "sda".parse().unwrap(),
        state: DiskState::Streaming,
        reason: None,
        mode: Some(TrackerMode::Data),
        losses: 0,
        misses: 0,
        gaps: (0, String::new()),
        harm: None,
    }
}

fn machine(disk: DiskSight) -> MachineSight {
    MachineSight { name: "db".parse().unwrap(), sessions: 1, connected: true, disks: vec![disk] }
}

/// Looks long enough for what lasts.
fn settle(chronicle: &mut Chronicle, sight: &MachineSight, now: &mut Instant) -> Vec<String> {
    let mut told = Vec::new();
    for _ in 0..8 {
        *now += LOOK_EVERY;
        for entry in chronicle.look(std::slice::from_ref(sight), *now) {
            assert_eq!(entry.actor, None);
            let reason = entry.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
            told.push(format!("{} {} {}{reason}", entry.action, entry.object, entry.outcome));
        }
    }
    told
}

fn begun() -> (Chronicle, Instant) {
    let (mut chronicle, mut now) = (Chronicle::default(), Instant::now());
    let told = settle(&mut chronicle, &machine(disk()), &mut now);
    assert_eq!(told, ["session db online", "state db/sda streaming", "mode db/sda data"]);
    assert_eq!(settle(&mut chronicle, &machine(disk()), &mut now), [""; 0]);
    (chronicle, now)
}

#[test]
fn each_change_has_one_entry() {
    let paused = |why: &str| {
        let why = Some(why.to_owned());
        machine(DiskSight { state: DiskState::Paused, reason: why, ..disk() })
    };
    let of = |disk: DiskSight| machine(disk);
    let table: Vec<(MachineSight, &[&str])> = vec![
        (paused("by-operator"), &["state db/sda paused (by-operator)"]),
        (paused("target-full"), &["state db/sda paused (target-full)"]),
        (paused("unprotected"), &["state db/sda paused (unprotected)"]),
        (of(DiskSight { mode: Some(TrackerMode::Metadata), ..disk() }), &["mode db/sda metadata"]),
        (of(DiskSight { mode: Some(TrackerMode::Bitmap), ..disk() }), &["mode db/sda bitmap"]),
        (of(DiskSight { losses: 7, ..disk() }), &["losses db/sda 7"]),
        (of(DiskSight { misses: 2, ..disk() }), &["misses db/sda 2"]),
        (
            of(DiskSight { gaps: (1, "ring-overflow".into()), ..disk() }),
            &["gap db/sda 1 in this run (ring-overflow)"],
        ),
        (
            of(DiskSight { harm: Some("points-lost: x".into()), ..disk() }),
            &["harm db/sda found (points-lost: x)"],
        ),
        (of(DiskSight { mode: None, ..disk() }), &[]),
        (MachineSight { connected: false, ..machine(disk()) }, &["session db offline"]),
        (
            MachineSight { sessions: 2, ..machine(disk()) },
            &["session db offline", "session db online"],
        ),
        (
            MachineSight { sessions: 2, connected: false, ..machine(disk()) },
            &["session db offline", "session db online", "session db offline"],
        ),
    ];
    for (sight, expected) in table {
        let (mut chronicle, mut now) = begun();
        assert_eq!(settle(&mut chronicle, &sight, &mut now), expected, "{sight:?}");
        assert_eq!(settle(&mut chronicle, &sight, &mut now), [""; 0], "{sight:?}");
    }
}

#[test]
fn what_flickers_is_no_change_and_what_is_short_and_counted_is_one() {
    let (mut chronicle, mut now) = begun();
    for _ in 0..10 {
        now += LOOK_EVERY;
        let behind = DiskSight { state: DiskState::CatchUp, ..disk() };
        assert_eq!(chronicle.look(&[machine(behind)], now), []);
        now += LOOK_EVERY;
        assert_eq!(chronicle.look(&[machine(disk())], now), []);
    }
    // A count that rises all the time is told now and then, and its end in any case.
    let mut told = Vec::new();
    for losses in 1..=150 {
        now += LOOK_EVERY;
        told.extend(chronicle.look(&[machine(DiskSight { losses, ..disk() })], now));
    }
    let last = machine(DiskSight { losses: 150, ..disk() });
    now += COUNT_EVERY;
    told.extend(chronicle.look(std::slice::from_ref(&last), now));
    let outcomes: Vec<&str> = told.iter().map(|entry| entry.outcome.as_str()).collect();
    assert_eq!(outcomes, ["1", "101", "150"]);
    // Another reason is told at once.
    for (gaps, why) in [(1, "paused"), (2, "ring-overflow")] {
        let sight = machine(DiskSight { losses: 150, gaps: (gaps, why.into()), ..disk() });
        assert_eq!(chronicle.look(&[sight], now).len(), 1);
    }
    // The agent's next run counts from none.
    now += COUNT_EVERY;
    assert_eq!(chronicle.look(&[machine(disk())], now), []);
    assert_eq!(chronicle.look(&[machine(DiskSight { losses: 1, ..disk() })], now).len(), 1);
}

/// Its agent says another reason all the time, comes and goes, and loses ever more.
#[test]
fn a_machine_that_changes_all_the_time_does_not_fill_the_log() {
    let (mut chronicle, mut now) = begun();
    let (mut told, mut bytes) = (Vec::new(), 0);
    for round in 0..36_000_u64 {
        now += LOOK_EVERY;
        let reason = Some(format!("{} {}", round / 6, "x".repeat(190)));
        let disk = DiskSight { reason, losses: round, misses: round, ..disk() };
        let sight = MachineSight { sessions: 1 + round, ..machine(disk) };
        for entry in chronicle.look(&[sight], now) {
            bytes += serde_json::to_vec(&entry).unwrap().len();
            told.push(entry);
        }
    }
    // An hour of it: 256 at once and 360 more, a session's being two.
    assert!(told.len() <= 2 * (256 + 360) && bytes < 1 << 19, "{} of {bytes} bytes", told.len());
    // What stands at last is told all the same.
    now += LINE_EVERY * 8;
    let last = settle(&mut chronicle, &machine(disk()), &mut now);
    assert!(last.contains(&"state db/sda streaming".to_owned()), "{last:?}");
}

#[test]
fn who_is_gone_begins_anew() {
    let (mut chronicle, mut now) = begun();
    assert_eq!(chronicle.look(&[], now), []);
    let told = settle(&mut chronicle, &machine(disk()), &mut now);
    assert_eq!(told.len(), 3, "{told:?}");
}

#[test]
fn what_finds_no_room_is_written_later_and_at_the_end() {
    let base = tempfile::tempdir().unwrap();
    let directory = base.path().join("later");
    let log = AuditLog::new(&directory);
    let waiting = VecDeque::from([AuditEntry::now("session", "db", "online", None)]);
    let mut writer = Writer { log: log.clone(), waiting, has_failed: false };
    // Until the directory is there nothing can be written.
    assert!(!writer.write() && writer.waiting.len() == 1);
    let (seen, is_seen) = mpsc::channel();
    let see = move || {
        // The test may be over.
        let _ = seen.send(());
        vec![machine(disk())]
    };
    let chronicler = Chronicler::start(log, see).unwrap();
    is_seen.recv().unwrap();
    std::fs::create_dir(&directory).unwrap();
    assert!(writer.write() && writer.waiting.is_empty());
    drop(chronicler);
    let text = std::fs::read_to_string(directory.join("audit.jsonl")).unwrap();
    let online = text.lines().filter(|line| line.contains("online"));
    assert_eq!(online.count(), 2, "one of each: {text}");
}
