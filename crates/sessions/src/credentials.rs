//! What a session's sandbox is let out with: the service's GitHub token and the
//! secrets of organizations, set on requests by its network policy, so that they never
//! enter it (session contract, section 8; design, "Who may read what").

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dormouse_provider::{
    Action, CreateSandbox, CustomPolicy, DomainPolicy, Grant, Matcher, NetworkPolicy, ProviderError,
    RequestMatch, Rule, RunRef, SandboxKey, SandboxView, Swap,
};
use dormouse_store::{SecretRow, SessionRow};
use dormouse_types::{AccountId, GithubRepo, RepoAccess};

use crate::Sessions;
use crate::error::Result;

/// Hosts of GitHub's API, where a repository is `/repos/OWNER/NAME`.
const API_HOSTS: [&str; 2] = ["api.github.com", "uploads.github.com"];

/// Hosts where it is `/OWNER/NAME`: archives, and git itself, which takes the token as
/// a password.
const ARCHIVE_HOST: &str = "codeload.github.com";
const GIT_HOST: &str = "github.com";

/// How often the credentials of sandboxes that run are brought up to date: a token of a
/// GitHub App ends after an hour.
const REFRESH: Duration = Duration::from_secs(10 * 60);

/// Sessions that are looked at together.
const ROUND: i64 = 100;

/// Names of a secret's placeholder inside begin so.
const VARIABLE: &str = "DORMOUSE_SECRET_";

/// A GitHub token. It is never printed.
#[derive(Clone, PartialEq, Eq)]
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

    /// GitHub with the token where it is about `repo`: its paths and no others, so that
    /// a token that opens more opens that alone.
    fn domains(&self, repo: &GithubRepo) -> Vec<DomainPolicy> {
        let name = format!("{}/{}", regex_text(repo.owner()), regex_text(repo.name()));
        let git = format!("(?i)^/{name}(\\.git)?(/|$)");
        let api = format!("(?i)^/repos/{name}(/|$)");
        let domain = |domain: &str, path: &str, value: String| {
            let matches =
                RequestMatch { path: Some(Matcher::Regex(path.to_owned())), ..RequestMatch::default() };
            let headers = BTreeMap::from([("authorization".to_owned(), Some(value))]);
            let rules = vec![Rule { matches: Some(matches), action: Action::SetHeaders(headers) }];
            DomainPolicy { domain: domain.to_owned(), rules }
        };
        let bearer = || format!("Bearer {}", self.0);
        let mut domains: Vec<_> = API_HOSTS.iter().map(|host| domain(host, &api, bearer())).collect();
        domains.push(domain(ARCHIVE_HOST, &git, bearer()));
        domains.push(domain(GIT_HOST, &git, self.authorization()));
        domains
    }
}

impl std::fmt::Debug for GitToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GitToken")
    }
}

/// Why there is no token where there should be one. The details are in the log.
#[derive(Debug, thiserror::Error)]
#[error("the GitHub credentials of this server are not available")]
pub struct TokenError;

/// Where the service's GitHub tokens come from.
#[async_trait]
pub trait TokenSource: Send + Sync + std::fmt::Debug + 'static {
    /// Whether there is a token for the repository.
    fn covers(&self, repo: &GithubRepo) -> bool;

    /// The token, good for some time to come.
    ///
    /// # Errors
    /// [`TokenError`] when it cannot be had just now.
    async fn token(&self, repo: &GithubRepo) -> std::result::Result<GitToken, TokenError>;
}

/// One token for every repository.
#[async_trait]
impl TokenSource for GitToken {
    fn covers(&self, _: &GithubRepo) -> bool {
        true
    }

    async fn token(&self, _: &GithubRepo) -> std::result::Result<GitToken, TokenError> {
        Ok(self.clone())
    }
}

/// A name in an expression: of what GitHub allows only the dot means something there.
fn regex_text(name: &str) -> String {
    name.replace('.', "\\.")
}

/// Everything public is reachable, the domains with their rules.
fn policy(mut domains: Vec<DomainPolicy>) -> NetworkPolicy {
    if domains.is_empty() {
        return NetworkPolicy::AllowAll;
    }
    domains.push(DomainPolicy { domain: "*".to_owned(), rules: Vec::new() });
    NetworkPolicy::Custom(CustomPolicy { domains, ..CustomPolicy::default() })
}

/// The rules of secrets, by host.
fn secret_domains(secrets: &[SecretRow]) -> Vec<DomainPolicy> {
    let mut domains: BTreeMap<&str, Vec<Rule>> = BTreeMap::new();
    for secret in secrets {
        for host in &secret.hosts {
            let swap = Swap {
                header: secret.header.clone(),
                placeholder: secret.placeholder.clone(),
                secret: Some(secret.value.clone()),
            };
            domains.entry(host).or_default().push(Rule { matches: None, action: Action::Swap(swap) });
        }
    }
    domains.into_iter().map(|(domain, rules)| DomainPolicy { domain: domain.to_owned(), rules }).collect()
}

/// Puts the rules of two lists for the same host together.
fn merged(mut domains: Vec<DomainPolicy>, more: Vec<DomainPolicy>) -> Vec<DomainPolicy> {
    for domain in more {
        match domains.iter_mut().find(|known| known.domain == domain.domain) {
            Some(known) => known.rules.extend(domain.rules),
            None => domains.push(domain),
        }
    }
    domains
}

/// Where the provider keeps no grants: whether sessions made this policy for a sandbox of
/// `repo`, and not somebody who wants
/// another: everything is open, and rules swap secrets, which no caller can ask for, or are
/// the ones that [`GitToken::domains`] makes, whatever their values. A release that makes
/// others must know these too.
fn is_ours(policy: &NetworkPolicy, repo: &GithubRepo) -> bool {
    let custom = match policy {
        NetworkPolicy::AllowAll => return true,
        NetworkPolicy::DenyAll => return false,
        NetworkPolicy::Custom(custom) => custom,
    };
    let made = GitToken::new(String::new()).domains(repo);
    let made = |host: &str, rule: &Rule| {
        let Action::SetHeaders(headers) = &rule.action else { return false };
        made.iter().filter(|domain| domain.domain == host).flat_map(|domain| &domain.rules).any(|known| {
            let Action::SetHeaders(known_headers) = &known.action else { return false };
            known.matches == rule.matches && known_headers.keys().eq(headers.keys())
        })
    };
    let ours = |domain: &DomainPolicy| match domain.domain.as_str() {
        "*" => domain.rules.is_empty(),
        host => domain.rules.iter().all(|rule| matches!(rule.action, Action::Swap(_)) || made(host, rule)),
    };
    custom.allowed_networks.is_empty()
        && custom.denied_networks.is_empty()
        && custom.domains.iter().any(|domain| domain.domain == "*")
        && custom.domains.iter().all(ours)
}

impl Sessions {
    /// How `account` reads `repo`.
    pub(crate) async fn access(&self, account: &AccountId, repo: &GithubRepo) -> Result<RepoAccess> {
        let covered = self.tokens.as_ref().is_some_and(|tokens| tokens.covers(repo));
        let claimed = covered && self.db.may_use_token(account, repo).await?;
        Ok(if claimed { RepoAccess::Claimed } else { RepoAccess::Public })
    }

    /// The token for whoever reads `repo` so.
    async fn token(&self, repo: &GithubRepo, access: RepoAccess) -> Result<Option<GitToken>> {
        match (&self.tokens, access) {
            (Some(tokens), RepoAccess::Claimed) => match tokens.token(repo).await {
                Ok(token) => Ok(Some(token)),
                Err(error) => Err(ProviderError::Capacity(error.to_string()).into()),
            },
            _ => Ok(None),
        }
    }

    /// What a sandbox with a repository in it may reach that is read so, and with the
    /// service's token: for a builder, in which the repository's own programs run.
    pub(crate) async fn builder_policy(
        &self,
        repo: &GithubRepo,
        access: RepoAccess,
    ) -> Result<NetworkPolicy> {
        let token = self.token(repo, access).await?;
        Ok(policy(token.map(|token| token.domains(repo)).unwrap_or_default()))
    }

    /// What a sandbox of `account` may reach, and with which credentials.
    async fn policy_of(
        &self,
        account: &AccountId,
        repo: &GithubRepo,
        access: RepoAccess,
    ) -> Result<(NetworkPolicy, Vec<SecretRow>)> {
        let token = self.token(repo, access).await?;
        let secrets = self.db.secrets_for(account, repo).await?;
        let domains = token.map(|token| token.domains(repo)).unwrap_or_default();
        Ok((policy(merged(domains, secret_domains(&secrets))), secrets))
    }

    /// Gives a new sandbox of `account` what it may have, and in its environment what
    /// stands for secrets.
    pub(crate) async fn let_out(
        &self,
        request: &mut CreateSandbox,
        account: &AccountId,
        repo: &GithubRepo,
        access: RepoAccess,
    ) -> Result<()> {
        let (network, secrets) = self.policy_of(account, repo, access).await?;
        request.network = network;
        request.grant = Some(Grant { account: account.clone(), repo: repo.clone() });
        for secret in secrets {
            request.env.insert(format!("{VARIABLE}{}", secret.name), secret.placeholder);
        }
        Ok(())
    }

    /// What its remote wants to hear from whoever reads it so.
    pub(crate) async fn authorization(
        &self,
        repo: &GithubRepo,
        access: RepoAccess,
    ) -> Result<Option<String>> {
        Ok(self.token(repo, access).await?.map(|token| token.authorization()))
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
        let grants = self.provider.keeps_grants();
        if !grants && !is_ours(&found.run.network, repo) {
            return Ok(());
        }
        let wanted = self.granted_policy(account, repo).await?;
        if wanted == NetworkPolicy::AllowAll && found.run.network == NetworkPolicy::AllowAll {
            return Ok(());
        }
        if grants {
            let grant = Grant { account: account.clone(), repo: repo.clone() };
            return self.renew(run, &grant, wanted).await;
        }
        self.provider.set_network_policy(run, wanted).await?;
        Ok(())
    }

    /// What a sandbox of `account` with `repo` may reach now.
    async fn granted_policy(&self, account: &AccountId, repo: &GithubRepo) -> Result<NetworkPolicy> {
        let access = self.access(account, repo).await?;
        Ok(self.policy_of(account, repo, access).await?.0)
    }

    async fn renew(&self, run: &RunRef, grant: &Grant, wanted: NetworkPolicy) -> Result<()> {
        if !self.provider.renew_grant(run, grant, wanted).await? {
            tracing::debug!(run = %run.id, "somebody else chose the policy; it stays");
        }
        Ok(())
    }

    /// Keeps the credentials of sandboxes that run up to date, for ever: also of those that
    /// ran while there was no server.
    pub async fn run_credentials(self: Arc<Self>) {
        loop {
            self.refresh_all().await;
            tokio::time::sleep(REFRESH).await;
        }
    }

    /// Brings the credentials of every sandbox that runs here up to date.
    pub async fn refresh_all(&self) {
        if self.provider.keeps_grants() {
            let granted = match self.provider.granted().await {
                Ok(granted) => granted,
                Err(error) => return tracing::warn!(?error, "look for runs to refresh their credentials"),
            };
            for (run, grant) in granted {
                let renewing = async {
                    let wanted = self.granted_policy(&grant.account, &grant.repo).await?;
                    self.renew(&run, &grant, wanted).await
                };
                match renewing.await {
                    // It ended meanwhile.
                    Ok(()) | Err(crate::SessionError::Provider(ProviderError::Stopped)) => {}
                    Err(error) => tracing::warn!(run = %run.id, ?error, "refresh credentials"),
                }
            }
            return;
        }
        let mut after = None;
        loop {
            let page = self.db.active_sessions(self.host.as_ref(), after.as_ref(), ROUND).await;
            let page = match page {
                Ok(page) => page,
                Err(error) => return tracing::warn!(%error, "read sessions to refresh their credentials"),
            };
            let Some(last) = page.last() else { return };
            after = Some(last.id.clone());
            for row in &page {
                if let Err(error) = self.refresh_one(row).await {
                    tracing::warn!(session = %row.id, ?error, "refresh credentials");
                }
            }
        }
    }

    /// [`Sessions::refresh_all`] for a session of a provider that keeps no grants.
    async fn refresh_one(&self, row: &SessionRow) -> Result<()> {
        let repo = row.clone_url.as_deref().and_then(|url| url.parse::<GithubRepo>().ok());
        let (Some(repo), Some(name)) = (&repo, &row.sandbox_name) else { return Ok(()) };
        let key = SandboxKey { namespace: Self::namespace(&row.account_id), name: name.clone() };
        let found = match self.provider.get(&key).await {
            Ok(found) => found,
            // It went meanwhile.
            Err(ProviderError::NotFound(_) | ProviderError::Elsewhere { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let run = RunRef { namespace: key.namespace.clone(), id: found.run.id.clone() };
        match self.refresh_credentials(&found, &run, &row.account_id, repo).await {
            Err(crate::SessionError::Provider(ProviderError::Stopped)) => Ok(()),
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo() -> GithubRepo {
        "https://github.com/acme/widgets.js".parse().unwrap()
    }

    #[test]
    fn the_token_is_for_one_repository_and_never_printed() {
        let policy = policy(GitToken::new("t0ken".to_owned()).domains(&repo()));
        assert!(!format!("{policy:?}").contains("t0ken"));
        policy.check().unwrap();
        let NetworkPolicy::Custom(custom) = &policy else { panic!("{policy:?}") };
        for domain in &custom.domains {
            assert_eq!(domain.rules.is_empty(), domain.domain == "*");
        }
        let ours = |policy: &NetworkPolicy| is_ours(policy, &repo());
        assert!(ours(&policy) && ours(&policy.without_values()) && ours(&NetworkPolicy::AllowAll));
        assert!(!ours(&NetworkPolicy::DenyAll));
        assert!(!ours(&NetworkPolicy::Custom(CustomPolicy::default())));
        assert!(!is_ours(&policy, &"https://github.com/acme/other".parse().unwrap()));
    }

    #[test]
    fn paths_of_other_repositories_are_not_its_own() {
        let domains = GitToken::new("t0ken".to_owned()).domains(&repo());
        let matches = |host: &str, path: &str| {
            let domain = domains.iter().find(|domain| domain.domain == host).unwrap();
            let Some(Matcher::Regex(regex)) = &domain.rules[0].matches.as_ref().unwrap().path else {
                panic!()
            };
            dormouse_provider::expression(regex).unwrap().is_match(path)
        };
        for path in ["/acme/widgets.js", "/Acme/Widgets.js.git/info/refs", "/acme/widgets.js/archive/x"] {
            assert!(matches("github.com", path) && matches("codeload.github.com", path), "{path}");
        }
        for path in [
            "/acme/widgetsxjs",
            "/acme/widgets.js2",
            "/acme/widgets",
            "/acme",
            "/",
            "/x/acme/widgets.js",
            "/acme/widgets.js.gitx/",
        ] {
            assert!(!matches("github.com", path), "{path}");
        }
        assert!(
            matches("api.github.com", "/repos/acme/widgets.js/pulls")
                && matches("uploads.github.com", "/repos/acme/widgets.js")
        );
        for path in ["/repos/acme/other", "/user", "/graphql", "/repos/acme/widgets.js-2", "/orgs/acme"] {
            assert!(!matches("api.github.com", path), "{path}");
        }
    }

    /// What the systems that serve this API send for their own sandboxes is theirs.
    #[test]
    fn a_callers_policy_is_not_ours() {
        let whole = RequestMatch::default();
        let path = Matcher::StartsWith("/acme/widgets.js".to_owned());
        let path = RequestMatch { path: Some(path), ..RequestMatch::default() };
        for matches in [None, Some(whole), Some(path)] {
            let headers = BTreeMap::from([("authorization".to_owned(), None)]);
            let rules = vec![Rule { matches, action: Action::SetHeaders(headers) }];
            let domains = vec![
                DomainPolicy { domain: GIT_HOST.to_owned(), rules },
                DomainPolicy { domain: "*".to_owned(), rules: Vec::new() },
            ];
            let theirs = NetworkPolicy::Custom(CustomPolicy { domains, ..CustomPolicy::default() });
            assert!(!is_ours(&theirs, &repo()), "{theirs:?}");
        }
    }
}
