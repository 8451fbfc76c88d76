//! File noise beside the databases: creates, writes, renames, unlinks, fsyncs of random files.
//! It remembers which files a crash must not take, and when it began to take them away itself.

use anyhow::{Context, Result, anyhow, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// Files at a time: with their greatest size a tenth of the smallest disk.
const FILES_MAX: usize = 100;
/// A file's greatest size: beyond one bio.
const FILE_BYTES_MAX: usize = 512 * 1024;
/// Between two operations at most.
const PAUSE_MAX: Duration = Duration::from_millis(30);
/// A point may hold writes of some time after it was taken: a file removed so soon after may be
/// gone.
const REMOVAL_LEEWAY: Duration = Duration::from_secs(10);

/// A file that was made durable.
#[derive(Clone, Debug)]
pub struct KeptFile {
    name: String,
    content_seed: u64,
    kept_from: SystemTime,
    removed_from: Option<SystemTime>,
}

/// A thread that makes noise in a directory of its own.
pub struct Noise {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<KeptFile>>>>,
}

impl Noise {
    /// Starts the noise in a directory, which is made.
    pub fn start(directory: &Path, seed: u64) -> Result<Self> {
        fs::create_dir(directory)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut maker = Maker {
            directory: directory.to_path_buf(),
            random: StdRng::seed_from_u64(seed),
            present: Vec::new(),
            gone: Vec::new(),
            next: 0,
        };
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    maker.step()?;
                    std::thread::sleep(maker.random.random_range(Duration::ZERO..PAUSE_MAX));
                }
                maker.gone.extend(maker.present.into_iter().filter_map(|(_, kept)| kept));
                Ok(maker.gone)
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops and returns every file that was durable at some time.
    pub fn stop(mut self) -> Result<Vec<KeptFile>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the noise was stopped already")?;
        thread.join().map_err(|_| anyhow!("the noise panicked"))?
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Maker {
    directory: PathBuf,
    random: StdRng,
    // A name, and what is known of it where it is durable.
    present: Vec<(String, Option<KeptFile>)>,
    gone: Vec<KeptFile>,
    next: u64,
}

impl Maker {
    fn step(&mut self) -> Result<()> {
        let full = self.present.len() >= FILES_MAX;
        match self.random.random_range(0..10) {
            0..=5 if !full => self.create(),
            6..=7 if !self.present.is_empty() => self.rename(),
            _ if !self.present.is_empty() => self.unlink(),
            _ => Ok(()),
        }
    }

    fn create(&mut self) -> Result<()> {
        let (name, content_seed) = (self.new_name(), self.random.random());
        let mut file = File::create_new(self.directory.join(&name))?;
        file.write_all(&content(content_seed))?;
        let mut kept = None;
        if self.random.random_bool(0.5) {
            file.sync_all()?;
            kept = Some(self.durable(&name, content_seed)?);
        }
        self.present.push((name, kept));
        Ok(())
    }

    fn rename(&mut self) -> Result<()> {
        let (old, kept) = self.take();
        let name = self.new_name();
        let content_seed = kept.as_ref().map(|file| file.content_seed);
        self.gone.extend(kept);
        fs::rename(self.directory.join(&old), self.directory.join(&name))?;
        let kept = content_seed.map(|seed| self.durable(&name, seed)).transpose()?;
        self.present.push((name, kept));
        Ok(())
    }

    fn unlink(&mut self) -> Result<()> {
        let (name, kept) = self.take();
        self.gone.extend(kept);
        Ok(fs::remove_file(self.directory.join(name))?)
    }

    /// A random file, which is about to go; noted before it goes.
    fn take(&mut self) -> (String, Option<KeptFile>) {
        let index = self.random.random_range(0..self.present.len());
        let (name, mut kept) = self.present.swap_remove(index);
        if let Some(file) = &mut kept {
            file.removed_from = Some(SystemTime::now());
        }
        (name, kept)
    }

    /// Makes the name durable; the content is already.
    fn durable(&self, name: &str, content_seed: u64) -> Result<KeptFile> {
        File::open(&self.directory)?.sync_all()?;
        let kept_from = SystemTime::now();
        Ok(KeptFile { name: name.to_owned(), content_seed, kept_from, removed_from: None })
    }

    fn new_name(&mut self) -> String {
        self.next += 1;
        format!("noise-{}", self.next)
    }
}

fn content(seed: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut bytes = vec![0; random.random_range(1..=FILE_BYTES_MAX)];
    random.fill(&mut bytes[..]);
    bytes
}

/// Looks for every file that must be there at a point in time, and returns how many there were.
pub fn check(directory: &Path, files: &[KeptFile], at: SystemTime) -> Result<usize> {
    let must_be_there = files.iter().filter(|file| {
        file.kept_from < at && file.removed_from.is_none_or(|time| time > at + REMOVAL_LEEWAY)
    });
    let mut count = 0;
    for file in must_be_there {
        let path = directory.join(&file.name);
        let found = fs::read(&path).with_context(|| format!("{} was durable", path.display()))?;
        ensure!(found == content(file.content_seed), "{} is garbled", path.display());
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durable_files_are_found_and_missing_ones_missed() -> Result<()> {
        let scratch = tempfile::tempdir()?;
        let directory = scratch.path().join("noise");
        let noise = Noise::start(&directory, 3)?;
        crate::command::wait_until("noise", Duration::from_secs(30), || {
            Ok((fs::read_dir(&directory)?.count() >= 10).then_some(()))
        })?;
        let files = noise.stop()?;
        let now = SystemTime::now();
        assert!(check(&directory, &files, now)? > 0);
        let kept = files.iter().find(|file| file.removed_from.is_none()).context("none kept")?;
        fs::write(directory.join(&kept.name), b"other")?;
        assert!(check(&directory, &files, now).is_err());
        fs::remove_file(directory.join(&kept.name))?;
        assert!(check(&directory, &files, now).is_err());
        Ok(())
    }
}
