//! How many may knock at once: so many in all, and few from one source, so that no stranger keeps
//! the others out. It counts, and knows no socket and no clock.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who may be let in and is not known yet. Each costs some 100 KiB at most: the state of TLS, and
/// what a stranger may send.
pub(crate) const PLACES: usize = 256;

/// Of these from one source: enough for the machines behind one NAT, which come again when they are
/// refused, and few enough that it takes some thirty networks to fill the house.
pub(crate) const PLACES_OF_A_SOURCE: usize = 8;

/// The places of a listener.
#[derive(Default)]
pub(crate) struct Door {
    inside: Mutex<HashMap<IpAddr, usize>>,
}

/// A place at the door, until it is dropped.
pub(crate) struct Place {
    door: Arc<Door>,
    source: IpAddr,
}

impl Door {
    /// A place for who comes from this address, if there is one.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let source = source_of(address);
        let mut inside = self.lock();
        let taken: usize = inside.values().sum();
        let own = inside.get(&source).copied().unwrap_or(0);
        if taken >= PLACES || own >= PLACES_OF_A_SOURCE {
            return None;
        }
        inside.insert(source, own + 1);
        Some(Place { door: self.clone(), source })
    }

    /// Counts, whole even if a holder of the lock has panicked.
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = self.door.lock();
        let own = inside.get_mut(&self.source).expect("a place is counted until it is dropped");
        *own -= 1;
        if *own == 0 {
            inside.remove(&self.source);
        }
    }
}

/// What counts as one source: an IPv4 address, or the 64 bits of an IPv6 address that name a
/// network, since whoever has one address of it has all.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: usize) -> IpAddr {
        IpAddr::from([10, 0, 0, u8::try_from(number).unwrap()])
    }

    #[test]
    fn one_source_takes_its_part_and_no_more() {
        let door = Arc::new(Door::default());
        let mut held: Vec<Place> =
            (0..PLACES_OF_A_SOURCE).map(|_| door.enter(source(1)).unwrap()).collect();
        assert!(door.enter(source(1)).is_none());
        held.push(door.enter(source(2)).unwrap());
        held.swap_remove(0);
        held.push(door.enter(source(1)).unwrap());
        assert!(door.enter(source(1)).is_none());
    }

    #[test]
    fn all_together_take_what_there_is_and_leave_it_again() {
        let door = Arc::new(Door::default());
        let sources = PLACES / PLACES_OF_A_SOURCE;
        let held: Vec<Place> =
            (0..PLACES).map(|number| door.enter(source(number % sources)).unwrap()).collect();
        assert!(door.enter(source(sources)).is_none());
        drop(held);
        assert!(door.lock().is_empty());
        assert!(door.enter(source(sources)).is_some());
    }

    #[test]
    fn a_network_is_one_source() {
        let same = |one: &str, other: &str| {
            source_of(one.parse().unwrap()) == source_of(other.parse().unwrap())
        };
        assert!(same("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:10.0.0.1", "10.0.0.1"));
        assert!(!same("10.0.0.1", "10.0.0.2"));
    }
}
