//! Refuses a policy of which a part could not be enforced, with a sentence that
//! names the part.

use std::collections::BTreeSet;

use http::{HeaderName, HeaderValue};
use regex::{Regex, RegexBuilder};

use super::{
    Action, CustomPolicy, DirectResponse, DomainPattern, KeyValueMatcher, Matcher, NetworkPolicy,
    RequestMatch,
};

/// Most domains of one policy, and rules of one domain.
const MAX_DOMAINS: usize = 1000;
const MAX_RULES: usize = 100;

/// Largest value of a header, and body of an answer, in bytes.
const MAX_VALUE: usize = 8 << 10;
const MAX_BODY: usize = 64 << 10;

/// Memory of one compiled expression, in bytes: a policy of many stays small.
const MAX_REGEX: usize = 256 << 10;

/// Shortest placeholder, in bytes: a short one could stand in a header by chance.
const MIN_PLACEHOLDER: usize = 16;

/// Headers that frame a message or name its receiver: who could set them could
/// smuggle a request, or send it elsewhere.
const FRAMING: [&str; 10] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The expression that a [`Matcher::Regex`] stands for. Its syntax is RE2's: no
/// backreferences, linear time.
///
/// # Errors
/// What is wrong with it.
pub fn expression(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text).size_limit(MAX_REGEX).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => format!("the expression {text:?} is too large"),
        _ => format!("{text:?} is no regular expression (RE2)"),
    })
}

impl NetworkPolicy {
    /// Checks everything that types do not.
    ///
    /// # Errors
    /// A sentence that begins with the part that is wrong.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::AllowAll | Self::DenyAll => Ok(()),
            Self::Custom(custom) => custom.check(),
        }
    }
}

impl CustomPolicy {
    fn check(&self) -> Result<(), String> {
        if self.domains.len() > MAX_DOMAINS {
            return Err(format!("allow: at most {MAX_DOMAINS} domains"));
        }
        let mut seen = BTreeSet::new();
        for domain in &self.domains {
            let pattern: DomainPattern = domain.domain.parse().map_err(|error| format!("allow: {error}"))?;
            let name = pattern.to_string();
            if !seen.insert(pattern) {
                return Err(format!("allow: {name} is there twice"));
            }
            if domain.rules.len() > MAX_RULES {
                return Err(format!("allow.{name}: at most {MAX_RULES} rules"));
            }
            for rule in &domain.rules {
                let of = |error: String| format!("allow.{name}: {error}");
                rule.matches.as_ref().map_or(Ok(()), RequestMatch::check).map_err(of)?;
                rule.action.check().map_err(of)?;
            }
        }
        Ok(())
    }
}

fn header(name: &str, value: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("header {name:?} {why}"));
    let Ok(known) = HeaderName::from_bytes(name.as_bytes()) else { return wrong("is no name of a header") };
    if FRAMING.contains(&known.as_str()) {
        return wrong("cannot be set: it says where a message goes or ends");
    }
    if value.len() > MAX_VALUE {
        return wrong(&format!("has a value of more than {MAX_VALUE} bytes"));
    }
    // The value may be a secret: it is not repeated.
    if HeaderValue::from_str(value).is_err() { wrong("has a value that no header can have") } else { Ok(()) }
}

fn different<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name.to_ascii_lowercase()) {
            return Err(format!("header {name:?} is there twice"));
        }
    }
    Ok(())
}

impl Action {
    fn check(&self) -> Result<(), String> {
        match self {
            Self::SetHeaders(headers) => {
                different(headers.keys())?;
                headers.iter().try_for_each(|(name, value)| header(name, value.as_deref().unwrap_or("")))
            }
            Self::Swap(swap) => {
                if swap.placeholder.len() < MIN_PLACEHOLDER {
                    return Err(format!("a placeholder has at least {MIN_PLACEHOLDER} characters"));
                }
                header(&swap.header, swap.secret.as_deref().unwrap_or(""))
            }
            Self::Forward(url) => {
                let uri: http::Uri = url.parse().map_err(|_| format!("forwardURL: {url:?} is no URL"))?;
                let plain = uri.scheme_str() == Some("https")
                    && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
                    && uri.query().is_none()
                    && !url.contains('#');
                if plain {
                    Ok(())
                } else {
                    Err("forwardURL: must be an https URL without user, query and fragment".to_owned())
                }
            }
            Self::Respond(response) => response.check(),
        }
    }
}

impl DirectResponse {
    fn check(&self) -> Result<(), String> {
        if !(200..=599).contains(&self.status) {
            return Err("response.statusCode: must be from 200 to 599".to_owned());
        }
        different(self.headers.keys()).map_err(|error| format!("response: {error}"))?;
        self.headers
            .iter()
            .try_for_each(|(name, value)| header(name, value))
            .map_err(|error| format!("response: {error}"))?;
        let Some(body) = &self.body else {
            let without = "response.contentType: there is no body that it could be of";
            return if self.content_type.is_some() { Err(without.to_owned()) } else { Ok(()) };
        };
        if matches!(self.status, 204 | 205 | 304) {
            return Err(format!("response.body: an answer of status {} has none", self.status));
        }
        if body.len() > MAX_BODY {
            return Err(format!("response.body: at most {MAX_BODY} bytes"));
        }
        let Some(kind) = &self.content_type else {
            return Err("response.contentType: is missing beside a body".to_owned());
        };
        if self.headers.keys().any(|name| name.eq_ignore_ascii_case("content-type")) {
            return Err("response: the type of the body is there twice".to_owned());
        }
        header("content-type", kind).map_err(|error| format!("response: {error}"))
    }
}

impl RequestMatch {
    fn check(&self) -> Result<(), String> {
        self.path.as_ref().map_or(Ok(()), Matcher::check).map_err(|error| format!("match.path: {error}"))?;
        if self.method.iter().any(|method| http::Method::from_bytes(method.as_bytes()).is_err()) {
            return Err("match.method: no method of HTTP".to_owned());
        }
        let all = |field: &str, matchers: &[KeyValueMatcher]| {
            matchers.iter().try_for_each(|matcher| {
                if matcher.key.is_none() && matcher.value.is_none() {
                    return Err(format!("match.{field}: a matcher has a key, a value or both"));
                }
                let parts = [&matcher.key, &matcher.value];
                parts
                    .into_iter()
                    .flatten()
                    .try_for_each(Matcher::check)
                    .map_err(|error| format!("match.{field}: {error}"))
            })
        };
        all("queryString", &self.query_string)?;
        all("headers", &self.headers)
    }
}

impl Matcher {
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Exact(_) | Self::StartsWith(_) => Ok(()),
            Self::Regex(text) => expression(text).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{DomainPolicy, Rule};
    use super::*;

    fn check(domain: &str, action: Action, matches: Option<RequestMatch>) -> Result<(), String> {
        let rules = vec![Rule { matches, action }];
        let domains = vec![DomainPolicy { domain: domain.to_owned(), rules }];
        NetworkPolicy::Custom(CustomPolicy { domains, ..CustomPolicy::default() }).check()
    }

    fn set(name: &str, value: &str) -> Action {
        Action::SetHeaders(BTreeMap::from([(name.to_owned(), Some(value.to_owned()))]))
    }

    fn answer(status: u16, body: Option<&str>, kind: Option<&str>) -> Action {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Action::Respond(DirectResponse {
            status,
            headers: BTreeMap::new(),
            body: own(body),
            content_type: own(kind),
        })
    }

    #[test]
    fn what_can_be_enforced_is_accepted() {
        check("*.github.com", set("Authorization", "Bearer x"), None).unwrap();
        check("a.test", Action::Forward("https://proxy.test:8443/x".to_owned()), None).unwrap();
        check("a.test", answer(200, Some("{}"), Some("application/json")), None).unwrap();
        check("a.test", answer(204, None, None), None).unwrap();
        let path = Some(Matcher::Regex("^/v[0-9]+/".to_owned()));
        let matches = RequestMatch { path, method: vec!["GET".to_owned()], ..RequestMatch::default() };
        check("a.test", set("x", "y"), Some(matches)).unwrap();
    }

    #[test]
    fn what_cannot_is_named() {
        for (error, action) in [
            ("header \"host\"", set("host", "x")),
            ("header \"Transfer-Encoding\"", set("Transfer-Encoding", "chunked")),
            ("header \"a b\"", set("a b", "x")),
            ("header \"x\"", set("x", "a\r\nb")),
            ("forwardURL", Action::Forward("http://x/".to_owned())),
            ("forwardURL", Action::Forward("https://a:b@x/".to_owned())),
            ("forwardURL", Action::Forward("https://x/?a".to_owned())),
            ("response.statusCode", answer(199, None, None)),
            ("response.contentType", answer(200, Some("x"), None)),
            ("response.contentType", answer(200, None, Some("a/b"))),
            ("response.body", answer(204, Some("x"), Some("a/b"))),
        ] {
            let said = check("a.test", action, None).unwrap_err();
            assert!(said.starts_with("allow.a.test: ") && said.contains(error), "{said}");
            assert!(!said.contains('\r'), "{said}");
        }
        for text in ["(", "(?=x)", "a{1000}{1000}"] {
            let matches =
                RequestMatch { path: Some(Matcher::Regex(text.to_owned())), ..RequestMatch::default() };
            let said = check("a.test", set("x", "y"), Some(matches)).unwrap_err();
            assert!(said.starts_with("allow.a.test: match.path: "), "{said}");
        }
        let nothing = RequestMatch { headers: vec![KeyValueMatcher::default()], ..RequestMatch::default() };
        assert!(check("a.test", set("x", "y"), Some(nothing)).is_err());
        assert!(check("no domain", set("x", "y"), None).is_err());
        let both = Action::SetHeaders(BTreeMap::from([("A".to_owned(), None), ("a".to_owned(), None)]));
        assert!(check("a.test", both, None).unwrap_err().contains("twice"));
    }
}
