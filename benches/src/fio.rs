//! Runs fio and reads what it measured. It must never guess: a missing name is an error.

use crate::place::Source;
use crate::process::{Running, command};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Beyond its own time: layout, and its last requests.
const EXTRA: Duration = Duration::from_secs(300);

/// What fio measured of its writes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Written {
    /// Writes a second.
    pub per_second: f64,
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// Writes.
    pub count: f64,
    /// Bytes of all of them.
    pub bytes: f64,
    /// Latency of a write.
    pub write: Latency,
    /// Latency of a sync, where it made any.
    pub sync: Option<Latency>,
}

/// Percentiles of a latency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// The median, in seconds.
    pub p50: f64,
    /// 99 of 100 are as short, in seconds.
    pub p99: f64,
}

/// fio at work; ended with its owner.
pub struct Fio {
    running: Running,
    results: PathBuf,
    within: Duration,
}

impl Fio {
    /// Starts one job with these options; what it writes beside its target goes to `room`.
    pub fn start(options: &[String], runs: Duration, room: &Path) -> Result<Self> {
        let results = room.join("fio.json");
        let mut fio = command(&[], "fio")?;
        // A thread, not a process of its own: it must die with the one that is killed.
        fio.args(["--name=bench", "--thread", "--output-format=json"]);
        fio.arg(format!("--output={}", results.display()));
        fio.args(options);
        let running = Running::start("fio", &mut fio, &room.join("fio.log"))?;
        Ok(Self { running, results, within: runs + EXTRA })
    }

    /// Whether it still writes.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(!self.running.has_ended()?)
    }

    /// Waits for its good end.
    pub fn finish(self) -> Result<Written> {
        self.running.finish(self.within)?;
        let text = std::fs::read_to_string(&self.results)?;
        std::fs::remove_file(&self.results)?;
        parse(&text)
    }
}

/// Random direct writes straight to a disk.
pub struct RandomWrites<'a> {
    /// The disk.
    pub source: &'a Source,
    /// Its part from the start that is written.
    pub bytes: u64,
    /// Sizes of a write, as fio takes them.
    pub blocks: &'a str,
    /// Writes at once.
    pub depth: u32,
    /// At most so many bytes a second.
    pub rate: Option<u64>,
    /// How long.
    pub runs: Duration,
}

/// Such writes at work, of content that never repeats.
pub struct Writing<'a> {
    fio: Fio,
    source: &'a Source,
    before: u64,
}

impl<'a> RandomWrites<'a> {
    /// Starts them.
    pub fn start(&self, room: &Path) -> Result<Writing<'a>> {
        let mut options = vec![
            format!("--filename={}", self.source.device().display()),
            format!("--size={}", self.bytes),
            format!("--bsrange={}", self.blocks),
            format!("--iodepth={}", self.depth),
            format!("--runtime={}", self.runs.as_secs()),
        ];
        let fixed = ["--rw=randwrite", "--ioengine=libaio", "--direct=1", "--norandommap"];
        let fixed = fixed.into_iter().chain(["--refill_buffers", "--time_based"]);
        options.extend(fixed.map(str::to_owned));
        options.extend(self.rate.map(|rate| format!("--rate={rate}")));
        let before = self.source.written_bytes()?;
        let fio = Fio::start(&options, self.runs, room)?;
        Ok(Writing { fio, source: self.source, before })
    }
}

impl Writing<'_> {
    /// Whether it goes on.
    pub fn is_running(&mut self) -> Result<bool> {
        self.fio.is_running()
    }

    /// Waits for its good end; the kernel must have seen all of it on the disk.
    pub fn finish(self) -> Result<Written> {
        let written = self.fio.finish()?;
        let seen = self.source.written_bytes()? - self.before;
        ensure!(
            seen as f64 >= written.bytes,
            "fio wrote {} bytes, the disk has seen {seen}",
            written.bytes
        );
        Ok(written)
    }
}

/// fio may print lines of its own before the JSON.
fn parse(text: &str) -> Result<Written> {
    let from = text.find('{').context("fio printed no JSON")?;
    let value: Value = serde_json::from_str(&text[from..]).context("fio printed no JSON")?;
    let job = &value["jobs"][0];
    ensure!(job["error"] == 0, "fio failed: error {}", job["error"]);
    let write = &job["write"];
    let number = |name: &str| write[name].as_f64().with_context(|| format!("fio: no {name}"));
    let sync = &job["sync"]["lat_ns"];
    let has_synced = sync["N"].as_u64().is_some_and(|count| count > 0);
    Ok(Written {
        per_second: number("iops")?,
        bytes_per_second: number("bw_bytes")?,
        count: number("total_ios")?,
        bytes: number("io_bytes")?,
        write: latency(&write["clat_ns"])?,
        sync: has_synced.then(|| latency(sync)).transpose()?,
    })
}

fn latency(value: &Value) -> Result<Latency> {
    let of = |name: &str| -> Result<f64> {
        let nanoseconds = value["percentile"][name].as_f64();
        Ok(nanoseconds.with_context(|| format!("fio: no percentile {name}"))? / 1e9)
    };
    Ok(Latency { p50: of("50.000000")?, p99: of("99.000000")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULT: &str = r#"note: a line of its own
        {"jobs": [{"error": 0,
          "write": {"iops": 250.5, "bw_bytes": 1026048, "total_ios": 501, "io_bytes": 2052096,
            "clat_ns": {"percentile": {"50.000000": 2000, "99.000000": 9000}}},
          "sync": {"lat_ns": {"N": 500, "percentile":
            {"50.000000": 1000000, "99.000000": 3000000}}}}]}"#;

    #[test]
    fn rates_and_percentiles_are_read() {
        let written = parse(RESULT).unwrap();
        assert_eq!((written.per_second, written.bytes_per_second), (250.5, 1_026_048.0));
        assert_eq!((written.count, written.bytes), (501.0, 2_052_096.0));
        assert_eq!(written.write, Latency { p50: 2e-6, p99: 9e-6 });
        assert_eq!(written.sync, Some(Latency { p50: 1e-3, p99: 3e-3 }));
    }

    #[test]
    fn a_failure_or_a_missing_name_is_an_error() {
        assert!(parse(&RESULT.replace(r#""error": 0"#, r#""error": 5"#)).is_err());
        assert!(parse(&RESULT.replace("bw_bytes", "bw")).is_err());
        assert!(parse("fio: cannot open").is_err());
        let without = parse(&RESULT.replace(r#""N": 500"#, r#""N": 0"#)).unwrap();
        assert_eq!(without.sync, None);
    }
}
