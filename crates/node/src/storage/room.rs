//! Room: what is promised is there. Decisions only; [`super::Storage`] acts.
//!
//! ```text
//!  host's file system
//!  ├─ dormouse.db      with room beyond its end, which is nobody else's
//!  ├─ kept back        never taken by the pool
//!  └─ pool.img         allocated, not sparse; grows ahead of need
//!       ├─ cap         what everything in the pool may use together
//!       │   └─ limits of the single sandboxes
//!       └─ headroom    for the file system itself: deleting takes room too
//! ```

/// Growth is not worth less than this, in bytes.
const LEAST_GROWTH: u64 = 256 << 20;

/// Sizes of the pool's image are multiples of this, in bytes.
const GRAIN: u64 = 64 << 20;

/// While less than this is left, nothing new is begun.
const LOW_WATER: u64 = 64 << 20;

/// What a full sandbox may write beyond its limit while it starts, in bytes:
/// overlayfs makes a work directory, which takes a few blocks of metadata, and
/// the kernel wants a multiple of that to be free.
pub(crate) const LIFT: u64 = 8 << 20;

/// Free bytes of the host's file system below which its operator is told.
const HOST_LOW: u64 = 16 << 20;

/// How room is dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Largest size of the pool's image.
    pub(crate) most: u64,
    /// Free bytes of the host's file system that the pool leaves alone.
    pub(crate) kept_back: u64,
}

/// A file system as it is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sight {
    /// Size.
    pub(crate) total: u64,
    /// Free bytes.
    pub(crate) free: u64,
}

impl Policy {
    /// A policy for a host whose file system has `host_total` bytes.
    pub(crate) fn new(most: u64, kept_back: Option<u64>, host_total: u64) -> Self {
        let usual = (host_total / 20).clamp(256 << 20, 4 << 30);
        Self { most, kept_back: kept_back.unwrap_or(usual) }
    }

    /// Bytes by which the image grows at once, which is also what is kept free
    /// in it: a writer must not be faster than the growth.
    pub(crate) fn step(&self) -> u64 {
        (self.most / 16).clamp(1 << 30, 4 << 30)
    }

    /// Size of a new image; `None`: the host has no room for one.
    pub(crate) fn first_size(&self, host: Sight) -> Option<u64> {
        let wanted = self.most.min(self.step().max(2 << 30));
        let there = host.free.saturating_sub(self.kept_back) / GRAIN * GRAIN;
        let size = wanted.min(there);
        (size >= wanted.min(2 * LEAST_GROWTH)).then_some(size)
    }

    /// Next size of an image of `size` bytes, if it should grow now and can.
    pub(crate) fn growth(&self, size: u64, pool: Sight, host: Sight) -> Option<u64> {
        if pool.free >= self.step() {
            return None;
        }
        let missing = self.most.saturating_sub(size);
        let there = host.free.saturating_sub(self.kept_back) / GRAIN * GRAIN;
        let by = self.step().min(missing).min(there);
        (by > 0 && by >= LEAST_GROWTH.min(missing)).then_some(size + by)
    }
}

/// What a file system of `total` bytes needs for itself.
pub(crate) fn headroom(total: u64) -> u64 {
    (total / 16).clamp(96 << 20, 2 << 30)
}

/// What everything in the pool may use together, when it uses `used` now.
pub(crate) fn cap(pool: Sight, used: u64) -> u64 {
    (used + pool.free).saturating_sub(headroom(pool.total))
}

/// Bytes that sandboxes may still write.
pub(crate) fn left(pool: Sight) -> u64 {
    pool.free.saturating_sub(headroom(pool.total))
}

/// Whether something new may begin with `left` bytes to write.
pub(crate) fn admits(left: u64) -> bool {
    left >= LOW_WATER
}

/// Whether a host with `free` bytes should be looked at by its operator.
pub(crate) fn host_is_full(free: u64) -> bool {
    free < HOST_LOW
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_pool_grows_ahead_of_need_and_leaves_the_host_its_part() {
        let policy = Policy::new(64 * GIB, None, 100 * GIB);
        assert_eq!((policy.step(), policy.kept_back), (4 * GIB, 4 * GIB));
        let host = Sight { total: 100 * GIB, free: 50 * GIB };
        assert_eq!(policy.first_size(host), Some(4 * GIB));
        let pool = Sight { total: 4 * GIB, free: 3 * GIB };
        assert_eq!(policy.growth(4 * GIB, pool, host), Some(8 * GIB));
        assert_eq!(policy.growth(64 * GIB, pool, host), None, "as large as it may be");
        assert_eq!(policy.growth(4 * GIB, pool, Sight { free: 4 * GIB + (100 << 20), ..host }), None);
        let tight = Sight { free: 5 * GIB, ..host };
        assert_eq!(policy.growth(4 * GIB, pool, tight), Some(5 * GIB), "a part of a step");
        let small = Policy::new(64 * GIB, None, 4 * GIB);
        assert_eq!(small.kept_back, 256 << 20);
        assert_eq!(small.first_size(Sight { total: 4 * GIB, free: 200 << 20 }), None);
    }

    proptest! {
        #[test]
        fn what_is_kept_back_stays(
            most in 1_u64..256, size in 0_u64..256, host in 0_u64..512, kept in 0_u64..64, free in 0_u64..8,
        ) {
            let policy = Policy { most: most * GIB, kept_back: kept * GIB };
            let (pool, host) =
                (Sight { total: size * GIB, free: free * GIB }, Sight { total: 512 * GIB, free: host * GIB });
            if let Some(next) = policy.growth(size * GIB, pool, host) {
                let by = next - size * GIB;
                prop_assert!(by > 0 && next <= policy.most.max(size * GIB));
                prop_assert!(host.free - by >= policy.kept_back);
            }
            if let Some(first) = policy.first_size(host) {
                prop_assert!(first > 0 && first <= policy.most && host.free - first >= policy.kept_back);
            }
        }

        #[test]
        fn a_cap_leaves_the_headroom(total in 1_u64..4096, used in 0_u64..4096, free in 0_u64..4096) {
            let pool = Sight { total: total << 28, free: (free << 20).min(total << 28) };
            let cap = cap(pool, used << 20);
            prop_assert!(cap <= (used << 20) + pool.free);
            prop_assert!(pool.free < headroom(pool.total) || cap >= used << 20);
        }
    }
}
