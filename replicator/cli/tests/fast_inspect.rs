//! `redoubt inspect` and the start of a target as a script sees them: exit statuses, JSON, text.
//! The stores are made by the library, the targets are real processes; nothing needs root.
#![cfg(feature = "target")]

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redoubt_control::Inspection;
use redoubt_control::inspection::{SegmentTail, Verdict};
use redoubt_engine::directory::DirectoryStorage;
use redoubt_engine::storage::{BlockFile, Open, Result, Storage, StorageError};
use redoubt_log::frame::{FrameBuilder, FrameKey, FrameLimits, FrameMeta, FramePool, SealBuffers};
use redoubt_log::segment::{ENTRY_HEADER_SIZE, entry_length};
use redoubt_log::{
    DiskIndex, DiskSet, Generation, Incarnation, MachineId, PointId, PointKind, Record, RoleEpoch,
    Sequence, WallTime,
};
use redoubt_master_target::store::{Admitted, DiskSpec, Store, StoreMachine, StoreOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::{fs, io};

const WEB: MachineId = MachineId([0x11; 16]);
const DB: MachineId = MachineId([0x22; 16]);
const DISK: DiskIndex = DiskIndex(0);
const SIZE: u64 = 1 << 20;
const BLOCK: u64 = 64 << 10;

/// A site: the directory of a target, and one for its socket.
struct Site {
    base: tempfile::TempDir,
}

impl Site {
    /// A target has run here once, and two machines have histories.
    fn with_machines() -> Self {
        let site = Self { base: tempfile::tempdir().expect("a directory") };
        site.start().stop();
        let store = site.store(|storage| Arc::new(storage));
        for (id, name) in [(WEB, "web-1"), (DB, "db-1")] {
            let mut machine = Machine::create(&store, id, name);
            for value in 1..6 {
                machine.send_point(value);
                machine.store.apply_next(WallTime(1)).expect("the point is applied");
            }
            machine.send_point(9);
        }
        site
    }

    fn data(&self) -> PathBuf {
        self.base.path().join("data")
    }

    fn store(&self, wrap: impl FnOnce(DirectoryStorage) -> Arc<dyn Storage>) -> Store {
        let options = StoreOptions { segment_bytes: 1 << 20, ..StoreOptions::default() };
        let storage = wrap(DirectoryStorage::new(self.data()));
        Store::open(storage, options, WallTime(1)).expect("the store opens")
    }

    fn machine(&self, id: MachineId) -> PathBuf {
        self.data().join(format!("machines/{id}"))
    }

    /// The only or first file of a machine's directory.
    fn file(&self, id: MachineId, directory: &str) -> PathBuf {
        let entries = fs::read_dir(self.machine(id).join(directory)).expect("a directory");
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a name").path()).collect();
        paths.sort();
        paths.remove(0)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_redoubt"));
        command.arg("--runtime-dir").arg(self.base.path().join("run")).args(words);
        command.env_remove("REDOUBT_LOG");
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("the command was built")
    }

    fn inspect(&self, flags: &[&str]) -> Output {
        let data = self.data();
        let words = [&["inspect", data.to_str().expect("UTF-8")], flags].concat();
        self.run(&words)
    }

    /// What it says in JSON, and its exit status.
    fn look(&self) -> (Inspection, Option<i32>) {
        let output = self.inspect(&["--json"]);
        let text = out(&output);
        let parsed = serde_json::from_str(text);
        (parsed.unwrap_or_else(|error| panic!("{error}: {text}{}", err(&output))), code(&output))
    }

    fn target(&self, data: &Path) -> Command {
        let mut command = self.command(&["master-target", "--listen", "127.0.0.1:0", "--data"]);
        command.arg(data);
        command
    }

    /// A target that serves.
    fn start(&self) -> Target {
        let mut command = self.target(&self.data());
        let log = fs::File::create(self.base.path().join("target.log")).expect("a log");
        let child = command.stdout(Stdio::piped()).stderr(log).spawn();
        let mut child = child.expect("the command was built");
        let mut line = String::new();
        let printed = child.stdout.take().expect("it was piped");
        let read = BufReader::new(printed).read_line(&mut line);
        let target = Target(child);
        assert!(read.is_ok() && line.starts_with("listening on "), "{line}{}", self.log());
        target
    }

    fn log(&self) -> String {
        fs::read_to_string(self.base.path().join("target.log")).expect("a log")
    }
}

/// A running target, killed with its owner.
struct Target(Child);

impl Target {
    fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a process id"));
        kill(pid, Signal::SIGTERM).expect("it is ours");
        assert!(self.0.wait().expect("it is ours").success());
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A machine whose agent the test plays.
struct Machine {
    store: StoreMachine,
    generation: Generation,
    last: u64,
    pool: FramePool,
}

impl Machine {
    fn create(store: &Store, id: MachineId, name: &str) -> Self {
        let store = store.create_machine(id, name, WallTime(1)).expect("it is new");
        Self::admit(store)
    }

    fn admit(store: StoreMachine) -> Self {
        let admitted = Admitted { incarnation: Incarnation(1), run: [1; 16] };
        let disk =
            DiskSpec { index: DISK, name: "sda".to_owned(), size: SIZE, logical_block_size: 512 };
        let hello = store.hello(admitted, false, &[disk]).expect("it is admitted");
        let (generation, last) = (hello.generation, hello.resume.0);
        Self { store, generation, last, pool: FramePool::new(2) }
    }

    /// A write of the first block, and a recovery point; durable when this returns.
    fn send_point(&mut self, value: u8) {
        let length = u32::try_from(BLOCK).expect("a block is small");
        let write = Record::Write { disk: DISK, offset: 0, length };
        let records = vec![(write, block(value)), Self::consistent(), Self::marker(value)];
        self.send(records, value);
    }

    fn consistent() -> (Record, Vec<u8>) {
        (Record::Consistent { disk: DISK }, Vec::new())
    }

    fn marker(value: u8) -> (Record, Vec<u8>) {
        let mut disks = DiskSet::default();
        disks.insert(DISK);
        let at = WallTime(1_700_000_000_000_000_000 + u64::from(value));
        let marker = Record::Marker {
            point: PointId::random(),
            kind: PointKind::CrashConsistent,
            at,
            proven: true,
            label: format!("number {value}"),
            disks,
        };
        (marker, Vec::new())
    }

    fn send(&mut self, records: Vec<(Record, Vec<u8>)>, value: u8) {
        let at = WallTime(1_700_000_000_000_000_000 + u64::from(value));
        let count = records.len() as u64;
        let mut builder = FrameBuilder::new(FrameLimits::default(), &self.pool);
        for (record, payload) in records {
            builder.push(record, &[&payload]).expect("it has room");
        }
        let frame = builder.finish(&FrameMeta {
            machine: self.store.id(),
            generation: self.generation,
            incarnation: Incarnation(1),
            role_epoch: RoleEpoch(0),
            first: Sequence(self.last + 1),
            previous: Sequence(self.last),
            earliest: at,
            latest: at,
            ends_at_write_boundary: true,
        });
        let sealed = frame.seal(&FrameKey::new([1; 32]), &mut SealBuffers::default());
        let bytes = sealed.bytes();
        let mut entry = vec![0; entry_length(bytes.len())];
        entry[ENTRY_HEADER_SIZE..ENTRY_HEADER_SIZE + bytes.len()].copy_from_slice(bytes);
        let appended = self.store.append(&mut [&mut entry]);
        assert!(appended.stopped.is_none(), "{:?}", appended.stopped);
        self.last += count;
        assert_eq!(self.store.commit().expect("it is durable"), Sequence(self.last));
    }
}

/// A block that does not compress, so that every byte of it stands in the files.
fn block(value: u8) -> Vec<u8> {
    let mut state = u32::from(value);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..BLOCK).map(|_| next()).collect()
}

/// A storage that does not open replica disks for writing: an apply ends half done.
struct NoReplicas(DirectoryStorage);

impl Storage for NoReplicas {
    fn open(&self, path: &Path, how: Open) -> Result<Arc<dyn BlockFile>> {
        if how == Open::ReadWrite && path.to_string_lossy().contains("/disks/") {
            let source = io::Error::other("the test's own failure");
            let (path, operation) = (path.to_owned(), "open".to_owned());
            return Err(StorageError { path, operation, source });
        }
        self.0.open(path, how)
    }
    fn create_directory(&self, path: &Path) -> Result<()> {
        self.0.create_directory(path)
    }
    fn list(&self, path: &Path) -> Result<Vec<String>> {
        self.0.list(path)
    }
    fn remove(&self, path: &Path) -> Result<()> {
        self.0.remove(path)
    }
    fn remove_tree(&self, path: &Path) -> Result<()> {
        self.0.remove_tree(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.0.rename(from, to)
    }
    fn sync_directory(&self, path: &Path) -> Result<()> {
        self.0.sync_directory(path)
    }
    fn load(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        self.0.load(path)
    }
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.0.replace(path, bytes)
    }
    fn free_space(&self) -> Result<u64> {
        self.0.free_space()
    }
}

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn flip(path: &Path, byte: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("a file");
    let mut at = [0];
    file.read_exact_at(&mut at, byte).expect("it is that long");
    file.write_all_at(&[at[0] ^ 0x10], byte).expect("it is writable");
}

/// Every file below, with its content and the time of its last change.
fn snapshot(directory: &Path) -> Vec<(PathBuf, i64, i64, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("a name").path();
        let meta = fs::metadata(&path).expect("it is there");
        if meta.is_dir() {
            files.extend(snapshot(&path));
            files.push((path, meta.mtime(), meta.mtime_nsec(), Vec::new()));
        } else {
            let bytes = fs::read(&path).expect("it is readable");
            files.push((path, meta.ctime(), meta.ctime_nsec(), bytes));
        }
    }
    files.sort();
    files
}

#[test]
fn a_whole_directory_is_exit_status_0_and_is_not_touched() {
    let site = Site::with_machines();
    let before = snapshot(&site.data());
    let (seen, status) = site.look();
    assert_eq!((status, seen.verdict, seen.running), (Some(0), Verdict::Unharmed, false));
    assert!(seen.damage.is_empty() && seen.leftovers.is_empty() && seen.checked_bytes > 5 * BLOCK);
    let identity = seen.site.expect("a target has run here");
    assert!(identity.fingerprint.is_some_and(|print| print.len() == 64));
    assert!(identity.address.is_some_and(|address| address.starts_with("127.0.0.1:")));
    let [web, db] = &seen.machines[..] else { panic!("two machines") };
    assert_eq!((web.name.as_deref(), db.name.as_deref()), (Some("web-1"), Some("db-1")));
    assert_eq!((web.points.len(), web.retention.len()), (5, 4));
    assert_eq!(web.points[4].label.as_deref(), Some("number 5"));
    assert_eq!((web.journal.waiting_points, web.disks[0].size_bytes), (1, SIZE));
    assert_eq!(web.disks[0].replica_path, site.machine(WEB).join("disks/0"));
    assert_eq!(web.disks[0].last_point, Some(web.points[4].id));
    assert_eq!(fs::read(&web.disks[0].replica_path).expect("it")[..block(5).len()], block(5));
    let output = site.inspect(&[]);
    assert_eq!(code(&output), Some(0), "{}", err(&output));
    for word in ["web-1", "db-1", "unharmed", "at its point", "number 3", "every checksum is right"]
    {
        assert!(out(&output).contains(word), "{word} in {}", out(&output));
    }
    assert!(!out(&output).contains("DAMAGED"));
    assert!(snapshot(&site.data()) == before, "an inspection writes nothing");
}

#[test]
fn damage_is_exit_status_3_and_says_what_is_unharmed() {
    let site = Site::with_machines();
    let retention = site.file(WEB, "retention");
    flip(&retention, 4096 + 77);
    let (seen, status) = site.look();
    assert_eq!((status, seen.verdict), (Some(3), Verdict::Damaged));
    let [found] = &seen.damage[..] else { panic!("{:?}", seen.damage) };
    assert_eq!((found.path.as_path(), found.byte), (retention.as_path(), 4096));
    assert_eq!((&found.disks[..], found.machine), (&["sda".to_owned()][..], Some(WEB.into())));
    let [web, db] = &seen.machines[..] else { panic!("two machines") };
    // The block is written before each point: only the oldest reads this file's content.
    assert_eq!(
        found.points.map(|points| (points.oldest, points.count)),
        Some((web.points[0].id, 1))
    );
    let harmed = web.points.iter().filter(|point| !point.harmed_disks.is_empty());
    assert_eq!(harmed.map(|point| point.id).collect::<Vec<_>>(), [web.points[0].id]);
    assert!(!web.unharmed && db.unharmed);
    let output = site.inspect(&[]);
    assert_eq!(code(&output), Some(3));
    for word in
        ["byte 4096", "checksum", "points: 1,", "DAMAGED: sda", "db-1: everything", "4 of 5"]
    {
        assert!(out(&output).contains(word), "{word} in {}", out(&output));
    }
    flip(&retention, 4096 + 77);
    for (path, byte) in [
        (site.machine(WEB).join("manifest"), 300),
        (site.file(WEB, "journal"), 5000),
        (site.data().join("site/identity/authority.cert.pem"), 200),
        (site.data().join("site/identity/server.key.pem"), 100),
    ] {
        flip(&path, byte);
        let (seen, status) = site.look();
        assert_eq!(status, Some(3), "{}", path.display());
        assert!(seen.damage.iter().all(|found| !found.means.is_empty()));
        assert!(seen.damage.iter().any(|found| found.path == path), "{}", path.display());
        flip(&path, byte);
    }
    assert_eq!(site.look().1, Some(0));
}

#[test]
fn a_torn_tail_is_no_damage() {
    let site = Site::with_machines();
    let (seen, _) = site.look();
    let segment = seen.machines[0].journal.segments.last().expect("a segment");
    let file = fs::OpenOptions::new().write(true).open(&segment.path).expect("it");
    // As a cut leaves an entry that nobody was promised: some sectors of a later frame.
    file.write_all_at(&[0x5a; 512], segment.end_byte + 8192).expect("it has room");
    let (seen, status) = site.look();
    assert_eq!((status, seen.verdict), (Some(0), Verdict::Unharmed));
    let segment = seen.machines[0].journal.segments.last().expect("a segment");
    assert_eq!(segment.tail, SegmentTail::Torn);
}

#[test]
fn a_running_target_is_seen_and_not_disturbed() {
    let site = Site::with_machines();
    let target = site.start();
    for _ in 0..5 {
        let (seen, status) = site.look();
        assert!(seen.running);
        assert_eq!((status, seen.damage.len()), (Some(0), 0), "{:?}", seen.damage);
        assert_eq!(seen.machines.len(), 2);
    }
    assert!(out(&site.inspect(&[])).contains("a target runs on it"));
    let output = site.inspect(&["--finish"]);
    assert_eq!(code(&output), Some(1));
    assert!(err(&output).contains("finishes its applies itself"), "{}", err(&output));
    let second = site.target(&site.data()).output().expect("the command was built");
    assert_eq!(code(&second), Some(1));
    assert!(err(&second).contains("another master target runs"), "{}", err(&second));
    assert!(err(&second).contains("--data"), "{}", err(&second));
    target.stop();
    assert!(!site.look().0.running);
}

#[test]
fn a_half_done_apply_is_finished() {
    let site = Site::with_machines();
    let store = site.store(|storage| Arc::new(NoReplicas(storage)));
    let machine = store.machine(WEB).expect("it was made");
    machine.apply_next(WallTime(1)).expect_err("it ends half done");
    drop((machine, store));
    let (seen, status) = site.look();
    assert_eq!(status, Some(0));
    let web = &seen.machines[0];
    assert!(web.disks[0].mid_apply && web.log.as_ref().is_some_and(|log| log.applying.is_some()));
    let output = site.inspect(&[]);
    assert!(out(&output).contains("was cut") && out(&output).contains("--finish"));
    let output = site.inspect(&["--finish"]);
    assert_eq!(code(&output), Some(0), "{}{}", out(&output), err(&output));
    assert!(out(&output).contains("web-1: finished the apply to 18, recovery point"));
    assert!(out(&output).contains("a raw disk at point"), "{}", out(&output));
    let replica = fs::read(site.machine(WEB).join("disks/0")).expect("it is there");
    assert!(replica[..block(9).len()] == block(9), "the replica is at the point");
    let output = site.inspect(&["--finish"]);
    assert_eq!(code(&output), Some(0));
    assert!(out(&output).contains("nothing to finish"));
    let output = site.inspect(&["--finish", "--json"]);
    let seen: Inspection = serde_json::from_str(out(&output)).expect("JSON");
    assert!(seen.finished.is_empty() && !seen.machines[0].disks[0].mid_apply);
    let audited = fs::read_to_string(site.data().join("audit.jsonl")).expect("it is there");
    let finishes: Vec<&str> =
        audited.lines().filter(|line| line.contains(r#""action":"finish""#)).collect();
    let [first, second, third] = finishes[..] else { panic!("one line an order: {audited}") };
    assert!(first.contains("web-1") && first.contains("the apply to 18"), "{first}");
    assert!(second.contains("nothing was half done") && third.contains("nothing was half done"));
}

#[test]
fn memory_does_not_grow_with_the_store() {
    const MEBIBYTE: usize = 1 << 20;
    let site = Site { base: tempfile::tempdir().expect("a directory") };
    let options = StoreOptions { segment_bytes: 64 << 20, ..StoreOptions::default() };
    let storage: Arc<dyn Storage> = Arc::new(DirectoryStorage::new(site.data()));
    let store = Store::open(storage, options, WallTime(1)).expect("the store opens");
    let mut machine = Machine::create(&store, WEB, "web-1");
    for value in 0..160 {
        let length = u32::try_from(MEBIBYTE).expect("it is small");
        let write = Record::Write { disk: DISK, offset: 0, length };
        machine.send(vec![(write, block(value).repeat(16))], value);
        if value % 4 == 0 {
            machine.send(vec![Machine::consistent(), Machine::marker(value)], value);
            machine.store.apply_next(WallTime(1)).expect("the point is applied");
        }
    }
    drop((machine, store));
    let (seen, status) = site.look();
    // The site was never made: its identity is missing, and nothing else.
    assert_eq!((status, seen.damage.len()), (Some(3), 1), "{:?}", seen.damage);
    assert!(seen.machines[0].unharmed && seen.checked_bytes > 190 * MEBIBYTE as u64);
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the kernel counts");
    let peak = usize::try_from(usage.max_rss()).expect("it is positive") * 1024;
    assert!(peak < 48 * MEBIBYTE, "{peak} bytes at the peak");
}

#[test]
fn what_is_no_targets_directory_is_exit_status_1() {
    let site = Site::with_machines();
    let base = site.base.path();
    fs::create_dir(base.join("empty")).expect("it is new");
    let (file, machine) = (site.machine(WEB).join("manifest"), site.machine(WEB));
    for (path, reason) in [
        (base.join("none"), "no such directory"),
        (base.join("empty"), "neither site/ nor machines/"),
        (site.data().join("site"), "neither site/ nor machines/"),
        (machine, "neither site/ nor machines/"),
        (file, "no directory"),
    ] {
        for flags in [&[][..], &["--finish"]] {
            let words = [&["inspect", path.to_str().expect("UTF-8")], flags].concat();
            let output = site.run(&words);
            assert_eq!((code(&output), out(&output)), (Some(1), ""));
            let said = err(&output);
            assert!(said.contains(reason) && said.contains("--data"), "{said}");
        }
    }
    assert_eq!(code(&site.run(&["inspect"])), Some(2));
}

#[test]
fn a_later_version_is_exit_status_1_and_a_target_names_it() {
    let site = Site::with_machines();
    let path = site.machine(WEB).join("manifest");
    let text = fs::read_to_string(&path).expect("it is text");
    let (_, body) = text.split_once('\n').expect("a header line");
    // Its body is not one that this version knows.
    fs::write(&path, format!("redoubt-manifest 9 00000000\n{body}")).expect("it is writable");
    let output = site.inspect(&["--json"]);
    assert_eq!(code(&output), Some(1));
    let seen: Inspection = serde_json::from_str(out(&output)).expect("JSON");
    assert_eq!((seen.verdict, seen.damage.len()), (Verdict::NewerVersion, 0));
    assert_eq!((seen.newer[0].path.as_path(), seen.newer[0].version), (path.as_path(), 9));
    assert!(seen.machines[1].unharmed);
    let output = site.inspect(&[]);
    assert!(out(&output).contains("has version 9") && out(&output).contains("use a newer one"));
    // The other machine is served.
    site.start().stop();
    let log = site.log();
    assert!(log.contains("has format version 9") && log.contains("use a newer one"), "{log}");
    let version = site.data().join("site/identity/version");
    fs::write(version, "2\n").expect("it is writable");
    let output = site.target(&site.data()).output().expect("the command was built");
    assert_eq!(code(&output), Some(1));
    assert!(err(&output).contains("use a newer redoubt"), "{}", err(&output));
}

#[test]
fn a_damaged_record_of_one_machine_keeps_no_target_from_starting() {
    let site = Site::with_machines();
    let record = site.data().join(format!("site/machines/{WEB}"));
    fs::write(&record, [2; 60]).expect("it is writable");
    site.start().stop();
    assert!(site.log().contains("this machine cannot connect"), "{}", site.log());
    let (seen, status) = site.look();
    let [found] = &seen.damage[..] else { panic!("{:?}", seen.damage) };
    assert_eq!((status, found.path.as_path()), (Some(3), record.as_path()));
    assert!(found.means.contains("its store and its points are not touched"), "{}", found.means);
    assert!(seen.machines.iter().all(|machine| machine.unharmed));
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let site = Site { base: tempfile::tempdir().expect("a directory") };
    fs::write(site.base.path().join("file"), "").expect("a file");
    // Not even root makes directories there.
    for data in ["/sys/redoubt", site.base.path().join("file/data").to_str().expect("UTF-8")] {
        let output = site.target(Path::new(data)).output().expect("the command was built");
        assert_eq!(code(&output), Some(1));
        let said = err(&output);
        assert!(said.contains(data) && said.contains("cannot be made or used"), "{said}");
    }
}
