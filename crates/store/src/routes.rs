//! Table `routes`: the ports of sandboxes, each with the name that reaches it.

use dormouse_types::SandboxId;

use crate::db::{Db, Tx};
use crate::error::Result;

/// A port of a sandbox and the name that reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRow {
    /// First label of the host name; unique.
    pub subdomain: String,
    /// Port inside.
    pub port: u16,
}

/// Adds routes; a port that has one keeps its name.
pub(crate) async fn put(tx: &mut Tx, id: &SandboxId, routes: &[RouteRow]) -> Result<()> {
    for route in routes {
        tx.sql(
            format!("route to {id}"),
            "INSERT INTO routes (subdomain, sandbox_id, port) VALUES ($1, $2, $3)
             ON CONFLICT (sandbox_id, port) DO NOTHING",
        )
        .bind(&route.subdomain)
        .bind(id)
        .bind(i64::from(route.port))
        .execute()
        .await?;
    }
    Ok(())
}

/// Has a sandbox have these routes and no others; a port that stays keeps its
/// name.
pub(crate) async fn replace(tx: &mut Tx, id: &SandboxId, routes: &[RouteRow]) -> Result<()> {
    let there: Vec<i64> = tx
        .sql(format!("read routes of {id}"), "SELECT port FROM routes WHERE sandbox_id = $1")
        .bind(id)
        .all(|row| row.of("routes", "").get("port"))
        .await?;
    for port in there.into_iter().filter(|port| !routes.iter().any(|route| i64::from(route.port) == *port)) {
        tx.sql(format!("drop a route of {id}"), "DELETE FROM routes WHERE sandbox_id = $1 AND port = $2")
            .bind(id)
            .bind(port)
            .execute()
            .await?;
    }
    put(tx, id, routes).await
}

impl Db {
    /// Routes of a sandbox, by port.
    pub async fn routes_of(&self, id: &SandboxId) -> Result<Vec<RouteRow>> {
        self.sql(
            format!("read routes of {id}"),
            "SELECT subdomain, port FROM routes WHERE sandbox_id = $1 ORDER BY port",
        )
        .bind(id)
        .all(|row| {
            let row = row.of("routes", "");
            Ok(RouteRow { subdomain: row.get("subdomain")?, port: row.number("port")? })
        })
        .await
    }
}
