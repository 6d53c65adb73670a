//! Quotas that no row counts: creations by the minute, and commands at once. Each
//! server counts its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dormouse_provider::{ProviderError, Result};
use dormouse_types::{Quota, QuotaKind, Timestamp};

/// Owners of whom something is remembered before those are forgotten who used
/// nothing for [`WHILE`].
const MANY: usize = 4096;

/// By then a quota by the minute has run out, however much of it was used.
const WHILE: Duration = Duration::from_secs(60);

/// What was used lately, and is in use.
#[derive(Debug, Clone, Default)]
pub(crate) struct Used(Arc<Mutex<HashMap<String, Owner>>>);

#[derive(Debug, Default)]
struct Owner {
    /// Creations that count still, in thousandths, at `since`. They run out evenly.
    created: u64,
    since: Option<Timestamp>,
    commands: u64,
}

impl Owner {
    /// Has creations run out: `limit` of them in a minute.
    fn pass(&mut self, now: Timestamp, limit: u64) {
        let since = self.since.replace(now).unwrap_or(now);
        let passed = u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
        self.created = self.created.saturating_sub(passed.saturating_mul(limit) / 60);
    }
}

/// A command that counts as long as this lives.
#[derive(Debug)]
pub(crate) struct Counted {
    used: Used,
    owner: String,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.used.with(&self.owner, |owner| owner.commands = owner.commands.saturating_sub(1));
    }
}

impl Used {
    fn with<T>(&self, owner: &str, act: impl FnOnce(&mut Owner) -> T) -> T {
        // Numbers: a panic elsewhere cannot tear them.
        let mut owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        act(owners.entry(owner.to_owned()).or_default())
    }

    fn tidy(&self, now: Timestamp) {
        let mut owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if owners.len() > MANY {
            let created = |owner: &Owner| owner.since.is_some_and(|since| now.since(since) < WHILE);
            owners.retain(|_, owner| owner.commands > 0 || created(owner));
        }
    }

    /// Counts a creation.
    ///
    /// # Errors
    /// [`ProviderError::Quota`] when it is one too many.
    pub(crate) fn create(&self, owner: &str, quota: &Quota, now: Timestamp) -> Result<()> {
        let Some(limit) = quota.creations_per_minute else { return Ok(()) };
        self.tidy(now);
        self.with(owner, |owner| {
            owner.pass(now, limit);
            quota
                .check(QuotaKind::CreationsPerMinute, owner.created.div_ceil(1000), 1)
                .map_err(ProviderError::Quota)?;
            owner.created += 1000;
            Ok(())
        })
    }

    /// Counts a command, until the answer is dropped; `None`: nobody counts.
    ///
    /// # Errors
    /// As [`Used::create`].
    pub(crate) fn command(&self, owner: &str, quota: &Quota) -> Result<Option<Counted>> {
        if quota.commands.is_none() {
            return Ok(None);
        }
        self.with(owner, |owner| {
            quota.check(QuotaKind::Commands, owner.commands, 1).map_err(ProviderError::Quota)?;
            owner.commands += 1;
            Ok(())
        })?;
        Ok(Some(Counted { used: self.clone(), owner: owner.to_owned() }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dormouse_types::{Quota, Timestamp};

    use super::{MANY, Used, WHILE};

    #[test]
    fn who_used_nothing_for_a_while_is_forgotten() {
        let (used, now) = (Used::default(), Timestamp(1_000_000_000));
        let quota = Quota { creations_per_minute: Some(1), commands: Some(1), ..Quota::default() };
        let _command = used.command("busy", &quota).unwrap();
        for n in 0..MANY {
            used.create(&format!("owner {n}"), &quota, now).unwrap();
        }
        used.create("late", &quota, now.plus(WHILE / 2)).unwrap();
        used.create("later", &quota, now.plus(WHILE)).unwrap();
        let kept: std::collections::BTreeSet<_> = used.0.lock().unwrap().keys().cloned().collect();
        assert_eq!(kept, ["busy", "late", "later"].map(str::to_owned).into());
    }

    #[test]
    fn creations_run_out_evenly() {
        let (used, now) = (Used::default(), Timestamp(1_000_000_000));
        let quota = Quota { creations_per_minute: Some(6), ..Quota::default() };
        for _ in 0..6 {
            used.create("one", &quota, now).unwrap();
        }
        assert!(used.create("one", &quota, now).is_err());
        used.create("other", &quota, now).unwrap();
        assert!(used.create("one", &quota, now.plus(Duration::from_secs(9))).is_err());
        used.create("one", &quota, now.plus(Duration::from_secs(11))).unwrap();
        assert!(used.create("one", &quota, now.plus(Duration::from_secs(12))).is_err());
    }

    #[test]
    fn commands_count_while_they_run() {
        let used = Used::default();
        let quota = Quota { commands: Some(1), ..Quota::default() };
        let first = used.command("one", &quota).unwrap();
        assert!(used.command("one", &quota).is_err());
        assert!(used.command("other", &quota).unwrap().is_some());
        drop(first);
        assert!(used.command("one", &quota).unwrap().is_some());
        assert!(used.command("one", &Quota::default()).unwrap().is_none(), "nobody counts");
    }
}
