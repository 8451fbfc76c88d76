//! What tracking costs who writes: the same random writes to a disk that nobody tracks, that the
//! bitmap alone follows, and that streams to a target; blktrace as what else watches every write.
//! It must never measure a disk as untracked while the tracker's programs run.

mod programs;
mod rig;
mod tables;

use crate::fio::{RandomWrites, Written};
use crate::place::{Content, Place, Source};
use crate::process::missing;
use crate::report::Question;
use crate::watched::Watch;
use anyhow::{Context, Result, ensure};
use programs::{Counts, Statistics};
use redoubt_control::Size;
use rig::{Mode, Rig};
use std::path::Path;
use std::time::Duration;

/// Writes at once: one after the other, and as a busy database.
const DEPTHS: [u32; 2] = [1, 16];

/// What one run came to.
#[derive(Clone, Copy, Debug)]
struct Sample {
    per_second: f64,
    /// Part of the looks at which the disk streamed; only where it should.
    streaming: Option<f64>,
}

/// The runs of one mode at one depth, a round each.
struct Runs {
    depth: u32,
    mode: Mode,
    samples: Vec<Sample>,
}

/// What the kernel counted in one run of one mode.
struct Counted {
    mode: Mode,
    writes: f64,
    counts: Vec<Counts>,
}

/// The tracker's cost for 4-KiB random writes.
#[derive(Clone, Debug, clap::Args)]
pub struct TrackerBench {
    /// How long each run writes.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Rounds; the modes take turns, and another one begins each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Bytes of the disk, whole MiB.
    #[arg(long, default_value = "128MiB", value_name = "SIZE")]
    pub size: Size,
}

impl TrackerBench {
    /// A table of rates, and one of what the kernel counts.
    pub fn run(&self, under: &Path) -> Result<Question> {
        let mut question = Question::new("tracker", tables::MEASURES);
        if let Some(missing) = missing("the load", &[("fio", "fio")]) {
            question.not_run.push(missing);
            return Ok(question);
        }
        let bytes = self.size.0;
        ensure!(bytes >= 1 << 20, "--size {} is too small: give 64MiB", self.size);
        rig::mount_debugfs()?;
        let (modes, absent): (Vec<Mode>, Vec<Mode>) =
            Mode::ALL.into_iter().partition(|mode| mode.missing().is_none());
        question.not_run = absent.iter().filter_map(|mode| mode.missing()).collect();
        // The replica, and what a fast disk can bring into journal and points meanwhile.
        let place = Place::new(under, bytes * 2 + (4 << 30))?;
        // Written everywhere: making room in the file below must cost none of the modes anything.
        let source = Source::make(place.path(), Content::Incompressible, bytes, 0)?;
        let room = place.room()?;
        let mut rig = Rig::new(&source, room.path())?;
        // Whoever comes first on a fresh disk pays for that; it counts for nobody.
        rig.enter(Mode::Untracked)?;
        self.write(DEPTHS[1], &rig)?;
        let runs = self.rates(&modes, &mut rig)?;
        let counted = self.counts(&mut rig)?;
        rig.end()?;
        tables::add(&mut question, &runs, &counted);
        question.note_rounds(self.rounds);
        Ok(question)
    }

    fn rates(&self, modes: &[Mode], rig: &mut Rig<'_>) -> Result<Vec<Runs>> {
        let every =
            DEPTHS.into_iter().flat_map(|depth| modes.iter().map(move |mode| (depth, mode)));
        let new = |(depth, mode): (u32, &Mode)| Runs { depth, mode: *mode, samples: Vec::new() };
        let mut runs: Vec<Runs> = every.map(new).collect();
        for round in 0..self.rounds as usize {
            for turn in 0..modes.len() {
                let mode = modes[(round + turn) % modes.len()];
                for of in runs.iter_mut().filter(|of| of.mode == mode) {
                    let sample = self.rate(mode, of.depth, rig);
                    let sample =
                        sample.with_context(|| format!("{}: {}", mode.name(), of.depth))?;
                    eprintln!(
                        "tracker: depth {}, round {}: {} {:.0} IOPS",
                        of.depth,
                        round + 1,
                        mode.name(),
                        sample.per_second
                    );
                    of.samples.push(sample);
                }
            }
        }
        Ok(runs)
    }

    fn rate(&self, mode: Mode, depth: u32, rig: &mut Rig<'_>) -> Result<Sample> {
        rig.enter(mode)?;
        let watch = (mode == Mode::Data).then(|| Watch::start(rig.site.agent.clone()));
        let written = self.write(depth, rig)?;
        let streaming = watch.map(|watch| Ok(watch.finish()?.streaming)).transpose();
        let streaming = streaming.map_err(|error: anyhow::Error| error)?;
        rig.leave()?;
        Ok(Sample { per_second: written.per_second, streaming })
    }

    /// The same once more under the kernel's own clock, which is not for free: not in the rates.
    fn counts(&self, rig: &mut Rig<'_>) -> Result<Vec<Counted>> {
        let mut counted = Vec::new();
        for _ in 0..self.rounds {
            for mode in [Mode::Bitmap, Mode::Data] {
                rig.enter(mode)?;
                let pins = rig.pins()?.to_owned();
                let statistics = Statistics::on()?;
                let before = programs::read(&pins)?;
                let written = self.write(DEPTHS[1], rig)?;
                let after = programs::read(&pins)?;
                drop(statistics);
                let counts =
                    after.iter().zip(&before).map(|(after, before)| after.since(before)).collect();
                counted.push(Counted { mode, writes: written.count, counts });
                rig.leave()?;
            }
        }
        Ok(counted)
    }

    fn write(&self, depth: u32, rig: &Rig<'_>) -> Result<Written> {
        let runs = Duration::from_secs(self.seconds);
        let (source, bytes, blocks) = (rig.source, rig.source.bytes(), "4k-4k");
        RandomWrites { source, bytes, blocks, depth, rate: None, runs }.start(rig.room)?.finish()
    }
}
