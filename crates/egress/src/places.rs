//! How much of a shared listener each sandbox may have at once, so that none
//! has it all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Places of all sandboxes at one listener.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// Of each sandbox.
    each: u32,
    /// Of all together.
    all: u32,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: u32,
    of: HashMap<IpAddr, u32>,
}

/// A place that somebody has, until this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    taken: Arc<Mutex<Taken>>,
    source: IpAddr,
}

impl Places {
    pub(crate) fn new(each: u32, all: u32) -> Self {
        Self { each, all, taken: Arc::default() }
    }

    /// A place for the sandbox at `source`, unless it has all of its own, or
    /// there is none left.
    pub(crate) fn take(&self, source: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of = taken.of.get(&source).copied().unwrap_or(0);
        if of >= self.each || taken.all >= self.all {
            return None;
        }
        taken.of.insert(source, of + 1);
        taken.all += 1;
        Some(Place { taken: self.taken.clone(), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(of) = taken.of.get_mut(&self.source) {
            *of -= 1;
            if *of == 0 {
                taken.of.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Places;

    #[test]
    fn one_has_its_own_and_all_have_theirs() {
        let places = Places::new(2, 3);
        let [one, other] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(std::net::IpAddr::from);
        let (first, second) = (places.take(one).unwrap(), places.take(one).unwrap());
        assert!(places.take(one).is_none());
        let third = places.take(other).unwrap();
        assert!(places.take(other).is_none());
        drop(first);
        let fourth = places.take(other).unwrap();
        drop((second, third, fourth));
        let taken = places.taken.lock().unwrap();
        assert!(taken.of.is_empty() && taken.all == 0);
    }
}
