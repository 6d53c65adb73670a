//! How a simulation holds the database in its hands: it says when something may
//! be done to it, and knows when that is over. A server has none of this.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;

/// Lives for as long as something is done to the database.
pub type Hold = Box<dyn Debug + Send + Sync>;

/// Decides when something is done.
pub trait Pace: Debug + Send + Sync + 'static {
    /// Returns when the next statement, or transaction, may begin; `what` it is.
    fn turn<'a>(&'a self, what: &'a str) -> Pin<Box<dyn Future<Output = Hold> + Send + 'a>>;

    /// Whether several servers are to be served, whatever the database is.
    fn is_shared(&self) -> bool;
}
