//! The service's GitHub token: who may use it, and the network policy that
//! sets it on requests, so that it never enters a sandbox (session contract,
//! section 8; design, "Who may read what").

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dormouse_provider::{Action, CustomPolicy, DomainPolicy, NetworkPolicy, Rule, RunRef, SandboxView};
use dormouse_types::{AccountId, GithubRepo, RepoAccess};

use crate::Sessions;
use crate::error::Result;

/// Hosts that take the token as a bearer token.
const API_HOSTS: [&str; 3] = ["api.github.com", "codeload.github.com", "uploads.github.com"];

/// Host that takes it as the password of git.
const GIT_HOST: &str = "github.com";

/// A GitHub token. It is never printed.
#[derive(Clone)]
pub struct GitToken(String);

impl GitToken {
    /// The token with this text.
    #[must_use]
    pub fn new(token: String) -> Self {
        Self(token)
    }

    /// The `Authorization` header that git's server takes.
    fn authorization(&self) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(format!("x-access-token:{}", self.0)))
    }

    /// Everything public is reachable, GitHub with the token.
    fn policy(&self) -> NetworkPolicy {
        let authorized = |domain: &str, value: String| {
            let headers = BTreeMap::from([("authorization".to_owned(), Some(value))]);
            let rules = vec![Rule { matches: None, action: Action::SetHeaders(headers) }];
            DomainPolicy { domain: domain.to_owned(), rules }
        };
        let mut domains: Vec<_> =
            API_HOSTS.iter().map(|host| authorized(host, format!("Bearer {}", self.0))).collect();
        domains.push(authorized(GIT_HOST, self.authorization()));
        domains.push(DomainPolicy { domain: "*".to_owned(), rules: Vec::new() });
        NetworkPolicy::Custom(CustomPolicy { domains, ..CustomPolicy::default() })
    }
}

impl std::fmt::Debug for GitToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GitToken")
    }
}

/// Whether sessions made this policy, and not somebody who wants another.
fn is_ours(policy: &NetworkPolicy) -> bool {
    match policy {
        NetworkPolicy::AllowAll => true,
        NetworkPolicy::DenyAll => false,
        NetworkPolicy::Custom(custom) => {
            let mut domains: Vec<&str> = custom.domains.iter().map(|domain| domain.domain.as_str()).collect();
            domains.sort_unstable();
            let mut ours: Vec<&str> = API_HOSTS.into_iter().chain([GIT_HOST, "*"]).collect();
            ours.sort_unstable();
            custom.allowed_networks.is_empty() && custom.denied_networks.is_empty() && domains == ours
        }
    }
}

impl Sessions {
    /// How `account` reads `repo`.
    pub(crate) async fn access(&self, account: &AccountId, repo: &GithubRepo) -> Result<RepoAccess> {
        let claimed = self.git_token.is_some() && self.db.may_use_token(account, repo).await?;
        Ok(if claimed { RepoAccess::Claimed } else { RepoAccess::Public })
    }

    /// What a sandbox with a repository in it may reach that is read so, and with
    /// which credentials.
    pub(crate) fn policy_of(&self, access: RepoAccess) -> NetworkPolicy {
        match (&self.git_token, access) {
            (Some(token), RepoAccess::Claimed) => token.policy(),
            _ => NetworkPolicy::AllowAll,
        }
    }

    /// What its remote wants to hear from whoever reads it so.
    pub(crate) fn authorization(&self, access: RepoAccess) -> Option<String> {
        match (&self.git_token, access) {
            (Some(token), RepoAccess::Claimed) => Some(token.authorization()),
            _ => None,
        }
    }

    /// Brings the credentials of a sandbox that was resumed up to date: the
    /// token may be another one by now, and the claim be gone. A policy that
    /// somebody else chose stays.
    pub(crate) async fn refresh_credentials(
        &self,
        found: &SandboxView,
        run: &RunRef,
        account: &AccountId,
        repo: &GithubRepo,
    ) -> Result<()> {
        let wanted = self.policy_of(self.access(account, repo).await?);
        let stale = wanted != NetworkPolicy::AllowAll || found.run.network != NetworkPolicy::AllowAll;
        if self.git_token.is_some() && stale && is_ours(&found.run.network) {
            self.provider.set_network_policy(run, wanted).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_for_github_alone_and_never_printed() {
        let policy = GitToken::new("t0ken".to_owned()).policy();
        assert!(!format!("{policy:?}").contains("t0ken"));
        let NetworkPolicy::Custom(custom) = &policy else { panic!("{policy:?}") };
        for domain in &custom.domains {
            assert_eq!(domain.rules.is_empty(), domain.domain == "*");
        }
        assert!(is_ours(&policy) && is_ours(&NetworkPolicy::AllowAll));
        assert!(!is_ours(&NetworkPolicy::DenyAll));
        assert!(!is_ours(&NetworkPolicy::Custom(CustomPolicy::default())));
    }
}
