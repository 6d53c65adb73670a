//! Mirrors: where a host really is (`git.mirrors`). Inside a sandbox the public URL
//! stays what it is; the proxy sends its requests to the mirror, with everything
//! that a policy sets for the public host.
//!
//! A mirror may be on a private address. So that it exposes repositories and no
//! more, only requests of the git smart-HTTP protocol (`gitprotocol-http(5)`), of
//! Git LFS and of GitHub's API for repositories go on, and the URL that comes out
//! lies below the mirror's own.

use dormouse_provider::HostName;
use http::{Method, Uri};
use url::Url;

/// One URL prefix that stands for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// What people write: `https://HOST/`, with a path or without.
    pub from: String,
    /// Where it really is: `http://` or `https://`.
    pub to: String,
}

/// Why a mirror cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The prefix cannot be mirrored.
    #[error("git.mirrors: {value:?} {rule}")]
    Prefix {
        /// What was written.
        value: String,
        /// What would be right.
        rule: &'static str,
    },
}

impl Mirror {
    /// Checks both ends.
    ///
    /// # Errors
    /// [`MirrorError::Prefix`] that says what would be right.
    pub fn check(&self) -> Result<(), MirrorError> {
        self.host().map(drop)?;
        let to = Url::parse(&self.to).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        if to.is_none_or(|url| url.host().is_none() || url.query().is_some()) || !self.to.ends_with('/') {
            let rule = "must be an http or https URL that ends with a slash";
            return Err(MirrorError::Prefix { value: self.to.clone(), rule });
        }
        Ok(())
    }

    fn host(&self) -> Result<HostName, MirrorError> {
        let rule = "must start with https://, name a host without a port, and end with a slash";
        let wrong = || MirrorError::Prefix { value: self.from.clone(), rule };
        let url = Url::parse(&self.from).map_err(|_| wrong())?;
        let plain = url.scheme() == "https"
            && url.port().is_none()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
            && self.from.ends_with('/');
        url.domain().filter(|_| plain).and_then(|host| host.parse().ok()).ok_or_else(wrong)
    }
}

/// Where a URL leads that one of the mirrors stands for.
#[must_use]
pub fn mirrored(mirrors: &[Mirror], url: &str) -> Option<String> {
    mirrors.iter().find_map(|mirror| {
        let rest = url.strip_prefix(&normal(&mirror.from))?;
        Some(format!("{}{rest}", mirror.to))
    })
}

/// Largest answer to an LFS batch, in bytes: some hundred for each of a hundred
/// objects.
pub(crate) const MAX_BATCH: usize = 1 << 20;

/// The mirrors of one instance.
#[derive(Debug)]
pub(crate) struct Mirrors {
    mirrors: Vec<Mirror>,
    hosts: Vec<HostName>,
}

impl Mirrors {
    pub(crate) fn new(mut mirrors: Vec<Mirror>) -> Result<Self, MirrorError> {
        let mut hosts = Vec::new();
        for mirror in &mut mirrors {
            mirror.check()?;
            hosts.push(mirror.host()?);
            mirror.from = normal(&mirror.from);
            mirror.to = normal(&mirror.to);
        }
        hosts.sort();
        hosts.dedup();
        Ok(Self { mirrors, hosts })
    }

    /// Hosts that are mirrored.
    pub(crate) fn hosts(&self) -> &[HostName] {
        &self.hosts
    }

    pub(crate) fn covers(&self, host: &HostName) -> bool {
        self.hosts.binary_search(host).is_ok()
    }

    /// The mirror's URL for what was asked of `host`, if a mirror answers it.
    pub(crate) fn target(&self, host: &HostName, method: &Method, uri: &Uri) -> Option<Url> {
        let (path, query) = (uri.path(), uri.query());
        let api = API_HOSTS.contains(&host.as_str());
        let passes = if api {
            is_api_path(host.as_str(), path)
        } else {
            is_git_request(method, path, query) || is_lfs_request(method, path, query)
        };
        if !passes {
            return None;
        }
        let asked = format!("https://{host}{path}");
        self.mirrors.iter().find_map(|mirror| {
            let rest = asked.strip_prefix(mirror.from.as_str())?;
            let mut url = Url::parse(&format!("{}{rest}", mirror.to)).ok()?;
            // Whatever was in the path, it did not lead out.
            if !url.as_str().starts_with(&mirror.to) {
                return None;
            }
            url.set_query(query);
            Some(url)
        })
    }

    /// What an LFS server says of where objects are, with the public URLs of those
    /// that are on a mirror: its own address means nothing in a sandbox.
    pub(crate) fn public_batch(&self, body: &[u8]) -> serde_json::Result<String> {
        let mut batch: serde_json::Value = serde_json::from_slice(body)?;
        let objects = batch.get_mut("objects").and_then(serde_json::Value::as_array_mut);
        for object in objects.into_iter().flatten() {
            let actions = object.get_mut("actions").and_then(serde_json::Value::as_object_mut);
            for action in actions.into_iter().flat_map(|actions| actions.values_mut()) {
                let Some(href) = action.get_mut("href") else { continue };
                let known = href.as_str().and_then(|url| {
                    self.mirrors
                        .iter()
                        .find_map(|mirror| Some(format!("{}{}", mirror.from, url.strip_prefix(&mirror.to)?)))
                });
                if let Some(public) = known {
                    *href = public.into();
                }
            }
        }
        Ok(batch.to_string())
    }
}

/// GitHub's hosts that speak no git.
const API_HOSTS: [&str; 3] = ["api.github.com", ARCHIVE_HOST, "uploads.github.com"];

/// Where archives of a repository are: `/OWNER/REPOSITORY/…`.
const ARCHIVE_HOST: &str = "codeload.github.com";

/// Owner and repository at the beginning of a path, as the host has them.
fn is_api_path(host: &str, path: &str) -> bool {
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/');
    if host == ARCHIVE_HOST {
        let named = |segment: Option<&str>| segment.is_some_and(is_name);
        return named(segments.next()) && named(segments.next()) && segments.next().is_some();
    }
    match segments.next() {
        Some("repos") => segments.next().is_some_and(is_name) && segments.next().is_some_and(is_name),
        Some("graphql" | "user") => segments.next().is_none(),
        _ => false,
    }
}

/// A name of an owner or a repository: letters, digits, dots, hyphens, underscores.
fn is_name(segment: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(fits)
}

/// What a path begins with before the part that git or LFS adds: owner and
/// repository, perhaps in groups, each a plain name.
fn is_repository(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|names| names.split('/').count() >= 2 && names.split('/').all(is_name))
}

/// A prefix as it is compared: its host in lower case, without the usual port.
fn normal(prefix: &str) -> String {
    Url::parse(prefix).map_or_else(|_| prefix.to_owned(), String::from)
}

/// The requests of fetching and pushing (`gitprotocol-http(5)`).
fn is_git_request(method: &Method, path: &str, query: Option<&str>) -> bool {
    let services = ["git-upload-pack", "git-receive-pack"];
    match *method {
        Method::GET => {
            path.strip_suffix("/info/refs").is_some_and(is_repository)
                && query.is_some_and(|query| services.iter().any(|s| query == format!("service={s}")))
        }
        Method::POST => {
            let repository = |service: &&str| path.strip_suffix(*service)?.strip_suffix('/');
            services.iter().any(|service| repository(service).is_some_and(is_repository)) && query.is_none()
        }
        _ => false,
    }
}

/// Where an LFS client asks where objects are (Git LFS, "Batch API").
pub(crate) const BATCH: &str = "/info/lfs/objects/batch";

/// The requests of Git LFS below its usual place ("Server Discovery"): the batch, objects
/// by their SHA-256, that they arrived, and locks.
fn is_lfs_request(method: &Method, path: &str, query: Option<&str>) -> bool {
    let is_id = |id: &str| {
        id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    // Where GitLab has its objects, with their size when they come.
    if let Some((repository, rest)) = path.split_once("/gitlab-lfs/objects/") {
        if !is_repository(repository) {
            return false;
        }
        let (id, size) = rest.split_once('/').unwrap_or((rest, "0"));
        let plain = is_id(id) && !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_digit());
        return plain && query.is_none() && (*method == Method::GET || *method == Method::PUT);
    }
    let Some((repository, rest)) = path.split_once("/info/lfs/") else { return false };
    if !is_repository(repository) {
        return false;
    }
    let object = rest.strip_prefix("objects/").is_some_and(is_id);
    let verify = matches!(rest, "objects/batch" | "verify" | "objects/verify" | "locks" | "locks/verify");
    match *method {
        Method::GET => (object && query.is_none()) || rest == "locks",
        Method::PUT => object && query.is_none(),
        Method::POST => query.is_none() && (verify || rest.strip_prefix("locks/").is_some_and(unlocks)),
        _ => false,
    }
}

/// `ID/unlock`.
fn unlocks(rest: &str) -> bool {
    let id = rest.strip_suffix("/unlock").unwrap_or_default();
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirrors(from: &str, to: &str) -> Mirrors {
        Mirrors::new(vec![Mirror { from: from.into(), to: to.into() }]).unwrap()
    }

    fn target(mirrors: &Mirrors, host: &str, method: &Method, uri: &str) -> Option<String> {
        mirrors.target(&host.parse().unwrap(), method, &uri.parse().ok()?).map(String::from)
    }

    #[test]
    fn hosts_match_in_any_case() {
        for from in ["https://GitHub.com/", "https://github.com:443/"] {
            let mirrors = mirrors(from, "http://10.0.0.1/git/");
            assert!(mirrors.covers(&"github.com".parse().unwrap()), "{from}");
            let uri = "/Acme/r/info/refs?service=git-upload-pack";
            let there = "http://10.0.0.1/git/Acme/r/info/refs?service=git-upload-pack";
            assert_eq!(target(&mirrors, "github.com", &Method::GET, uri).as_deref(), Some(there), "{from}");
            assert_eq!(target(&mirrors, "gitlab.com", &Method::GET, uri), None);
        }
    }

    /// What a URL library makes of a path is not what was looked at before.
    #[test]
    fn no_path_leads_out_of_a_mirror() {
        let mirrors = mirrors("https://github.com/", "http://10.0.0.1/public/");
        for path in [
            "/x\\..\\..\\private\\r",
            "/x/../../private/r",
            "/x/%2e%2e/private",
            "/x/..%2f..%2fprivate",
            "/x/.%2e/r",
            "/../private",
            "//10.0.0.2/r",
            "/x//r",
            "/x;/../r",
            "/x/..;/r",
            "/@10.0.0.2/r",
            "/x/r\t",
            "/x",
        ] {
            for rest in ["/info/refs?service=git-upload-pack", "/info/lfs/locks"] {
                let found = target(&mirrors, "github.com", &Method::GET, &format!("{path}{rest}"));
                assert_eq!(found, None, "{path}{rest}");
            }
        }
    }

    #[test]
    fn the_api_passes_for_repositories() {
        let mirrors = mirrors("https://api.github.com/", "https://ghe.test/api/v3/");
        let get = |uri: &str| target(&mirrors, "api.github.com", &Method::GET, uri);
        assert_eq!(
            get("/repos/acme/widgets/pulls?state=open").as_deref(),
            Some("https://ghe.test/api/v3/repos/acme/widgets/pulls?state=open")
        );
        for path in ["/repos/acme/../x", "/admin", "/", "/repos/acme", "/repos/../../x", "/admin/users/x"] {
            assert_eq!(get(path), None, "{path}");
        }
    }

    #[test]
    fn batches_name_the_public_host() {
        let mirrors = mirrors("https://github.com/", "http://10.0.0.1:3000/");
        let batch = r#"{"objects":[{"actions":{"download":{"href":"http://10.0.0.1:3000/a/b.git/info/lfs/objects/x"},"upload":{"href":"https://elsewhere.test/x"}}}]}"#;
        let public = mirrors.public_batch(batch.as_bytes()).unwrap();
        assert!(
            public.contains("https://github.com/a/b.git/info/lfs/objects/x")
                && public.contains("https://elsewhere.test/x"),
            "{public}"
        );
    }

    #[test]
    fn mirrors_are_checked() {
        let mirror = |from: &str, to: &str| Mirror { from: from.into(), to: to.into() }.check();
        assert!(mirror("https://github.com/", "http://127.0.0.1:1234/").is_ok());
        assert!(mirror("https://github.com/acme/", "https://git.acme.test/mirror/").is_ok());
        for from in [
            "http://github.com/",
            "https://github.com",
            "https://a:b@github.com/",
            "https://github.com:1/",
            "x",
        ] {
            assert!(mirror(from, "http://127.0.0.1/").is_err(), "{from}");
        }
        for to in ["ftp://x/", "http://x", "file:///etc/", "x"] {
            assert!(mirror("https://github.com/", to).is_err(), "{to}");
        }
    }

    #[test]
    fn only_git_gets_through() {
        let get = |path, query| is_git_request(&Method::GET, path, query);
        assert!(get("/o/r/info/refs", Some("service=git-upload-pack")));
        assert!(is_git_request(&Method::POST, "/o/r/git-upload-pack", None));
        assert!(!get("/o/r/info/refs", None));
        assert!(!get("/admin", None));
        assert!(!get("/o/../admin/info/refs", Some("service=git-upload-pack")));
        assert!(!get("/o/%2e%2e/info/refs", Some("service=git-upload-pack")));
        assert!(!is_git_request(&Method::DELETE, "/o/r/git-upload-pack", None));
    }

    #[test]
    fn only_lfs_gets_through() {
        let id = "a1".repeat(32);
        let lfs =
            |method: Method, rest: &str| is_lfs_request(&method, &format!("/o/r.git/info/lfs/{rest}"), None);
        assert!(lfs(Method::POST, "objects/batch"));
        assert!(lfs(Method::GET, &format!("objects/{id}")));
        assert!(lfs(Method::PUT, &format!("objects/{id}")));
        assert!(lfs(Method::POST, "locks/7/unlock"));
        let gitlab =
            |rest: &str| is_lfs_request(&Method::PUT, &format!("/o/r.git/gitlab-lfs/objects/{rest}"), None);
        assert!(gitlab(&id) && gitlab(&format!("{id}/12")));
        assert!(!gitlab(&format!("{id}/x")) && !gitlab("x/12") && !gitlab(&format!("{id}/1/2")));
        for (method, rest) in [
            (Method::GET, "objects/batch"),
            (Method::GET, "objects/x"),
            (Method::GET, "admin"),
            (Method::DELETE, "locks"),
            (Method::POST, "locks/../unlock"),
            (Method::POST, &format!("objects/{id}")),
        ] {
            assert!(!lfs(method.clone(), rest), "{method} {rest}");
        }
        assert!(!is_lfs_request(&Method::GET, &format!("/o/r/objects/{id}"), None));
    }
}
