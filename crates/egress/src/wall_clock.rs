//! The time that others compare with their clocks: in certificates, tokens and the
//! access log. No decision of ours hangs on it, so no test moves it.

use std::time::{Duration, SystemTime};

#[expect(clippy::disallowed_methods, reason = "others have no other clock")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// Since 1970.
pub(crate) fn since_epoch() -> Duration {
    now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
