//! How long to wait before an attempt is repeated.

use std::time::Duration;

/// Doubles from `first` to `most`, and takes a random part of the upper half
/// away: those that failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// At most.
    pub most: Duration,
}

impl Backoff {
    /// The wait after so many failures, of which the first is 1. `chance`: a
    /// random number.
    #[must_use]
    pub fn after(self, failures: u32, chance: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let whole = self.first.saturating_mul(1 << doublings).min(self.most);
        whole - (whole / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_grow_within_bounds(failures in 1_u32..100, chance in any::<u32>()) {
            let backoff = Backoff { first: Duration::from_secs(1), most: Duration::from_secs(300) };
            let wait = backoff.after(failures, chance);
            let whole = backoff.after(failures, 0);
            prop_assert!(wait <= whole && wait >= whole / 2 && whole <= backoff.most);
            prop_assert!(backoff.after(failures + 1, 0) >= whole);
        }
    }
}
