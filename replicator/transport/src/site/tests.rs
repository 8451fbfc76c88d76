//! Tokens are good once, whatever happens when; and every refusal has its own reason.

use super::*;
use std::os::unix::fs::PermissionsExt;

fn request(token: &Token, key: &str) -> EnrolRequest {
    EnrolRequest {
        protocol_version: redoubt_protocol::PROTOCOL_VERSION,
        token_id: token.id,
        secret: token.secret,
        certificate_request: certificate::request(key).unwrap(),
        host_name: "DB-1.example.org".into(),
    }
}

fn refused(site: &Site, request: &EnrolRequest) -> EnrolRefusalCode {
    site.enrol(request).unwrap().err().unwrap().code
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_token_is_good_for_one_key_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::open_or_create(directory.path()).unwrap();
    // The token is made beside the running target.
    let token = Site::open(directory.path()).unwrap().invite("t:1", None, HOUR).unwrap();
    let key = certificate::new_machine_key().unwrap();
    let first = site.enrol(&request(&token, &key)).unwrap().ok().unwrap();
    let again = site.enrol(&request(&token, &key)).unwrap().ok().unwrap();
    assert_eq!(first.machine, again.machine);
    assert_eq!(first.frame_key, again.frame_key);
    assert_eq!(first.name.as_str(), "db-1");
    let other = certificate::new_machine_key().unwrap();
    assert_eq!(refused(&site, &request(&token, &other)), EnrolRefusalCode::Used);
    let reopened = Site::open_or_create(directory.path()).unwrap();
    assert_eq!(refused(&reopened, &request(&token, &other)), EnrolRefusalCode::Used);
    let machines = reopened.machines().unwrap();
    assert_eq!(machines.len(), 1);
    assert_eq!(machines[0], first.machine);
}

#[test]
fn two_machines_race_for_one_token() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::open_or_create(directory.path()).unwrap();
    let token = site.invite("t:1", Some("db".parse().unwrap()), HOUR).unwrap();
    let requests: Vec<_> =
        (0..8).map(|_| request(&token, &certificate::new_machine_key().unwrap())).collect();
    let site = &site;
    let taken: usize = std::thread::scope(|scope| {
        let tries: Vec<_> = requests
            .iter()
            .map(|request| scope.spawn(move || site.enrol(request).unwrap().is_ok()))
            .collect();
        tries.into_iter().map(|one| usize::from(one.join().unwrap())).sum()
    });
    assert_eq!(taken, 1);
    assert_eq!(site.machines().unwrap().len(), 1);
}

#[test]
fn a_name_is_given_once_and_refusing_it_spends_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::open_or_create(directory.path()).unwrap();
    // Made while the name was free, as the second: the target decides when a machine comes.
    let named = site.invite("t:1", Some("db-1".parse().unwrap()), HOUR).unwrap();
    let first = site.invite("t:1", None, HOUR).unwrap();
    let first_key = certificate::new_machine_key().unwrap();
    let joined = site.enrol(&request(&first, &first_key)).unwrap().ok().unwrap();
    let listed = || {
        let mut all: Vec<_> = ["tokens", "machines"]
            .iter()
            .flat_map(|part| fs::read_dir(directory.path().join(part)).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect();
        all.sort();
        all
    };
    let by_host_name = site.invite("t:1", None, HOUR).unwrap();
    let before = listed();
    let key = certificate::new_machine_key().unwrap();
    for token in [&named, &by_host_name] {
        let refusal = site.enrol(&request(token, &key)).unwrap().err().unwrap();
        assert_eq!(refusal.code, EnrolRefusalCode::NameTaken);
        assert!(refusal.text.contains("db-1"), "{}", refusal.text);
        assert!(refusal.text.contains("redoubt invite --machine OTHER"), "{}", refusal.text);
        // A stranger who found the token's number only does not learn who is here.
        let mut guessed = request(token, &key);
        guessed.secret[0] ^= 1;
        assert_eq!(refused(&site, &guessed), EnrolRefusalCode::WrongSecret);
    }
    assert_eq!(listed(), before);
    let error = site.invite("t:1", Some("db-1".parse().unwrap()), HOUR).err().unwrap();
    assert!(matches!(error, TransportError::NameTaken { .. }), "{error}");
    assert_eq!(listed(), before);
    // The first may ask again, and both tokens are still good.
    let again = site.enrol(&request(&first, &first_key)).unwrap().ok().unwrap();
    assert_eq!(again.machine, joined.machine);
    let mut renamed = request(&by_host_name, &key);
    renamed.host_name = "db-2".into();
    assert_eq!(site.enrol(&renamed).unwrap().ok().unwrap().name.as_str(), "db-2");
    site.remove_machine(joined.machine).unwrap();
    assert_eq!(site.enrol(&request(&named, &key)).unwrap().ok().unwrap().name.as_str(), "db-1");
}

#[test]
fn machines_race_for_one_name() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::open_or_create(directory.path()).unwrap();
    let requests: Vec<_> = (0..8)
        .map(|_| site.invite("t:1", None, HOUR).unwrap())
        .map(|token| request(&token, &certificate::new_machine_key().unwrap()))
        .collect();
    let answers: Vec<_> = std::thread::scope(|scope| {
        let tries: Vec<_> =
            requests.iter().map(|request| scope.spawn(|| site.enrol(request).unwrap())).collect();
        tries.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    let refusals = answers.iter().filter_map(|answer| answer.as_ref().err());
    assert!(refusals.into_iter().all(|refusal| refusal.code == EnrolRefusalCode::NameTaken));
    assert_eq!(site.machines().unwrap().len(), 1);
}

#[test]
fn every_refusal_has_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::open_or_create(directory.path()).unwrap();
    let key = certificate::new_machine_key().unwrap();
    let expired = site.invite("t:1", None, Duration::ZERO).unwrap();
    assert_eq!(refused(&site, &request(&expired, &key)), EnrolRefusalCode::Expired);
    let token = site.invite("t:1", None, HOUR).unwrap();
    let mut wrong = request(&token, &key);
    wrong.secret[0] ^= 1;
    assert_eq!(refused(&site, &wrong), EnrolRefusalCode::WrongSecret);
    let mut unknown = request(&token, &key);
    unknown.token_id[0] ^= 1;
    assert_eq!(refused(&site, &unknown), EnrolRefusalCode::Unknown);
    let mut malformed = request(&token, &key);
    malformed.certificate_request.truncate(40);
    assert_eq!(refused(&site, &malformed), EnrolRefusalCode::Malformed);
    let mut nameless = request(&token, &key);
    nameless.host_name = "-".into();
    assert_eq!(refused(&site, &nameless), EnrolRefusalCode::Malformed);
    // None of these used the token up.
    assert!(site.enrol(&request(&token, &key)).unwrap().is_ok());
}

#[test]
fn secrets_are_for_their_owner_only() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("site");
    let site = Site::open_or_create(&root).unwrap();
    site.invite("t:1", None, HOUR).unwrap();
    let mut waiting = vec![root];
    let mut files = 0;
    while let Some(path) = waiting.pop() {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", path.display());
        if path.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            files += 1;
        }
    }
    assert_eq!(files, 6);
}

/// A machine that joined, and the bytes of its record.
fn joined(site: &Site) -> (MachineId, Vec<u8>) {
    let token = site.invite("t:1", None, HOUR).unwrap();
    let key = certificate::new_machine_key().unwrap();
    let machine = site.enrol(&request(&token, &key)).unwrap().ok().unwrap().machine;
    (machine, fs::read(site.machine_path(machine)).unwrap())
}

#[test]
fn every_flipped_bit_of_a_record_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::open_or_create(directory.path()).unwrap();
    let (machine, record) = joined(&site);
    for bit in 0..record.len() * 8 {
        let mut flipped = record.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(site.machine_path(machine), &flipped).unwrap();
        let error = site.machine(machine).unwrap_err();
        assert!(matches!(error, TransportError::Damaged { .. }), "bit {bit}: {error}");
    }
    for length in 0..record.len() {
        fs::write(site.machine_path(machine), &record[..length]).unwrap();
        let error = site.machine(machine).unwrap_err();
        assert!(matches!(error, TransportError::Damaged { .. }), "{length} bytes: {error}");
    }
}

#[test]
fn older_records_are_read_and_later_ones_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::open_or_create(directory.path()).unwrap();
    let (machine, record) = joined(&site);
    let first = [&[1], &record[1..record.len() - CHECKSUM_BYTES]].concat();
    fs::write(site.machine_path(machine), first).unwrap();
    assert_eq!(site.machine(machine).unwrap().unwrap().name.as_str(), "db-1");
    fs::write(site.machine_path(machine), [9, 9, 9, 9, 9, 9]).unwrap();
    let error = site.machine(machine).unwrap_err();
    assert!(matches!(error, TransportError::NewerVersion { version: 9, .. }), "{error}");
}

#[test]
fn a_later_version_of_the_identity_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    Site::open_or_create(directory.path()).unwrap();
    fs::write(directory.path().join("identity/version"), "2\n").unwrap();
    let error = Site::open_or_create(directory.path()).err().unwrap();
    assert!(matches!(error, TransportError::NewerVersion { version: 2, .. }), "{error}");
}

#[test]
fn an_invitation_is_open_until_it_is_used_or_expires() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::open_or_create(directory.path()).unwrap();
    let (name, other): (Name, Name) = ("web-01".parse().unwrap(), "web-02".parse().unwrap());
    site.invite("t:1", Some(name.clone()), Duration::ZERO).unwrap();
    site.invite("t:1", None, HOUR).unwrap();
    assert!(!site.is_invited(&name).unwrap());
    let token = site.invite("t:1", Some(name.clone()), HOUR).unwrap();
    assert!(site.is_invited(&name).unwrap() && !site.is_invited(&other).unwrap());
    let key = certificate::new_machine_key().unwrap();
    site.enrol(&request(&token, &key)).unwrap().unwrap();
    assert!(!site.is_invited(&name).unwrap());
}

#[test]
fn who_was_shut_out_does_not_come_back_by_its_old_token() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::open_or_create(directory.path()).unwrap();
    let key = certificate::new_machine_key().unwrap();
    let token = site.invite("t:1", None, HOUR).unwrap();
    let machine = site.enrol(&request(&token, &key)).unwrap().unwrap().machine;
    for _ in 0..2 {
        site.remove_machine(machine).unwrap();
        assert_eq!(refused(&site, &request(&token, &key)), EnrolRefusalCode::Unknown);
        assert!(site.machine(machine).unwrap().is_none());
    }
}

#[test]
fn a_damaged_record_of_another_token_hinders_no_removal_and_lets_nobody_in() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::open_or_create(directory.path()).unwrap();
    let join = |name: &str| {
        let token = site.invite("t:1", Some(name.parse().unwrap()), HOUR).unwrap();
        let request = request(&token, &certificate::new_machine_key().unwrap());
        (site.enrol(&request).unwrap().ok().unwrap().machine, request)
    };
    let damage = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let (other, other_request) = join("other");
    damage(&site.token_path(&other_request.token_id, ".used"));
    let unused = site.invite("t:1", Some("unused".parse().unwrap()), HOUR).unwrap();
    damage(&site.token_path(&unused.id, ""));
    let (gone, gone_request) = join("gone");
    assert!(!site.is_invited(&"unused".parse().unwrap()).unwrap());
    site.invite("t:1", Some("later".parse().unwrap()), HOUR).unwrap();
    assert!(site.is_invited(&"later".parse().unwrap()).unwrap());
    site.remove_machine(gone).unwrap();
    assert_eq!(refused(&site, &gone_request), EnrolRefusalCode::Unknown);
    // Whose own record is damaged goes as well, and does not come back by it.
    site.remove_machine(other).unwrap();
    assert!(matches!(site.enrol(&other_request), Err(TransportError::Damaged { .. })));
    assert_eq!(site.machines().unwrap(), []);
}
