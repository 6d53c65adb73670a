//! What happens later: time, reconcilers, and jobs.
//!
//! A deadline lies on the row that it is about, and a reconciler ([`reconcile`])
//! deals with what is due. Work that takes time is a job ([`Jobs`]): a row with a
//! lease, which survives whoever works on it.

mod backoff;
mod clock;
mod jobs;
mod lease;
mod reconcile;

pub use backoff::Backoff;
pub use clock::Clock;
pub use jobs::{Claim, Handler, Jobs, Kind, Outcome};
pub use lease::keep_lease;
pub use reconcile::reconcile;
