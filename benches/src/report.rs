//! What was measured, as a table and as JSON. It must never drop the spread: a ratio alone may be
//! luck.

use serde::Serialize;
use std::time::Duration;

/// One comparison of the same work, ours and the peer's; medians over the rounds.
#[derive(Debug, Serialize)]
pub struct Row {
    pub content: String,
    /// Bytes that a byte of content became.
    pub size: f64,
    pub ours_bytes_per_second: f64,
    pub peer_bytes_per_second: f64,
    /// Our speed by the peer's: the median of the rounds' own, and its spread.
    pub ratio: f64,
    pub ratio_least: f64,
    pub ratio_most: f64,
}

impl Row {
    /// From our and the peer's time for `bytes`, which took turns.
    pub fn new(content: &str, size: f64, bytes: u64, rounds: &[(Duration, Duration)]) -> Self {
        let speed = |time: &Duration| bytes as f64 / time.as_secs_f64();
        let ratios = sorted(rounds.iter().map(|(ours, peer)| speed(ours) / speed(peer)));
        Self {
            content: content.to_owned(),
            size,
            ours_bytes_per_second: middle(&sorted(rounds.iter().map(|(ours, _)| speed(ours)))),
            peer_bytes_per_second: middle(&sorted(rounds.iter().map(|(_, peer)| speed(peer)))),
            ratio: middle(&ratios),
            ratio_least: ratios.first().copied().unwrap_or(f64::NAN),
            ratio_most: ratios.last().copied().unwrap_or(f64::NAN),
        }
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The median; of an even number, the upper one.
fn middle(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Lines for people.
pub fn print_table(rows: &[Row]) {
    println!("content   size  ours MB/s  peer MB/s  ratio  spread");
    for row in rows {
        let (ours, peer) = (row.ours_bytes_per_second / 1e6, row.peer_bytes_per_second / 1e6);
        let Row { content, size, ratio, ratio_least, ratio_most, .. } = row;
        print!("{content:<8}  {size:.2}  {ours:>9.0}  {peer:>9.0}  {ratio:>5.2}  ");
        println!("{ratio_least:.2} to {ratio_most:.2}");
    }
}

#[test]
fn the_ratio_is_that_of_each_round() {
    let second = Duration::from_secs(1);
    let rounds = [(second, second), (second * 4, second * 2), (second * 5, second)];
    let row = Row::new("x", 1.0, 1_000_000, &rounds);
    let speeds = (row.ours_bytes_per_second, row.peer_bytes_per_second);
    assert_eq!(speeds, (250_000.0, 1_000_000.0));
    assert_eq!((row.ratio, row.ratio_least, row.ratio_most), (0.5, 0.2, 1.0));
}
