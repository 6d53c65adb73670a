//! Table `leases`: what one server at a time may do.

use dormouse_types::{HostId, LeaseId, Timestamp};

use crate::db::Db;
use crate::error::Result;

impl Db {
    /// Takes the lease `name` until `ends_at`, unless somebody holds it whose
    /// time is not over at `now`; whether it was taken.
    pub async fn take_lease(
        &self,
        name: &str,
        host: &HostId,
        holder: &LeaseId,
        now: Timestamp,
        ends_at: Timestamp,
    ) -> Result<bool> {
        let taken = self
            .change(
                format!("take lease {name}"),
                "INSERT INTO leases (name, host_id, holder, ends_at) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (name) DO UPDATE SET host_id = excluded.host_id, holder = excluded.holder,
                   ends_at = excluded.ends_at WHERE leases.ends_at <= $5",
            )
            .bind(name.to_owned())
            .bind(host)
            .bind(holder)
            .bind(ends_at)
            .bind(now)
            .execute()
            .await?;
        Ok(taken > 0)
    }

    /// Holds a lease longer. `false`: it is somebody else's by now.
    pub async fn renew_lease(&self, name: &str, holder: &LeaseId, ends_at: Timestamp) -> Result<bool> {
        let renewed = self
            .change(
                format!("renew lease {name}"),
                "UPDATE leases SET ends_at = $1 WHERE name = $2 AND holder = $3",
            )
            .bind(ends_at)
            .bind(name.to_owned())
            .bind(holder)
            .execute()
            .await?;
        Ok(renewed > 0)
    }

    /// Gives a lease back, if it is still the holder's.
    pub async fn release_lease(&self, name: &str, holder: &LeaseId) -> Result<()> {
        self.change(format!("release lease {name}"), "DELETE FROM leases WHERE name = $1 AND holder = $2")
            .bind(name.to_owned())
            .bind(holder)
            .execute()
            .await
            .map(drop)
    }

    /// Gives back what an earlier server of this host held when it died, and
    /// what nobody released in time.
    pub async fn clear_leases(&self, host: &HostId, now: Timestamp) -> Result<u64> {
        let cleared = self
            .change(
                format!("clear the leases of {host}"),
                "DELETE FROM leases WHERE host_id = $1 OR ends_at <= $2",
            )
            .bind(host)
            .bind(now)
            .execute()
            .await?;
        Ok(cleared)
    }
}
