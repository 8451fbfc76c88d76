//! How old is the newest change that would be lost if the machine were gone now? Under a steady
//! load, as the product says it and as a block that is written and followed says it. It must never
//! count a load that the disk did not carry.

use crate::fio::RandomWrites;
use crate::place::{Content, Place, Source};
use crate::process::missing;
use crate::report::{Cell, Column, Question, Table};
use crate::spread::{Spread, percentile};
use crate::stop;
use crate::watched::{STATUS_INTERVAL, Seen, Socket, Watch, Watched};
use anyhow::{Context, Result, ensure};
use nix::fcntl::OFlag;
use redoubt_control::{Size, Span};
use redoubt_engine::buffer::{AlignedBuffer, BLOCK_BYTES};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// As operators run it.
const POINT_INTERVAL: &str = "5s";

/// A block that is not durable by then counts as this old.
const PROBE_WITHIN: Duration = Duration::from_secs(30);

/// The load leaves the end of the disk to the probe.
const PROBE_ROOM_BYTES: u64 = 1 << 20;

/// Initial sync before, catch-up after a load that was too much.
const STREAMING_WITHIN: Duration = Duration::from_secs(600);

/// The load's blocks, at most so many at once.
const BLOCKS: &str = "4k-64k";
const DEPTH: u32 = 8;

/// A load of less than this part of what was asked for is not that load.
const CARRIED_LEAST: f64 = 0.95;

/// The RPO under random writes of 4 to 64 KiB at several rates.
#[derive(Clone, Debug, clap::Args)]
pub struct RpoBench {
    /// Megabytes a second that are written; may be given several times.
    #[arg(long, default_values_t = [5, 20, 50], value_name = "MB/S")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: Vec<u32>,
    /// How long each rate is written in a round.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Rounds; another rate begins each.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Bytes of the disk, whole MiB.
    #[arg(long, default_value = "256MiB", value_name = "SIZE")]
    pub size: Size,
    /// Between the end of one probe and the next; each makes a recovery point.
    #[arg(long, default_value = "500ms", value_name = "TIME")]
    pub probe_interval: Span,
}

/// What one rate came to in one round.
#[derive(Debug)]
struct Sample {
    bytes_per_second: f64,
    /// Ages in seconds.
    probes: Vec<f64>,
    /// What the target's status said, in seconds.
    shown: Vec<f64>,
    /// Part of the looks at which the disk streamed.
    streaming: f64,
    /// Events that the full ring lost.
    losses: u64,
}

impl RpoBench {
    /// A row for each rate.
    pub fn run(&self, under: &Path) -> Result<Question> {
        let mut question = Question::new("rpo", self.measures());
        if let Some(missing) = missing("the load", &[("fio", "fio")]) {
            question.not_run.push(missing);
            return Ok(question);
        }
        let bytes = self.size.0;
        ensure!(bytes >= 4 * PROBE_ROOM_BYTES, "--size {} is too small: give 64MiB", self.size);
        // Replica, journal, and old content of every point.
        let written = self.rate.iter().map(|rate| u64::from(*rate) * 1_000_000).sum::<u64>();
        let written = written * self.seconds * u64::from(self.rounds);
        let place = Place::new(under, bytes * 2 + written * 3)?;
        let source = Source::make(place.path(), Content::Incompressible, bytes, 0)?;
        let room = place.room()?;
        let mut site = Watched::prepare(room.path(), source.device(), POINT_INTERVAL, &[])?;
        site.start_agent()?;
        site.wait_for_streaming(STREAMING_WITHIN)?;
        let mut samples: Vec<Vec<Sample>> = self.rate.iter().map(|_| Vec::new()).collect();
        let mut probe = Probe::open(source.device(), bytes)?;
        for round in 0..self.rounds as usize {
            for turn in 0..self.rate.len() {
                let turn = (round + turn) % self.rate.len();
                let sample = self.load(self.rate[turn], &source, &mut site, &mut probe, &place)?;
                eprintln!(
                    "rpo: {} MB/s, round {}: p50 {:.0} ms",
                    self.rate[turn],
                    round + 1,
                    percentile(&sample.probes, 0.5).unwrap_or(f64::NAN) * 1e3
                );
                samples[turn].push(sample);
            }
        }
        let replica = site.wait_for_replica(STREAMING_WITHIN)?;
        site.end()?;
        source.expect_equal(&replica)?;
        self.answer(&mut question, &samples);
        question.note_rounds(self.rounds);
        Ok(question)
    }

    /// One rate for its time; the replica must have caught up before it begins.
    fn load(
        &self,
        rate: u32,
        source: &Source,
        site: &mut Watched,
        probe: &mut Probe,
        place: &Place,
    ) -> Result<Sample> {
        site.wait_for_streaming(STREAMING_WITHIN)?;
        site.wait_for_replica(STREAMING_WITHIN)?;
        let losses = losses(&site.agent)?;
        let load = RandomWrites {
            source,
            bytes: source.bytes() - PROBE_ROOM_BYTES,
            blocks: BLOCKS,
            depth: DEPTH,
            rate: Some(u64::from(rate) * 1_000_000),
            runs: Duration::from_secs(self.seconds),
        };
        let room = place.room()?;
        let watch = Watch::start(site.target.clone());
        let mut load = load.start(room.path())?;
        let mut probes = Vec::new();
        while load.is_running()? {
            site.processes()?;
            probes.push(probe.age(&site.agent)?.as_secs_f64());
            stop::pause(self.probe_interval.0)?;
        }
        let written = load.finish()?;
        let Seen { shown, streaming } = watch.finish()?;
        let losses = self::losses(&site.agent)? - losses;
        Ok(Sample { bytes_per_second: written.bytes_per_second, probes, shown, streaming, losses })
    }

    fn answer(&self, question: &mut Question, samples: &[Vec<Sample>]) {
        let milliseconds = |key, title| Column::number(key, title, 1e-3, 0);
        let mut table = Table::new(
            "RPO under load",
            vec![
                Column::text("rate", "asked"),
                Column::number("bytes_per_second", "written MB/s", 1e6, 1),
                milliseconds("probe_p50_seconds", "probe p50 ms"),
                milliseconds("probe_p99_seconds", "p99 ms"),
                milliseconds("probe_most_seconds", "max ms"),
                milliseconds("status_p50_seconds", "status p50 ms"),
                milliseconds("status_p99_seconds", "p99 ms"),
                milliseconds("status_most_seconds", "max ms"),
                Column::number("streaming_part", "streaming %", 0.01, 0),
                Column::number("losses", "losses", 1.0, 0),
                Column::number("probes", "probes", 1.0, 0),
            ],
        );
        for (rate, samples) in self.rate.iter().zip(samples) {
            let of = |values: fn(&Sample) -> &Vec<f64>, part| {
                Spread::over(samples.iter().filter_map(|sample| percentile(values(sample), part)))
            };
            let cell = |spread: Option<Spread>| spread.map_or(Cell::Nothing, Cell::Spread);
            let each = |value: fn(&Sample) -> f64| Cell::over(samples.iter().map(value));
            let mut row =
                vec![Cell::Text(format!("{rate} MB/s")), each(|sample| sample.bytes_per_second)];
            for values in
                [(|sample| &sample.probes) as fn(&Sample) -> &Vec<f64>, |sample| &sample.shown]
            {
                row.extend([0.5, 0.99, 1.0].map(|part| cell(of(values, part))));
            }
            row.extend([
                each(|sample| sample.streaming),
                each(|sample| sample.losses as f64),
                each(|sample| sample.probes.len() as f64),
            ]);
            table.row(row);
            let p99 = of(|sample| &sample.probes, 0.99);
            question.headline(format!("p99 of the probe at {rate} MB/s, seconds"), p99);
            let asked = f64::from(*rate) * 1e6 * CARRIED_LEAST;
            if samples.iter().any(|sample| sample.bytes_per_second < asked) {
                question.notes.push(format!(
                    "{rate} MB/s were not written in every round: the disk or this machine does \
                     not carry them, and the row is of what was"
                ));
            }
        }
        question.tables.push(table);
    }

    fn measures(&self) -> String {
        format!(
            "Probe: a stamped block of {BLOCK_BYTES} bytes is written (O_DIRECT) beside the load; \
             from the moment the write has returned until a mark asked for right behind it is \
             acknowledged as durable at the target. That is the age at which the block was safe, \
             from above: the mark's own way through agent and socket (polled every 10 ms) is in \
             it. A probe follows {} behind the last and makes a recovery point, so that the \
             target has more of them than its interval asks for. Status: rpo_seconds of the \
             target's status, every {STATUS_INTERVAL:?}; the agent tells it once a second. A \
             round's p99 of fewer than 100 probes is its maximum. The replica was compared byte \
             by byte at the end. No peer: what else replicates continuously runs in a VM only.",
            self.probe_interval
        )
    }
}

fn losses(agent: &Socket) -> Result<u64> {
    Ok(agent.disk()?.tracker.context("the agent tells nothing of its tracker")?.losses)
}

/// A block at the end of the disk that is written anew each time.
struct Probe {
    file: File,
    block: AlignedBuffer,
    offset: u64,
    stamp: u64,
}

impl Probe {
    fn open(device: &Path, bytes: u64) -> Result<Self> {
        let flags = OFlag::O_DIRECT.bits();
        let file = OpenOptions::new().write(true).custom_flags(flags).open(device)?;
        let block = AlignedBuffer::zeroed(BLOCK_BYTES);
        Ok(Self { file, block, offset: bytes - BLOCK_BYTES as u64, stamp: 0 })
    }

    /// Writes the next stamp and waits until it is durable at the target.
    fn age(&mut self, agent: &Socket) -> Result<Duration> {
        self.stamp += 1;
        self.block[..8].copy_from_slice(&self.stamp.to_le_bytes());
        self.file.write_all_at(&self.block, self.offset)?;
        let written = Instant::now();
        let is_durable = agent.mark(false, PROBE_WITHIN)?;
        Ok(if is_durable { written.elapsed() } else { PROBE_WITHIN })
    }
}
