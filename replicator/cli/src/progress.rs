//! How far a long request has come: a bar with rate and ETA on a terminal, a line of the log a
//! minute elsewhere; always on standard error.

use crate::output::{bytes, seconds};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// Elsewhere than on a terminal a log should not fill up.
const LINE_INTERVAL: Duration = Duration::from_secs(60);

/// Shows progress until it is dropped.
pub struct Progress {
    what: String,
    bar: Option<ProgressBar>,
    started: Instant,
    told: Instant,
}

impl Progress {
    /// Nothing is shown before the first step.
    pub fn new(what: String) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
            let style = ProgressStyle::with_template(style).expect("a constant template");
            ProgressBar::no_length().with_style(style).with_message(what.clone())
        });
        let now = Instant::now();
        Self { what, bar, started: now, told: now }
    }

    /// So much is done.
    pub fn step(&mut self, done_bytes: u64, total_bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total_bytes);
            bar.set_position(done_bytes);
        } else if self.told.elapsed() >= LINE_INTERVAL {
            self.told = Instant::now();
            let elapsed = self.started.elapsed();
            tracing::info!("{}", line(&self.what, done_bytes, total_bytes, elapsed));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn line(what: &str, done_bytes: u64, total_bytes: u64, elapsed: Duration) -> String {
    let rate = done_bytes / elapsed.as_secs().max(1);
    let left = total_bytes.saturating_sub(done_bytes).checked_div(rate);
    let left = left.map_or_else(String::new, |left| format!(", {} left", seconds(left)));
    format!("{what}: {} of {}, {}/s{left}", bytes(done_bytes), bytes(total_bytes), bytes(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_rate_and_time_left() {
        let minute = Duration::from_secs(60);
        let told = line("copy-out sda", 60 << 20, 180 << 20, minute);
        assert_eq!(told, "copy-out sda: 60.0 MiB of 180.0 MiB, 1.0 MiB/s, 2m00s left");
        assert_eq!(line("x", 0, 1024, minute), "x: 0 B of 1.0 KiB, 0 B/s");
    }
}
