//! The audit log: every operator action and state change, one JSON line each, on disk before it is
//! reported. Only appended to, never rewritten; old files are dropped whole.

use crate::response::Response;
use crate::units::UtcTime;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// One file of the log: some forty thousand entries, which an editor still opens.
const FILE_LIMIT_BYTES: u64 = 8 << 20;
/// Full files kept beside the current one: months of a busy site, and 40 MiB at most.
const FULL_FILES_LIMIT: u32 = 4;

/// One thing that was done or happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AuditEntry {
    /// When.
    pub time: UtcTime,
    /// The user who asked; null where the role acted by itself.
    pub actor: Option<u32>,
    /// What: `mark`, `copy-out`, `invite`, `join`, `state`, …
    pub action: String,
    /// To what: a machine, a disk, a point.
    pub object: String,
    /// How it ended, or what the state is now.
    pub outcome: String,
    /// Why: a reason code or an error.
    pub reason: Option<String>,
}

impl AuditEntry {
    /// Of now, and of the role itself.
    pub fn now(action: &str, object: &str, outcome: &str, reason: Option<String>) -> Self {
        Self {
            time: UtcTime::now(),
            actor: None,
            action: action.to_owned(),
            object: object.to_owned(),
            outcome: outcome.to_owned(),
            reason,
        }
    }
}

/// The audit log cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("audit log {path} cannot be written: {source}")]
pub struct AuditError {
    path: PathBuf,
    source: io::Error,
}

/// A role's audit log: `audit.jsonl`, and `audit.jsonl.1` to `.4`, the newest first.
#[derive(Clone, Debug)]
pub struct AuditLog {
    path: PathBuf,
    file_limit_bytes: u64,
}

impl AuditLog {
    /// The log of a role that keeps its state in `directory`. A command may write to it beside the
    /// role.
    pub fn new(directory: &Path) -> Self {
        Self { path: directory.join("audit.jsonl"), file_limit_bytes: FILE_LIMIT_BYTES }
    }

    /// Writes down that something was done or has happened: who asked (`None`: nobody, or the other
    /// side), the action, its object, the outcome and its reason. Where that cannot be written the
    /// action stands, and the log on standard error says so.
    pub fn note(
        &self,
        actor: Option<u32>,
        action: &str,
        object: &str,
        outcome: &str,
        reason: Option<String>,
    ) {
        let entry = AuditEntry { actor, ..AuditEntry::now(action, object, outcome, reason) };
        if let Err(error) = self.append(&entry) {
            tracing::error!(%error, "an entry is missing from the audit log");
        }
    }

    /// Writes down, as [`Self::note`] does, how an order was answered.
    pub fn note_answer(&self, actor: Option<u32>, action: &str, object: &str, answer: &Response) {
        let (outcome, reason) = match answer {
            Response::Failed { message, .. } => ("failed", Some(message.clone())),
            Response::Verified { report } => (report.verdict(), Some(report.summary())),
            Response::Told { message } => ("done", Some(message.clone())),
            Response::Marked { marked } => ("done", marked.shortcoming()),
            _ => ("done", None),
        };
        self.note(actor, action, object, outcome, reason);
    }

    /// Appends an entry; it is durable when this returns.
    ///
    /// # Errors
    /// The file cannot be written or synced.
    pub fn append(&self, entry: &AuditEntry) -> Result<(), AuditError> {
        self.try_append(entry).map_err(|source| AuditError { path: self.path.clone(), source })
    }

    fn try_append(&self, entry: &AuditEntry) -> io::Result<()> {
        let mut text = serde_json::to_vec(entry)?;
        text.push(b'\n');
        let mut file = self.open()?;
        let mut length = file.metadata()?.len();
        if length >= self.file_limit_bytes {
            self.rotate()?;
            file = self.open()?;
            length = file.metadata()?.len();
        }
        if length > 0 && !ends_a_line(&mut file)? {
            // A crash cut the last entry: it must not swallow this one.
            text.insert(0, b'\n');
        }
        file.write_all(&text)?;
        file.sync_data()?;
        if length == 0 { self.sync_directory() } else { Ok(()) }
    }

    /// Opens the current file, locked: whoever waited for the lock may hold one that was just
    /// rotated away.
    fn open(&self) -> io::Result<Flock<File>> {
        loop {
            let mut options = OpenOptions::new();
            let file = options.create(true).read(true).append(true).mode(0o600).open(&self.path)?;
            let file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
            if is_same(&file, &self.path)? {
                return Ok(file);
            }
        }
    }

    fn rotate(&self) -> io::Result<()> {
        for number in (1..FULL_FILES_LIMIT).rev() {
            match fs::rename(self.full(number), self.full(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, self.full(1))
    }

    fn full(&self, number: u32) -> PathBuf {
        self.path.with_extension(format!("jsonl.{number}"))
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }
}

fn ends_a_line(file: &mut File) -> io::Result<bool> {
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

fn is_same(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    match fs::metadata(path) {
        Ok(named) => {
            let opened = file.metadata()?;
            Ok((named.dev(), named.ino()) == (opened.dev(), opened.ino()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn entry(object: &str) -> AuditEntry {
        AuditEntry {
            time: UtcTime::from_nanoseconds(1_700_000_000_000_000_000),
            actor: Some(0),
            action: "mark".into(),
            object: object.into(),
            outcome: "done".into(),
            reason: None,
        }
    }

    fn objects(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        let parse = |line| serde_json::from_str::<AuditEntry>(line).ok();
        text.lines().filter_map(parse).map(|entry| entry.object).collect()
    }

    #[test]
    fn entries_are_lines_of_a_private_file() {
        let base = tempfile::tempdir().unwrap();
        let log = AuditLog::new(base.path());
        log.append(&entry("web-01")).unwrap();
        let golden = concat!(
            r#"{"time":"2023-11-14T22:13:20Z","actor":0,"action":"mark","#,
            r#""object":"web-01","outcome":"done","reason":null}"#
        );
        assert_eq!(fs::read_to_string(&log.path).unwrap(), format!("{golden}\n"));
        assert_eq!(fs::metadata(&log.path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_cut_entry_does_not_swallow_the_next() {
        let base = tempfile::tempdir().unwrap();
        let log = AuditLog::new(base.path());
        log.append(&entry("a")).unwrap();
        let mut file = OpenOptions::new().append(true).open(&log.path).unwrap();
        file.write_all(b"{\"time\":\"20").unwrap();
        log.append(&entry("b")).unwrap();
        assert_eq!(objects(&log.path), ["a", "b"]);
    }

    #[test]
    fn it_is_bounded_and_loses_the_oldest_first() {
        let base = tempfile::tempdir().unwrap();
        let log = AuditLog { file_limit_bytes: 250, ..AuditLog::new(base.path()) };
        for number in 0..100 {
            log.append(&entry(&format!("{number:03}"))).unwrap();
        }
        let files = fs::read_dir(base.path()).unwrap().count();
        assert_eq!(files, 1 + usize::try_from(FULL_FILES_LIMIT).unwrap());
        let mut all: Vec<String> =
            (1..=FULL_FILES_LIMIT).rev().flat_map(|number| objects(&log.full(number))).collect();
        all.extend(objects(&log.path));
        let newest: Vec<String> =
            (100 - all.len()..100).map(|number| format!("{number:03}")).collect();
        assert_eq!(all, newest);
    }

    #[test]
    fn several_writers_lose_nothing_at_a_rotation() {
        let base = tempfile::tempdir().unwrap();
        // Sixteen entries fit the five files of four each with room to spare.
        let log = AuditLog { file_limit_bytes: 400, ..AuditLog::new(base.path()) };
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let log = log.clone();
                scope.spawn(move || {
                    (0..4).for_each(|number| {
                        log.append(&entry(&format!("{writer}{number}"))).unwrap();
                    });
                });
            }
        });
        let mut all = objects(&log.path);
        let full = (1..=FULL_FILES_LIMIT).map(|number| log.full(number));
        all.extend(full.filter(|path| path.exists()).flat_map(|path| objects(&path)));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 16);
    }
}
