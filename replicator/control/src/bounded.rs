//! Options that cannot have just any size or time: what is of these types is possible. A wrong one
//! is an error where it is written, on the command line or in a file's line.

use crate::units::{Size, Span, UnitError};
use serde::Deserialize;
use std::str::FromStr;
use std::time::Duration;

/// Smaller rings lose writes at every hiccup; larger ones are not memory well spent.
const RING_LIMITS: (Size, Size) = (Size(1 << 20), Size(1 << 30));
/// A few of the largest frames at least.
const WINDOW_LIMITS: (Size, Size) = (Size(4 << 20), Size(1 << 30));

/// Memory between kernel and agent: a power of two from 1MiB to 1GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Size")]
pub struct RingSize(u64);

/// Memory for what is sent and not acknowledged: 4MiB to 1GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Size")]
pub struct WindowSize(u64);

/// A length of time of so many milliseconds at least; a shorter one is the named error.
macro_rules! some_time {
    ($(#[$doc:meta])* $name:ident, $least:literal, $short:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
        #[serde(try_from = "Span")]
        pub struct $name(Duration);

        impl $name {
            /// Its length.
            pub fn duration(self) -> Duration {
                self.0
            }
        }

        impl TryFrom<Span> for $name {
            type Error = BoundError;

            fn try_from(span: Span) -> Result<Self, BoundError> {
                match span.0 < Duration::from_millis($least) {
                    true => Err(BoundError::$short),
                    false => Ok(Self(span.0)),
                }
            }
        }

        impl FromStr for $name {
            type Err = BoundError;

            fn from_str(text: &str) -> Result<Self, BoundError> {
                text.parse::<Span>()?.try_into()
            }
        }
    };
}

some_time!(
    /// Time between two recovery points.
    PointInterval,
    1,
    NoInterval
);
some_time!(
    /// How long recovery points are kept.
    KeepTime,
    1,
    NoKeep
);
some_time!(
    /// How long a token can be used.
    TokenLife,
    1000,
    ShortLife
);

/// What is wrong with such an option.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoundError {
    /// It is no size or time at all.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// The kernel's ring buffers are powers of two.
    #[error("a ring of {size} is not possible: give a power of two, such as 64MiB")]
    NoPowerOfTwo {
        /// What was given.
        size: Size,
    },
    /// Out of its bounds.
    #[error("{size} is not possible: give {least} to {most}")]
    OutOfBounds {
        /// What was given.
        size: Size,
        /// The least.
        least: Size,
        /// The most.
        most: Size,
    },
    /// Points without pause.
    #[error("points cannot be taken every 0s: give a longer time, such as 5s")]
    NoInterval,
    /// Points that are gone when they are made.
    #[error("points that are kept for 0s are none to go back to: give a longer time, such as 1h")]
    NoKeep,
    /// A token that is expired when it is made, or before anybody could use it.
    #[error("a token that expires within a second lets no machine join: give more, such as 1h")]
    ShortLife,
}

impl RingSize {
    /// Its bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl WindowSize {
    /// Its bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

fn within(size: Size, (least, most): (Size, Size)) -> Result<u64, BoundError> {
    match (least..=most).contains(&size) {
        true => Ok(size.0),
        false => Err(BoundError::OutOfBounds { size, least, most }),
    }
}

impl TryFrom<Size> for RingSize {
    type Error = BoundError;

    fn try_from(size: Size) -> Result<Self, BoundError> {
        match size.0.is_power_of_two() {
            true => within(size, RING_LIMITS).map(Self),
            false => Err(BoundError::NoPowerOfTwo { size }),
        }
    }
}

impl TryFrom<Size> for WindowSize {
    type Error = BoundError;

    fn try_from(size: Size) -> Result<Self, BoundError> {
        within(size, WINDOW_LIMITS).map(Self)
    }
}

impl FromStr for RingSize {
    type Err = BoundError;

    fn from_str(text: &str) -> Result<Self, BoundError> {
        text.parse::<Size>()?.try_into()
    }
}

impl FromStr for WindowSize {
    type Err = BoundError;

    fn from_str(text: &str) -> Result<Self, BoundError> {
        text.parse::<Size>()?.try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error<T: FromStr<Err = BoundError>>(text: &str) -> String {
        text.parse::<T>().err().unwrap().to_string()
    }

    #[test]
    fn what_is_possible_keeps_its_value() {
        assert_eq!("64MiB".parse::<RingSize>().unwrap().bytes(), 64 << 20);
        assert_eq!("5MiB".parse::<WindowSize>().unwrap().bytes(), 5 << 20);
        assert_eq!("1ms".parse::<PointInterval>().unwrap().duration().as_millis(), 1);
    }

    #[test]
    fn what_is_not_possible_says_what_is() {
        for (text, says) in
            [("48MiB", "power of two"), ("4KiB", "1MiB to 1GiB"), ("2GiB", "1MiB to 1GiB")]
        {
            assert!(error::<RingSize>(text).contains(says), "{text}");
        }
        assert!(error::<RingSize>("big").contains("not a size"));
        assert!(error::<WindowSize>("1MiB").contains("4MiB to 1GiB"));
        assert!(error::<PointInterval>("0s").contains("such as 5s"));
        assert!(error::<PointInterval>("5").contains("length of time"));
        assert!(error::<KeepTime>("0d").contains("kept for 0s"));
        assert!(error::<TokenLife>("999ms").contains("lets no machine join"));
    }
}
