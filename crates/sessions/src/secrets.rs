//! Secrets of organizations: what a name, a host and a value may be. A sandbox of a
//! member with a repository that the organization claims has a placeholder in its
//! environment (`DORMOUSE_SECRET_NAME`), which the proxy swaps for the secret in one
//! header of requests to those hosts.

use dormouse_provider::{Action, CustomPolicy, DomainPolicy, NetworkPolicy, Rule, Swap};
use dormouse_store::SecretRow;
use dormouse_types::{AccountId, OrgId, Timestamp, hex};

use crate::Sessions;
use crate::error::{Result, SessionError};

/// Longest name, in bytes.
const MAX_NAME: usize = 64;

/// Shortest value, in bytes: a shorter one could not be told from other text where an
/// answer repeats it.
const MIN_VALUE: usize = 8;

/// Most hosts of one secret.
const MAX_HOSTS: usize = 20;

/// A secret that somebody wants to have.
#[derive(Clone)]
pub struct NewSecret {
    /// Its name: capital letters, digits and underscores.
    pub name: String,
    /// Hosts that it is for; `*.` at the beginning stands for any subdomain.
    pub hosts: Vec<String>,
    /// Header in which it goes there.
    pub header: String,
    /// The secret.
    pub value: String,
}

impl std::fmt::Debug for NewSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewSecret({})", self.name)
    }
}

impl NewSecret {
    /// The row of the secret, with a placeholder of its own.
    ///
    /// # Errors
    /// A sentence that names what is wrong and does not repeat the value.
    pub fn row(self, org_id: OrgId, now: Timestamp) -> std::result::Result<SecretRow, String> {
        let Self { name, hosts, header, value } = self;
        let letter = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_uppercase());
        if !begins || name.len() > MAX_NAME || !name.bytes().all(letter) {
            return Err(format!(
                "name: has 1 to {MAX_NAME} capital letters, digits and underscores, a letter first"
            ));
        }
        if hosts.is_empty() || hosts.len() > MAX_HOSTS {
            return Err(format!("hosts: from 1 to {MAX_HOSTS}"));
        }
        if hosts.iter().any(|host| host == "*") {
            return Err("hosts: a secret is not for every host".to_owned());
        }
        if value.len() < MIN_VALUE {
            return Err(format!("value: has at least {MIN_VALUE} characters"));
        }
        let mut bytes = [0_u8; 16];
        getrandom::fill(&mut bytes).map_err(|_| "no placeholder could be made; try again".to_owned())?;
        let placeholder = format!("dm_placeholder_{}", hex(&bytes));
        let secret = Some(value.clone());
        let swap = Swap { header: header.clone(), placeholder: placeholder.clone(), secret };
        let rules = vec![Rule { matches: None, action: Action::Swap(swap) }];
        let domain = |host: &String| DomainPolicy { domain: host.clone(), rules: rules.clone() };
        let domains = hosts.iter().map(domain).collect();
        let policy = NetworkPolicy::Custom(CustomPolicy { domains, ..CustomPolicy::default() });
        policy.check().map_err(|error| error.replacen("allow", "hosts", 1))?;
        let hosts = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        Ok(SecretRow { org_id, name, hosts, header, placeholder, value, created_at: now, updated_at: now })
    }
}

impl Sessions {
    /// The organization of that id or name, if the account is a member.
    async fn organization(&self, account: &AccountId, org: &str) -> Result<OrgId> {
        let found = self.db.org_of_member(account, org).await?;
        found.map(|row| row.id).ok_or(SessionError::NoSuchOrganization)
    }

    /// Secrets of an organization, to be shown without their values.
    pub async fn secrets(&self, account: &AccountId, org: &str) -> Result<Vec<SecretRow>> {
        Ok(self.db.secrets_of(&self.organization(account, org).await?).await?)
    }

    /// Sets a secret; sandboxes that run get its value at their next wake, or within
    /// minutes.
    ///
    /// # Errors
    /// [`SessionError::Secret`] for one that cannot be.
    pub async fn set_secret(&self, account: &AccountId, org: &str, secret: NewSecret) -> Result<()> {
        let org = self.organization(account, org).await?;
        let row = secret.row(org, self.now()).map_err(SessionError::Secret)?;
        Ok(self.db.set_secret(&row).await?)
    }

    /// Forgets a secret; tells whether there was one.
    pub async fn delete_secret(&self, account: &AccountId, org: &str, name: &str) -> Result<bool> {
        let org = self.organization(account, org).await?;
        Ok(self.db.delete_secret(&org, name).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, host: &str, header: &str, value: &str) -> NewSecret {
        let own = str::to_owned;
        NewSecret { name: own(name), hosts: vec![own(host)], header: own(header), value: own(value) }
    }

    #[test]
    fn what_a_secret_may_be() {
        let row = |secret: NewSecret| secret.row(OrgId::generate(), Timestamp(1));
        let good = row(secret("OPENAI_KEY", "*.Example.test", "authorization", "s3cret-s3cret")).unwrap();
        assert_eq!(good.hosts, ["*.example.test"]);
        assert!(good.placeholder.len() > 30 && !format!("{good:?}").contains("s3cret"));
        for (field, bad) in [
            ("name", secret("openai", "a.test", "x", "s3cret-s3cret")),
            ("name", secret("_A", "a.test", "x", "s3cret-s3cret")),
            ("name", secret("", "a.test", "x", "s3cret-s3cret")),
            ("hosts", secret("A", "*", "x", "s3cret-s3cret")),
            ("hosts", secret("A", "a b", "x", "s3cret-s3cret")),
            ("header", secret("A", "a.test", "host", "s3cret-s3cret")),
            ("header", secret("A", "a.test", "x", "s3cret\ns3cret")),
            ("value", secret("A", "a.test", "x", "short")),
        ] {
            let error = row(bad).unwrap_err();
            assert!(error.contains(field) && !error.contains("s3cret"), "{error}");
        }
    }
}
