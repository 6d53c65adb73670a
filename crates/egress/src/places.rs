//! How many connections each sandbox, each account and all together may have at
//! once, so that none has it all and the API keeps descriptors of its own.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

/// Most places at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Most {
    /// Of each sandbox.
    pub(crate) sandbox: u32,
    /// Of all sandboxes of one account.
    pub(crate) account: u32,
    /// Of all together.
    pub(crate) all: u32,
}

impl Most {
    /// What this process can carry: a connection takes two descriptors, and a
    /// quarter of them is not for sandboxes.
    pub(crate) fn by_descriptors() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
        let all = u32::try_from(limit * 3 / 4 / 2).unwrap_or(u32::MAX).max(4);
        Self { sandbox: (all / 4).clamp(1, 2048), account: (all / 2).max(1), all }
    }
}

/// Places of all sandboxes.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    most: Most,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: u32,
    sandboxes: HashMap<Ipv4Addr, u32>,
    accounts: HashMap<Arc<str>, u32>,
}

/// A place that somebody has, until this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    sandbox: Ipv4Addr,
    account: Arc<str>,
}

impl Place {
    /// One more for the same sandbox, if it may have it.
    pub(crate) fn another(&self) -> Option<Self> {
        self.places.take(self.sandbox, &self.account)
    }
}

impl Places {
    pub(crate) fn new(most: Most) -> Self {
        Self { most, taken: Arc::default() }
    }

    /// A place for the sandbox, unless it, its account or all have all they may.
    pub(crate) fn take(&self, sandbox: Ipv4Addr, account: &Arc<str>) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_sandbox = taken.sandboxes.get(&sandbox).copied().unwrap_or(0);
        let of_account = taken.accounts.get(account).copied().unwrap_or(0);
        if of_sandbox >= self.most.sandbox || of_account >= self.most.account || taken.all >= self.most.all {
            return None;
        }
        taken.sandboxes.insert(sandbox, of_sandbox + 1);
        taken.accounts.insert(account.clone(), of_account + 1);
        taken.all += 1;
        Some(Place { places: self.clone(), sandbox, account: account.clone() })
    }
}

fn give_back<K: Eq + Hash>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        give_back(&mut taken.sandboxes, &self.sandbox);
        give_back(&mut taken.accounts, &self.account);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_and_all_have_theirs() {
        let places = Places::new(Most { sandbox: 2, account: 3, all: 4 });
        let [one, two, three] = [1, 2, 3].map(|last| Ipv4Addr::new(10, 0, 0, last));
        let [a, b]: [Arc<str>; 2] = ["a".into(), "b".into()];
        let first = places.take(one, &a).unwrap();
        let _second = places.take(one, &a).unwrap();
        assert!(places.take(one, &a).is_none());
        let _third = places.take(two, &a).unwrap();
        assert!(places.take(two, &a).is_none(), "the account has more than its places");
        let _fourth = places.take(three, &b).unwrap();
        assert!(places.take(three, &b).is_none(), "all have more than there are");
        drop(first);
        assert!(places.take(three, &b).is_some());
        drop((_second, _third, _fourth));
        let taken = places.taken.lock().unwrap();
        assert!(taken.sandboxes.is_empty() && taken.accounts.is_empty() && taken.all == 0);
    }
}
