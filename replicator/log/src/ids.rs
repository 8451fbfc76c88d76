//! The names and numbers that every part shares: identities, positions, disks, times.
//! No behaviour beyond that.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! uuid_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize,
            Deserialize,
        )]
        #[serde(from = "uuid::Uuid", into = "uuid::Uuid")]
        pub struct $name(pub [u8; 16]);
        impl $name {
            /// A new one that no one else has (UUID version 4).
            pub fn random() -> Self {
                Self(uuid::Uuid::new_v4().into_bytes())
            }
        }
        impl From<uuid::Uuid> for $name {
            fn from(value: uuid::Uuid) -> Self {
                Self(value.into_bytes())
            }
        }
        impl From<$name> for uuid::Uuid {
            fn from(value: $name) -> Self {
                uuid::Uuid::from_bytes(value.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                uuid::Uuid::from(*self).fmt(out)
            }
        }
        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse::<uuid::Uuid>().map(Self::from)
            }
        }
    };
}

uuid_newtype!(
    /// A protected machine, for ever.
    MachineId
);
uuid_newtype!(
    /// One continuous log of a machine; new whenever continuity is lost for good.
    Generation
);
uuid_newtype!(
    /// A recovery point.
    PointId
);

macro_rules! number_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode,
            Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);
        impl $name {
            /// The one that follows.
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(out)
            }
        }
    };
}

number_newtype!(
    /// One run of the agent within a generation, handed out by the master target; later ones fence
    /// earlier ones.
    Incarnation
);
number_newtype!(
    /// Which side may write: failover gives the replica a new one.
    RoleEpoch
);
number_newtype!(
    /// A record's place in its machine's log: it only grows, the first record has 1, and 0 stands
    /// before all.
    Sequence
);
/// Bits of a sequence that count within one incarnation, so that no run's numbers are ever used by
/// another: a run may log 10^12 records, and a machine have 16 million runs.
const SEQUENCE_BITS: u32 = 40;

impl Incarnation {
    /// Every run stays below this: each of its numbers, and the one behind its last, then is a
    /// [`Sequence`].
    pub const LIMIT: Self = Self((1 << (u64::BITS - SEQUENCE_BITS)) - 1);

    /// The one that follows, while there is one: also of a number that somebody else has told.
    pub fn checked_next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self).filter(|next| *next < Self::LIMIT)
    }
}

impl Sequence {
    /// The first number of a run.
    pub const fn first_of(run: Incarnation) -> Self {
        Self((run.0 << SEQUENCE_BITS) + 1)
    }

    /// The run that gave a record this number.
    pub const fn run(self) -> Incarnation {
        Incarnation(self.0 >> SEQUENCE_BITS)
    }
}

number_newtype!(
    /// Nanoseconds since 1970-01-01T00:00:00Z by the writing machine's wall clock.
    WallTime
);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
/// A disk of a machine: below [`DiskIndex::LIMIT`].
#[derive(Encode, Decode, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskIndex(pub u8);

impl DiskIndex {
    /// Disks a machine may have: one bit each in a frame's [`DiskSet`].
    pub const LIMIT: u8 = 64;
}

impl fmt::Display for DiskIndex {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// A set of a machine's disks, one bit each.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct DiskSet(pub u64);

impl DiskSet {
    /// Adds a disk.
    pub fn insert(&mut self, disk: DiskIndex) {
        self.0 |= 1 << disk.0;
    }

    /// Takes a disk out.
    pub fn remove(&mut self, disk: DiskIndex) {
        self.0 &= !(1 << disk.0);
    }

    /// Whether the disk is in it.
    pub fn contains(self, disk: DiskIndex) -> bool {
        disk.0 < DiskIndex::LIMIT && self.0 & (1 << disk.0) != 0
    }

    /// Its disks, in order.
    pub fn iter(self) -> impl Iterator<Item = DiskIndex> {
        (0..DiskIndex::LIMIT).map(DiskIndex).filter(move |disk| self.contains(*disk))
    }

    /// Its disks that another does not hold.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether it holds no disk.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}
