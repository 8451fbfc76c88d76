//! The commit writer: numbered rows in SQLite, each acknowledged commit noted in memory with its
//! time. It must never note a commit before SQLite has returned from it.

use anyhow::{Context, Result, anyhow, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// Rows are filled with up to so many bytes, so that commits touch one page or several.
const FILLER_BYTES_MAX: usize = 3000;
/// Between two commits at most: the disks stay small, and the writer bursts as often as it pauses.
const PAUSE_MAX: Duration = Duration::from_millis(16);

/// How SQLite keeps a commit whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// A write-ahead log.
    WriteAhead,
    /// The rollback journal.
    Rollback,
}

/// When each commit was acknowledged: for each database the times of rows 1, 2, 3 and so on.
pub type Acknowledged = Vec<Vec<SystemTime>>;

/// A thread that commits row n to the first database, then row n to the second, and so on.
pub struct CommitWriter {
    acknowledged: Arc<Mutex<Acknowledged>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl CommitWriter {
    /// Starts writing; the databases must not be there yet.
    pub fn start(databases: &[PathBuf], journal: Journal, seed: u64) -> Result<Self> {
        let connections = databases
            .iter()
            .map(|path| create(path, journal))
            .collect::<Result<Vec<Connection>>>()?;
        let acknowledged = Arc::new(Mutex::new(vec![Vec::new(); databases.len()]));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (acknowledged, stop) = (Arc::clone(&acknowledged), Arc::clone(&stop));
            move || write(&connections, &acknowledged, &stop, seed)
        });
        Ok(Self { acknowledged, stop, thread: Some(thread) })
    }

    /// What has been acknowledged by now.
    pub fn acknowledged(&self) -> Acknowledged {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many rows are acknowledged in every database.
    pub fn wait_for_rows(&self, rows: usize, at_most: Duration) -> Result<()> {
        crate::command::wait_until("commits", at_most, || {
            ensure!(!self.thread.as_ref().is_none_or(JoinHandle::is_finished), "the writer failed");
            Ok(self.acknowledged().iter().all(|times| times.len() >= rows).then_some(()))
        })
    }

    /// Stops after the current commit and closes the databases.
    pub fn stop(mut self) -> Result<Acknowledged> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the writer was stopped already")?;
        thread.join().map_err(|_| anyhow!("the writer panicked"))??;
        Ok(self.acknowledged())
    }
}

impl Drop for CommitWriter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn create(path: &Path, journal: Journal) -> Result<Connection> {
    let database = Connection::open(path).with_context(|| path.display().to_string())?;
    let mode = match journal {
        Journal::WriteAhead => "wal",
        Journal::Rollback => "delete",
    };
    let made: String =
        database.query_row(&format!("pragma journal_mode = {mode}"), [], |row| row.get(0))?;
    ensure!(made == mode, "{}: journal mode {made}", path.display());
    database.execute_batch(
        "pragma synchronous = extra;
         create table commits (number integer primary key, filler blob not null);",
    )?;
    Ok(database)
}

fn write(
    connections: &[Connection],
    acknowledged: &Mutex<Acknowledged>,
    stop: &AtomicBool,
    seed: u64,
) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    for number in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        for (index, database) in connections.iter().enumerate() {
            database
                .execute("insert into commits values (?1, ?2)", (number, filler(number)))
                .with_context(|| format!("commit {number} to database {index}"))?;
            let now = SystemTime::now();
            acknowledged.lock().unwrap_or_else(PoisonError::into_inner)[index].push(now);
        }
        std::thread::sleep(random.random_range(Duration::ZERO..PAUSE_MAX));
    }
    Ok(())
}

/// What row `number` is filled with: its length and content follow from the number alone.
fn filler(number: i64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(number.unsigned_abs());
    let mut bytes = vec![0; random.random_range(1..=FILLER_BYTES_MAX)];
    random.fill(&mut bytes[..]);
    bytes
}

/// The number of the last row of a database that must be whole and without a hole.
pub fn last_row(path: &Path) -> Result<usize> {
    // Opened for writing: what the journal holds has to be played back.
    let database = Connection::open(path).with_context(|| path.display().to_string())?;
    let verdict: String = database.query_row("pragma integrity_check", [], |row| row.get(0))?;
    ensure!(verdict == "ok", "{}: integrity check: {verdict}", path.display());
    let mut statement = database.prepare("select number, filler from commits order by number")?;
    let mut rows = statement.query([])?;
    let mut last = 0;
    while let Some(row) = rows.next()? {
        let number: i64 = row.get(0)?;
        ensure!(number == last + 1, "{}: row {number} follows row {last}", path.display());
        let found: Vec<u8> = row.get(1)?;
        ensure!(found == filler(number), "{}: row {number} is garbled", path.display());
        last = number;
    }
    Ok(usize::try_from(last)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    #[test]
    fn what_was_acknowledged_is_there_and_the_second_is_never_ahead() -> Result<()> {
        for journal in [Journal::WriteAhead, Journal::Rollback] {
            let directory = tempfile::tempdir()?;
            let databases = ["first", "second"].map(|name| directory.path().join(name));
            let writer = CommitWriter::start(&databases, journal, 7)?;
            writer.wait_for_rows(20, SOON)?;
            let acknowledged = writer.stop()?;
            for (database, times) in databases.iter().zip(&acknowledged) {
                assert_eq!(last_row(database)?, times.len());
            }
            assert!(
                acknowledged[1].iter().zip(&acknowledged[0]).all(|(second, first)| second >= first)
            );
        }
        Ok(())
    }

    #[test]
    fn a_hole_and_a_garbled_row_are_found() -> Result<()> {
        let directory = tempfile::tempdir()?;
        for damage in [
            "delete from commits where number = 3",
            "update commits set filler = x'00' where number = 3",
        ] {
            let path = directory.path().join("database");
            let writer = CommitWriter::start(std::slice::from_ref(&path), Journal::Rollback, 7)?;
            writer.wait_for_rows(5, SOON)?;
            writer.stop()?;
            Connection::open(&path)?.execute_batch(damage)?;
            assert!(last_row(&path).is_err(), "{damage}");
            std::fs::remove_file(&path)?;
        }
        Ok(())
    }
}
