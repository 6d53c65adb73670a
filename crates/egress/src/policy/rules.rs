//! The rules of a domain, and what they make of a request.

use std::sync::Arc;

use dormouse_provider::{Action, DirectResponse, KeyValueMatcher, Matcher, RequestMatch, Rule, expression};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use regex::Regex;
use url::Url;

/// Rules in the order in which they are tried.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules(Vec<Compiled>);

#[derive(Debug, PartialEq, Eq)]
struct Compiled {
    path: Option<Text>,
    methods: Vec<Method>,
    query: Vec<Pair>,
    headers: Vec<Pair>,
    action: Do,
}

#[derive(Debug, PartialEq, Eq)]
enum Do {
    Inject(Arc<Vec<Injection>>),
    Forward(Url),
    Respond(Arc<DirectResponse>),
}

/// A header that is set on a request. Its value is a secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Injection {
    pub(crate) name: HeaderName,
    pub(crate) value: HeaderValue,
    /// Only where the sandbox sent a header of this name that holds this text,
    /// which the value takes the place of; else the header is set whatever it sent.
    pub(crate) placeholder: Option<String>,
}

impl std::fmt::Debug for Injection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Injection({})", self.name)
    }
}

/// What a request says, as far as rules ask.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a Method,
    pub(crate) uri: &'a Uri,
    pub(crate) headers: &'a HeaderMap,
}

/// What is to happen to a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It goes to its host, with these headers.
    Pass(Vec<Injection>),
    /// It goes there instead.
    Forward(Url),
    /// It is answered.
    Respond(Arc<DirectResponse>),
}

impl Rules {
    pub(super) fn new(rules: &[Rule]) -> Result<Self, String> {
        rules.iter().map(Compiled::new).collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Some of them look at the path: who can write one path in two ways could get
    /// what is for another.
    pub(crate) fn look_at_paths(&self) -> bool {
        self.0.iter().any(|rule| rule.path.is_some())
    }

    /// Some of them do something to requests without TLS. Secrets are not for those.
    pub(super) fn concern_plain_http(&self) -> bool {
        self.0.iter().any(|rule| !matches!(rule.action, Do::Inject(_)))
    }

    /// Some of them answer without the host.
    pub(super) fn answer_alone(&self) -> bool {
        self.concern_plain_http()
    }

    /// What is to happen: headers of every rule that matches are set, up to the
    /// first that sends the request elsewhere or answers it.
    pub(crate) fn judge(&self, asked: Asked<'_>) -> Outcome {
        let mut injections = Vec::new();
        for rule in self.0.iter().filter(|rule| rule.matches(asked)) {
            match &rule.action {
                Do::Inject(headers) => injections.extend(headers.iter().cloned()),
                Do::Forward(url) => return Outcome::Forward(url.clone()),
                Do::Respond(response) => return Outcome::Respond(response.clone()),
            }
        }
        Outcome::Pass(injections)
    }
}

impl Compiled {
    fn new(rule: &Rule) -> Result<Self, String> {
        let none = RequestMatch::default();
        let RequestMatch { path, method, query_string, headers } = rule.matches.as_ref().unwrap_or(&none);
        let pairs = |list: &[KeyValueMatcher], lower| {
            list.iter().map(|pair| Pair::new(pair, lower)).collect::<Result<Vec<_>, _>>()
        };
        let wrong = |error: &dyn std::fmt::Display| format!("rule of the network policy: {error}");
        Ok(Self {
            path: path.as_ref().map(|path| Text::new(path, false)).transpose()?,
            methods: method
                .iter()
                .map(|method| Method::from_bytes(method.to_ascii_uppercase().as_bytes()))
                .collect::<Result<_, _>>()
                .map_err(|error| wrong(&error))?,
            query: pairs(query_string, false)?,
            headers: pairs(headers, true)?,
            action: match &rule.action {
                Action::SetHeaders(headers) => {
                    let injection = |(name, value): (&String, &Option<String>)| {
                        let mut value = HeaderValue::from_str(value.as_deref().unwrap_or_default())
                            .map_err(|error| wrong(&error))?;
                        value.set_sensitive(true);
                        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| wrong(&error))?;
                        Ok::<_, String>(Injection { name, value, placeholder: None })
                    };
                    Do::Inject(Arc::new(headers.iter().map(injection).collect::<Result<_, _>>()?))
                }
                Action::Swap(swap) => {
                    let mut value = HeaderValue::from_str(swap.secret.as_deref().unwrap_or_default())
                        .map_err(|error| wrong(&error))?;
                    value.set_sensitive(true);
                    let name =
                        HeaderName::from_bytes(swap.header.as_bytes()).map_err(|error| wrong(&error))?;
                    let placeholder = Some(swap.placeholder.clone());
                    Do::Inject(Arc::new(vec![Injection { name, value, placeholder }]))
                }
                Action::Forward(url) => Do::Forward(Url::parse(url).map_err(|error| wrong(&error))?),
                Action::Respond(response) => Do::Respond(Arc::new(response.clone())),
            },
        })
    }

    fn matches(&self, asked: Asked<'_>) -> bool {
        if self.path.as_ref().is_some_and(|path| !path.matches(asked.uri.path())) {
            return false;
        }
        if !self.methods.is_empty() && !self.methods.contains(asked.method) {
            return false;
        }
        if !self.query.is_empty() {
            let query = asked.uri.query().unwrap_or_default();
            let pairs: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).collect();
            let found = |wanted: &Pair| pairs.iter().any(|(key, value)| wanted.matches(key, value));
            if !self.query.iter().all(found) {
                return false;
            }
        }
        self.headers.iter().all(|wanted| {
            asked
                .headers
                .iter()
                .any(|(name, value)| value.to_str().is_ok_and(|value| wanted.matches(name.as_str(), value)))
        })
    }
}

#[derive(Debug)]
enum Text {
    Exact(String),
    StartsWith(String),
    Regex(Regex),
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) | (Self::StartsWith(a), Self::StartsWith(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl Eq for Text {}

impl Text {
    fn new(matcher: &Matcher, lower: bool) -> Result<Self, String> {
        let text = |text: &String| if lower { text.to_ascii_lowercase() } else { text.clone() };
        Ok(match matcher {
            Matcher::Exact(exact) => Self::Exact(text(exact)),
            Matcher::StartsWith(start) => Self::StartsWith(text(start)),
            Matcher::Regex(regex) => Self::Regex(expression(regex)?),
        })
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == exact,
            Self::StartsWith(start) => text.starts_with(start.as_str()),
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Pair {
    key: Option<Text>,
    value: Option<Text>,
}

impl Pair {
    /// `lower`: keys are compared in lower case, as names of headers are.
    fn new(matcher: &KeyValueMatcher, lower: bool) -> Result<Self, String> {
        Ok(Self {
            key: matcher.key.as_ref().map(|key| Text::new(key, lower)).transpose()?,
            value: matcher.value.as_ref().map(|value| Text::new(value, false)).transpose()?,
        })
    }

    fn matches(&self, key: &str, value: &str) -> bool {
        self.key.as_ref().is_none_or(|text| text.matches(key))
            && self.value.as_ref().is_none_or(|text| text.matches(value))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn inject(value: &str) -> Action {
        Action::SetHeaders(BTreeMap::from([("x-key".to_owned(), Some(value.to_owned()))]))
    }

    fn judge(rules: &Rules, method: &str, uri: &str, headers: &[(&'static str, &str)]) -> Outcome {
        let (method, uri) = (method.parse().unwrap(), uri.parse().unwrap());
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        rules.judge(Asked { method: &method, uri: &uri, headers: &headers })
    }

    fn injected(outcome: Outcome) -> Vec<String> {
        let Outcome::Pass(injections) = outcome else { panic!("{outcome:?}") };
        injections.iter().map(|injection| injection.value.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn dimensions_are_anded_and_methods_ored() {
        let exact = |text: &str| Some(Matcher::Exact(text.to_owned()));
        let matches = RequestMatch {
            path: Some(Matcher::StartsWith("/v1/".to_owned())),
            method: vec!["GET".to_owned(), "post".to_owned()],
            query_string: vec![KeyValueMatcher {
                key: exact("a b"),
                value: Some(Matcher::Regex("^[0-9]+$".to_owned())),
            }],
            headers: vec![KeyValueMatcher { key: exact("X-Api-Key"), value: exact("placeholder") }],
        };
        let rules = Rules::new(&[Rule { matches: Some(matches), action: inject("s") }]).unwrap();
        let key = [("x-api-key", "placeholder")];
        assert_eq!(injected(judge(&rules, "GET", "/v1/x?a%20b=12&a+b=x", &key)), ["s"]);
        assert_eq!(injected(judge(&rules, "POST", "/v1/?a+b=1", &key)), ["s"]);
        for (method, uri, headers) in [
            ("PUT", "/v1/?a+b=1", &key[..]),
            ("GET", "/v2/?a+b=1", &key[..]),
            ("GET", "/v1/?a+b=x", &key[..]),
            ("GET", "/v1/", &key[..]),
            ("GET", "/v1/?a+b=1", &[("x-api-key", "other")][..]),
            ("GET", "/v1/?a+b=1", &[]),
        ] {
            assert!(injected(judge(&rules, method, uri, headers)).is_empty(), "{method} {uri}");
        }
    }

    #[test]
    fn headers_add_up_to_the_first_that_answers() {
        let on = |path: &str| {
            Some(RequestMatch { path: Some(Matcher::Exact(path.to_owned())), ..RequestMatch::default() })
        };
        let response =
            DirectResponse { status: 403, headers: BTreeMap::new(), body: None, content_type: None };
        let rules = Rules::new(&[
            Rule { matches: None, action: inject("a") },
            Rule { matches: on("/f"), action: Action::Forward("https://p.test/x".to_owned()) },
            Rule { matches: on("/r"), action: Action::Respond(response) },
            Rule { matches: on("/"), action: inject("b") },
        ])
        .unwrap();
        assert_eq!(injected(judge(&rules, "GET", "/", &[])), ["a", "b"]);
        assert_eq!(injected(judge(&rules, "GET", "/x", &[])), ["a"]);
        assert!(
            matches!(judge(&rules, "GET", "/f", &[]), Outcome::Forward(url) if url.as_str() == "https://p.test/x")
        );
        assert!(
            matches!(judge(&rules, "GET", "/r", &[]), Outcome::Respond(response) if response.status == 403)
        );
        assert!(rules.look_at_paths() && rules.concern_plain_http());
    }
}
