//! Every question in one run, one summary, one file. A question that fails does not take the
//! others' answers away, and is never left out of them.

use crate::journal::JournalBench;
use crate::place::Content;
use crate::report::{Question, Report};
use crate::rpo::RpoBench;
use crate::seal::SealBench;
use crate::stop;
use crate::sync::SyncBench;
use crate::tracker::TrackerBench;
use anyhow::{Context, Result, ensure};
use redoubt_control::{Size, Span};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// All of them, within a quarter of an hour; a summary, and one JSON file.
#[derive(Clone, Debug, clap::Args)]
pub struct AllBench {
    /// Where the JSON goes [default: redoubt-bench.json beside this program].
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// A minute of each: proves that everything runs, and no more.
    #[arg(long)]
    pub small: bool,
}

type Asked = (&'static str, Box<dyn Fn(&Path) -> Result<Question>>);

impl AllBench {
    /// Asks all questions.
    pub fn questions(&self, under: &Path) -> Result<Vec<Question>> {
        let mut questions = Vec::new();
        for (name, ask) in self.asked() {
            eprintln!("== {name}");
            questions.push(match ask(under) {
                Ok(question) => question,
                Err(error) => {
                    stop::check()?;
                    eprintln!("{name} has failed: {error:#}");
                    Question::failed(name, &error)
                }
            });
        }
        Ok(questions)
    }

    /// Writes the report to its file, and says how it ended.
    pub fn finish(&self, report: &Report) -> Result<()> {
        let beside = || Ok(std::env::current_exe()?.with_file_name("redoubt-bench.json"));
        let out = self.out.clone().map_or_else(beside, anyhow::Ok)?;
        let text = serde_json::to_string_pretty(report)?;
        std::fs::write(&out, text).with_context(|| format!("cannot write {}", out.display()))?;
        eprintln!("written to {}", out.display());
        let failed: Vec<&str> = report.failed().collect();
        ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
        Ok(())
    }

    fn asked(&self) -> Vec<Asked> {
        let (sync, rpo, tracker, journal, seal) = self.benches();
        vec![
            ("sync", Box::new(move |under| sync.run(under))),
            ("rpo", Box::new(move |under| rpo.run(under))),
            ("tracker", Box::new(move |under| tracker.run(under))),
            ("journal", Box::new(move |under| journal.run(under))),
            ("seal", Box::new(move |_| seal.run())),
        ]
    }

    /// Sizes and rounds such that all of it takes ten minutes on a machine of two cores.
    fn benches(&self) -> (SyncBench, RpoBench, TrackerBench, JournalBench, SealBench) {
        let pick = |modest: u64, small| if self.small { small } else { modest };
        let few = |modest: u32, small| if self.small { small } else { modest };
        let sync = SyncBench {
            size: Size(pick(1 << 30, 64 << 20)),
            rounds: few(3, 2),
            content: vec![Content::Incompressible, Content::HalfEmpty],
            only: Vec::new(),
            seed: 1,
        };
        let rpo = RpoBench {
            rate: vec![5, 20, 50],
            seconds: pick(20, 3),
            rounds: few(2, 1),
            size: Size(pick(256 << 20, 64 << 20)),
            probe_interval: Span(Duration::from_millis(500)),
        };
        let tracker = TrackerBench {
            seconds: pick(3, 1),
            rounds: few(3, 1),
            size: Size(pick(128 << 20, 64 << 20)),
        };
        let frames = few(200, 20);
        let journal = JournalBench { frames, rounds: few(5, 2), seed: 1 };
        let seal = SealBench { frames: pick(64, 4), rounds: few(9, 3), seed: 1 };
        (sync, rpo, tracker, journal, seal)
    }
}
