//! How many requests a caller may make: each account so many a second, with a
//! burst on top, and each address so many that fail to say who calls. Counted on
//! each server by itself.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dormouse_types::AccountId;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

/// Requests between two looks at which callers are forgotten.
const TIDY_EVERY: u32 = 4096;

/// The rates in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RatesConfig {
    /// Requests a second of one account.
    pub per_second: NonZeroU32,
    /// Requests that it may make at once.
    pub burst: NonZeroU32,
    /// Requests a second of one address that fail to say who calls.
    pub strangers_per_second: NonZeroU32,
}

/// Who has made how many.
#[derive(Debug, Clone)]
pub(crate) struct Rates(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    accounts: DefaultKeyedRateLimiter<AccountId>,
    strangers: DefaultKeyedRateLimiter<Option<IpAddr>>,
    clock: DefaultClock,
    since_tidied: AtomicU32,
}

impl Rates {
    pub(crate) fn new(config: RatesConfig) -> Self {
        let accounts = Quota::per_second(config.per_second).allow_burst(config.burst);
        let strangers = Quota::per_second(config.strangers_per_second);
        Self(Arc::new(Inner {
            accounts: RateLimiter::keyed(accounts),
            strangers: RateLimiter::keyed(strangers),
            clock: DefaultClock::default(),
            since_tidied: AtomicU32::new(0),
        }))
    }

    /// Counts a request of an account.
    ///
    /// # Errors
    /// How long to wait, when it is one too many.
    pub(crate) fn of_account(&self, account: &AccountId) -> Result<(), Duration> {
        self.tidy();
        let inner = &*self.0;
        inner.accounts.check_key(account).map_err(|not_until| not_until.wait_time_from(inner.clock.now()))
    }

    /// Counts a request of nobody knows whom.
    ///
    /// # Errors
    /// How long to wait, when it is one too many.
    pub(crate) fn of_stranger(&self, peer: Option<IpAddr>) -> Result<(), Duration> {
        self.tidy();
        let inner = &*self.0;
        inner.strangers.check_key(&peer).map_err(|not_until| not_until.wait_time_from(inner.clock.now()))
    }

    /// Forgets, now and then, who has not called for long.
    fn tidy(&self) {
        if self.0.since_tidied.fetch_add(1, Ordering::Relaxed) >= TIDY_EVERY {
            self.0.since_tidied.store(0, Ordering::Relaxed);
            self.0.accounts.retain_recent();
            self.0.strangers.retain_recent();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_rate() {
        let number = |n| NonZeroU32::new(n).unwrap();
        let config = RatesConfig { per_second: number(1), burst: number(3), strangers_per_second: number(1) };
        let rates = Rates::new(config);
        let (one, other) = (AccountId::generate(), AccountId::generate());
        for _ in 0..3 {
            rates.of_account(&one).unwrap();
        }
        assert!(rates.of_account(&one).unwrap_err() <= Duration::from_secs(1));
        rates.of_account(&other).unwrap();
        let peer = Some("192.0.2.1".parse().unwrap());
        rates.of_stranger(peer).unwrap();
        rates.of_stranger(peer).unwrap_err();
        rates.of_stranger(None).unwrap();
    }
}
