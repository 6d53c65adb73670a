//! GitHub repository names and the one form of URL that names them.

use std::fmt;
use std::str::FromStr;

/// A repository on github.com. Holding one means that both names follow
/// GitHub's rules, so they are safe in a URL and a command line.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GithubRepo {
    owner: String,
    name: String,
}

/// Why a text is not such a URL. The message says what is accepted and never
/// repeats credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RepoError {
    /// Not a URL at all.
    #[error("must be a GitHub repository URL such as https://github.com/owner/repo")]
    NotAUrl,
    /// Another scheme than https.
    #[error("must start with https://github.com/; other schemes are not accepted")]
    Scheme,
    /// Another host.
    #[error("must be on the host github.com")]
    Host,
    /// User name or password in the URL.
    #[error("must not contain credentials; use https://github.com/owner/repo")]
    Credentials,
    /// A port.
    #[error("must not contain a port; use https://github.com/owner/repo")]
    Port,
    /// Query or fragment.
    #[error("must not contain a query or a fragment; use https://github.com/owner/repo")]
    Query,
    /// Not exactly owner and repository.
    #[error("must name exactly an owner and a repository: https://github.com/owner/repo")]
    Path,
    /// An owner that GitHub would not accept.
    #[error("has an owner that GitHub does not allow: 1 to 39 letters, digits and single inner hyphens")]
    Owner,
    /// A repository name that GitHub would not accept.
    #[error("has a repository name that GitHub does not allow: 1 to 100 letters, digits, '.', '-' and '_'")]
    Name,
}

impl GithubRepo {
    /// Owner: a user or an organization.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Repository name, without `.git`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `https://github.com/owner/name`: the form that `origin` shows.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://github.com/{}/{}", self.owner, self.name)
    }
}

impl FromStr for GithubRepo {
    type Err = RepoError;

    fn from_str(text: &str) -> Result<Self, RepoError> {
        // The WHATWG parser forgives much (white space, backslashes, a missing
        // slash, default ports, percent signs); what it forgives is not
        // accepted here, so look at the text itself too.
        if text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '\\' || c == '%') {
            return Err(RepoError::NotAUrl);
        }
        let url = url::Url::parse(text).map_err(|_| RepoError::NotAUrl)?;
        if url.scheme() != "https" {
            return Err(RepoError::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(RepoError::Credentials);
        }
        if url.host_str() != Some("github.com") {
            return Err(RepoError::Host);
        }
        let after_scheme = text.get("https:".len()..).unwrap_or("");
        let authority = after_scheme.strip_prefix("//").ok_or(RepoError::NotAUrl)?;
        let authority = authority.split(['/', '?', '#']).next().unwrap_or("");
        if authority.contains('@') {
            return Err(RepoError::Credentials);
        }
        if authority.contains(':') {
            return Err(RepoError::Port);
        }
        if text.contains('?') || text.contains('#') {
            return Err(RepoError::Query);
        }
        let path = after_scheme.get(2 + authority.len()..).unwrap_or("");
        let path = path.strip_prefix('/').ok_or(RepoError::Path)?;
        let path = path.strip_suffix('/').unwrap_or(path);
        let (owner, name) = path.split_once('/').ok_or(RepoError::Path)?;
        if owner.is_empty() || name.is_empty() || name.contains('/') {
            return Err(RepoError::Path);
        }
        let name = name.strip_suffix(".git").unwrap_or(name);
        if !is_owner(owner) {
            return Err(RepoError::Owner);
        }
        if !is_name(name) {
            return Err(RepoError::Name);
        }
        Ok(Self { owner: owner.to_owned(), name: name.to_owned() })
    }
}

fn is_owner(owner: &str) -> bool {
    owner.len() <= 39
        && owner.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !owner.starts_with('-')
        && !owner.ends_with('-')
        && !owner.contains("--")
}

fn is_name(name: &str) -> bool {
    (1..=100).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        && !matches!(name, "." | "..")
        // GitHub strips the suffix, so nothing can be called that.
        && !name.to_ascii_lowercase().ends_with(".git")
}

/// GitHub compares both names without case.
impl PartialEq for GithubRepo {
    fn eq(&self, other: &Self) -> bool {
        self.owner.eq_ignore_ascii_case(&other.owner) && self.name.eq_ignore_ascii_case(&other.name)
    }
}

impl Eq for GithubRepo {}

impl TryFrom<String> for GithubRepo {
    type Error = RepoError;
    fn try_from(value: String) -> Result<Self, RepoError> {
        value.parse()
    }
}

impl From<GithubRepo> for String {
    fn from(repo: GithubRepo) -> Self {
        repo.url()
    }
}

impl fmt::Display for GithubRepo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::{GithubRepo, RepoError};
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<GithubRepo, RepoError> {
        text.parse()
    }

    #[test]
    fn accepts_the_public_form() {
        for text in [
            "https://github.com/Recoupable-Com/my-repo",
            "https://github.com/owner/repo/",
            "https://github.com/owner/repo.git",
            "https://github.com/owner/repo.git/",
            "https://github.com/o/r",
            "https://github.com/o/.github",
            "https://GITHUB.com/o/r",
        ] {
            assert!(parse(text).is_ok(), "{text}");
        }
        assert_eq!(parse("https://github.com/O/R.git").unwrap().url(), "https://github.com/O/R");
        assert_eq!(parse("https://github.com/O/R").unwrap(), parse("https://github.com/o/r").unwrap());
    }

    #[test]
    fn refuses_everything_else_by_its_reason() {
        use RepoError::{Credentials, Host, Name, NotAUrl, Owner, Path, Port, Query, Scheme};
        for (text, reason) in [
            ("", NotAUrl),
            ("x", NotAUrl),
            ("not-a-url", NotAUrl),
            ("git@github.com:o/r.git", NotAUrl),
            (" https://github.com/o/r", NotAUrl),
            ("https://github.com\\o\\r", NotAUrl),
            ("https://github.com/o/%2e%2e", NotAUrl),
            ("https:github.com/o/r", NotAUrl),
            ("http://github.com/o/r", Scheme),
            ("ssh://git@github.com/o/r", Scheme),
            ("ftp://github.com/o/r", Scheme),
            ("file:///etc/passwd", Scheme),
            ("https://gitlab.com/owner/repo", Host),
            ("https://www.github.com/o/r", Host),
            ("https://github.com.evil.example/o/r", Host),
            ("https://evil.example/github.com/o/r", Host),
            ("https://user:tok@github.com/o/r", Credentials),
            ("https://@github.com/o/r", Credentials),
            ("https://github.com:8443/o/r", Port),
            ("https://github.com:443/o/r", Port),
            ("https://github.com/o/r?q", Query),
            ("https://github.com/o/r#f", Query),
            ("https://github.com/owner", Path),
            ("https://github.com/", Path),
            ("https://github.com/o/r/tree/main", Path),
            ("https://github.com/o/r//", Path),
            ("https://github.com//o/r", Path),
            ("https://github.com/-o/r", Owner),
            ("https://github.com/o--o/r", Owner),
            ("https://github.com/o_o/r", Owner),
            ("https://github.com/owner/.git", Name),
            ("https://github.com/o/r.git.git", Name),
            ("https://github.com/o/..", Name),
            ("https://github.com/o/r@x", Name),
        ] {
            assert_eq!(parse(text), Err(reason), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_plain(text in "\\PC{0,60}") {
            if let Ok(repo) = parse(&text) {
                prop_assert_eq!(parse(&repo.url()).unwrap(), repo);
            }
        }

        #[test]
        fn near_misses_never_panic(tail in "[a-z/.:@?#%-]{0,24}") {
            if let Ok(repo) = parse(&format!("https://github.com/{tail}")) {
                prop_assert!(!repo.owner().contains('/') && !repo.name().contains('/'));
            }
        }
    }
}
