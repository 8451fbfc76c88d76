//! Results on standard output: bytes, rates and times for people, JSON for programs. Text from
//! elsewhere never reaches a terminal with control characters in it.

use anyhow::Context;
use serde::Serialize;
use std::io::{self, Write};

/// Whether anyone reads our standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// It was taken.
    There,
    /// The pipe is closed, as by `redoubt points | head`. What the command did stands all the same,
    /// and so does its exit status.
    Gone,
}

/// Prints text as it is; that nobody reads it is no failure.
pub fn print(text: &str) -> anyhow::Result<()> {
    show(text).map(drop)
}

/// Prints text as it is, and says whether anyone read it.
pub fn show(text: &str) -> anyhow::Result<Reader> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(error).context("standard output cannot be written"),
    }
}

/// Prints one JSON value on one line.
pub fn print_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string(value)?))
}

/// Bytes for people: `512 B`, `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let (mut whole, mut tenths, mut unit) = (count, 0, 0);
    while whole >= 1024 {
        tenths = whole % 1024 * 10 / 1024;
        whole /= 1024;
        unit += 1;
    }
    format!("{whole}.{tenths} {}", UNITS[unit - 1])
}

/// A length of time for people: `5s`, `2m05s`, `1h02m`, `3d04h`.
pub fn seconds(count: u64) -> String {
    match count {
        0..60 => format!("{count}s"),
        60..3600 => format!("{}m{:02}s", count / 60, count % 60),
        3600..86_400 => format!("{}h{:02}m", count / 3600, count % 3600 / 60),
        _ => format!("{}d{:02}h", count / 86_400, count % 86_400 / 3600),
    }
}

/// Text without control characters.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A value, or `-` where there is none.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536 << 20, "1.5 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (count, text) in
            [(59, "59s"), (125, "2m05s"), (3720, "1h02m"), (3 * 86_400 + 4 * 3600, "3d04h")]
        {
            assert_eq!(seconds(count), text);
        }
    }

    #[test]
    fn labels_cannot_steer_a_terminal() {
        assert_eq!(harmless("a\x1b[2Jb\nü"), "a?[2Jb?ü");
    }
}
