//! Times and sizes as people write them: `5s`, `1h`, `64MiB`, and RFC 3339 in UTC. Nothing is
//! guessed: a number without its unit is an error, but for plain bytes.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A length of time, written with its unit: `500ms`, `5s`, `10m`, `1h`, `30d`, `0s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

/// A number of bytes, written `65536`, `64KiB`, `64MiB`, `4GiB` or `1TiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(pub u64);

/// A moment, in UTC; JSON and text show it as RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UtcTime(jiff::Timestamp);

/// What is wrong with a time or size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a length of time.
    #[error(
        "{text:?} is not a length of time: write a number and ms, s, m, h or d, as in 5s or 30d"
    )]
    Span {
        /// What was given.
        text: String,
    },
    /// Not a size.
    #[error(
        "{text:?} is not a size: write whole bytes, or a whole number and KiB, MiB, GiB or TiB"
    )]
    Size {
        /// What was given.
        text: String,
    },
}

const SPAN_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(word, _)| *word == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &SPAN_UNITS)
            .map(|milliseconds| Self(Duration::from_millis(milliseconds)))
            .ok_or_else(|| UnitError::Span { text: text.to_owned() })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (unit, factor) = SPAN_UNITS
            .iter()
            .skip(1)
            .rev()
            .find(|(_, factor)| milliseconds >= *factor && milliseconds.is_multiple_of(*factor))
            .unwrap_or(if milliseconds == 0 { &SPAN_UNITS[1] } else { &SPAN_UNITS[0] });
        write!(out, "{}{unit}", milliseconds / factor)
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &SIZE_UNITS).map(Self).ok_or_else(|| UnitError::Size { text: text.to_owned() })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fitting = SIZE_UNITS
            .iter()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        let (unit, factor) = fitting.unwrap_or(&("", 1));
        write!(out, "{}{unit}", self.0 / factor)
    }
}

macro_rules! as_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = UnitError;
            fn try_from(text: String) -> Result<Self, UnitError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}

as_text!(Span);
as_text!(Size);

impl UtcTime {
    /// Now, by this machine's wall clock.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now())
    }

    /// A log's wall clock: nanoseconds since 1970-01-01T00:00:00Z.
    pub fn from_nanoseconds(nanoseconds: u64) -> Self {
        let time = jiff::Timestamp::from_nanosecond(i128::from(nanoseconds));
        Self(time.expect("2^64 ns after 1970 lie in the year 2554, which a timestamp holds"))
    }
}

impl fmt::Display for UtcTime {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spans_need_their_unit() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("5s", 5_000),
            ("10m", 600_000),
            ("1h", 3_600_000),
            ("30d", 2_592_000_000),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.0.as_millis(), milliseconds);
            assert_eq!(span.to_string(), text);
        }
        assert_eq!("0s".parse::<Span>().unwrap().to_string(), "0s");
        for bad in [
            "",
            "5",
            "s",
            "-5s",
            "1.5h",
            "5 s",
            "5S",
            "1w",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            let error = bad.parse::<Span>().unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")) && error.contains("5s or 30d"), "{error}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_binary_units() {
        for (text, bytes) in [("0", 0), ("512", 512), ("64MiB", 64 << 20), ("1TiB", 1 << 40)] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, text));
        }
        for bad in ["", "MiB", "64MB", "64mib", "64 MiB", "1.5GiB", "-1", "99999999999TiB"] {
            assert!(bad.parse::<Size>().unwrap_err().to_string().contains("KiB, MiB"), "{bad}");
        }
    }

    #[test]
    fn times_are_rfc_3339_in_utc() {
        let time = UtcTime::from_nanoseconds(1_700_000_000_250_000_000);
        assert_eq!(serde_json::to_string(&time).unwrap(), "\"2023-11-14T22:13:20.25Z\"");
        assert_eq!(time.to_string(), "2023-11-14T22:13:20.25Z");
        assert_eq!(
            UtcTime::from_nanoseconds(u64::MAX).to_string(),
            "2554-07-21T23:34:33.709551615Z"
        );
    }

    proptest! {
        #[test]
        fn what_is_shown_parses_back(number in any::<u32>(), shift in 0_u32..20) {
            let size = Size(u64::from(number) << shift);
            prop_assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
            let span = Span(Duration::from_millis(u64::from(number) * u64::from(shift)));
            prop_assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
        }
    }
}
