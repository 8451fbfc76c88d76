//! How long a whole disk takes to the other side: the product's initial sync, and what else a user
//! would copy a disk with, in turns. A copy that is not equal has no time.

mod contender;
mod nbd;
mod redoubt;
mod ssh;
mod tables;

use crate::group::{Cost, Group};
use crate::place::{Content, Place, Source};
use crate::proc_stat::Usage;
use crate::report::Question;
use anyhow::{Context, Result, ensure};
use contender::{Contender, Keys};
use redoubt_control::Size;
use std::path::Path;
use std::time::Duration;

/// Sources, sinks and the journal of the largest contender stand on the disk at once.
const ROOM_FACTOR: u64 = 4;

/// The initial sync, against nbdcopy (plain and TLS), qemu-img, rsync and dd with lz4 over ssh.
#[derive(Clone, Debug, clap::Args)]
pub struct SyncBench {
    /// Bytes of the disk, whole MiB.
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    pub size: Size,
    /// Rounds; the contenders take turns, and another one begins each.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// What is on the disk; may be given several times.
    #[arg(long, value_enum, default_values_t = [Content::Incompressible, Content::HalfEmpty])]
    pub content: Vec<Content>,
    /// Only these contenders; may be given several times.
    #[arg(long, value_enum)]
    pub only: Vec<Contender>,
    /// Of the random content.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What one copy took.
#[derive(Clone, Debug)]
struct Sample {
    /// Until the copy was equal and synced.
    whole: Duration,
    cost: Cost,
    /// What only the product has.
    own: Option<Own>,
}

/// What is known of the product's own copy beside.
#[derive(Clone, Debug)]
struct Own {
    /// Until the agent answered: its programs were loaded, proven and attached.
    answering: Duration,
    /// Until it was streaming.
    streaming: Duration,
    /// Role, thread, and what it has used.
    threads: Vec<(&'static str, String, Usage)>,
}

/// The copies of one contender, a round each.
struct Copies {
    contender: Contender,
    samples: Vec<Sample>,
}

/// What every contender gets.
struct Job<'a> {
    source: &'a Source,
    /// An empty directory for the copy.
    room: &'a Path,
    keys: &'a Keys,
    group: Group,
    /// A copy that takes longer has failed.
    within: Duration,
}

impl SyncBench {
    /// A table for each kind of content, and where the product's processor time went.
    pub fn run(&self, under: &Path) -> Result<Question> {
        let bytes = self.size.0;
        ensure!(
            bytes > 0 && bytes.is_multiple_of(1 << 20),
            "--size {} is not whole MiB",
            self.size
        );
        let mut question = Question::new("sync", measures(&Group::new()));
        let asked = Contender::asked(&self.only);
        let (contenders, missing): (Vec<_>, Vec<_>) =
            asked.into_iter().partition(|contender| contender.missing().is_none());
        question.not_run = missing.iter().filter_map(|contender| contender.missing()).collect();
        let place = Place::new(under, bytes * ROOM_FACTOR)?;
        let keys = Keys::make(&place.path().join("keys"), &contenders)?;
        for content in &self.content {
            let room = place.room()?;
            let source = Source::make(room.path(), *content, bytes, self.seed)?;
            let copies = self.rounds(&contenders, *content, &place, &source, &keys)?;
            tables::add(&mut question, *content, bytes, &copies);
        }
        question.note_rounds(self.rounds);
        question.notes.push(format!("disk of {}, content of seed {}", self.size, self.seed));
        Ok(question)
    }

    fn rounds(
        &self,
        contenders: &[Contender],
        content: Content,
        place: &Place,
        source: &Source,
        keys: &Keys,
    ) -> Result<Vec<Copies>> {
        let new = |contender: &Contender| Copies { contender: *contender, samples: Vec::new() };
        let mut copies: Vec<Copies> = contenders.iter().map(new).collect();
        for round in 0..self.rounds as usize {
            // Whoever begins meets a colder machine.
            for turn in 0..copies.len() {
                let turn = (round + turn) % copies.len();
                let Copies { contender, samples } = &mut copies[turn];
                let name = contender.name();
                let sample = copy(*contender, place, source, keys)
                    .with_context(|| format!("{name}, {}, round {round}", content.name()))?;
                eprintln!(
                    "sync: {}, round {}: {name} {:.2} s",
                    content.name(),
                    round + 1,
                    sample.whole.as_secs_f64()
                );
                samples.push(sample);
            }
        }
        Ok(copies)
    }
}

fn copy(contender: Contender, place: &Place, source: &Source, keys: &Keys) -> Result<Sample> {
    let room = place.room()?;
    source.forget()?;
    // A megabyte a second is no speed, and a minute to start more than any takes.
    let within = Duration::from_secs(60 + (source.bytes() >> 20));
    let job = Job { source, room: room.path(), keys, group: Group::new(), within };
    contender.copy(&job)
}

fn measures(group: &Group) -> String {
    format!(
        "Time from the start of the copy (redoubt: of the agent) until the copy is complete and \
         synced; each copy was compared with its source byte by byte. MB/s counts the whole disk, \
         holes too. Processor time and memory are those of all processes of a contender, both \
         ends ({}); kernel threads, such as those of loop devices, are in nobody's. Source and \
         sink stand on one file system, the ends talk over loopback.",
        group.method()
    )
}
