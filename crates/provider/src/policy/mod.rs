//! What may leave a sandbox, in the terms of the protocol (provider contract,
//! section 6). A provider enforces a policy whole or refuses it: a rule that it
//! would only remember is an error.

mod check;
mod pattern;

use std::collections::BTreeMap;

use dormouse_types::Cidr;

pub use check::expression;
pub use pattern::{DomainPattern, HostName};

/// What may leave a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkPolicy {
    /// Everything public.
    #[default]
    AllowAll,
    /// Nothing.
    DenyAll,
    /// What the rules let out; with none of them, nothing.
    Custom(CustomPolicy),
}

impl NetworkPolicy {
    /// The policy as it may be shown: which headers are set, without their
    /// values, and which requests are answered, without what is said.
    #[must_use]
    pub fn without_values(&self) -> Self {
        let mut shown = self.clone();
        if let Self::Custom(custom) = &mut shown {
            for rule in custom.domains.iter_mut().flat_map(|domain| &mut domain.rules) {
                match &mut rule.action {
                    Action::SetHeaders(headers) => headers.values_mut().for_each(|value| *value = None),
                    Action::Swap(swap) => swap.secret = None,
                    // An answer may hold anything.
                    Action::Respond(response) => {
                        response.headers.clear();
                        response.body = None;
                    }
                    Action::Forward(_) => {}
                }
            }
        }
        shown
    }
}

/// Rules. A denied network wins over an allowed one, and that over domains.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct CustomPolicy {
    /// Domains that may be reached, and what happens to requests to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<DomainPolicy>,
    /// Networks that may be reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_networks: Vec<Cidr>,
    /// Networks that may not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denied_networks: Vec<Cidr>,
}

/// One allowed domain.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DomainPolicy {
    /// Name; a leading `*` stands for any depth of subdomains, one inside for
    /// one label, alone for everything.
    pub domain: String,
    /// What happens to requests; none: they pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// What happens to requests that match.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rule {
    /// Which requests; `None`: all.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<RequestMatch>,
    /// What happens.
    #[serde(flatten)]
    pub action: Action,
}

/// What happens to a request.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Headers are set. Their values are secrets: they are stored, never shown.
    /// `None`: a provider told of the header and keeps its value to itself.
    SetHeaders(BTreeMap<String, Option<String>>),
    /// A secret takes the place of a text that stands for it.
    Swap(Swap),
    /// The request goes to this URL instead.
    Forward(String),
    /// It is answered at once.
    Respond(DirectResponse),
}

impl std::fmt::Debug for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SetHeaders(headers) => f.debug_tuple("SetHeaders").field(&headers.keys()).finish(),
            Self::Swap(swap) => f.debug_tuple("Swap").field(&swap.header).finish(),
            Self::Forward(url) => f.debug_tuple("Forward").field(url).finish(),
            Self::Respond(response) => f.debug_tuple("Respond").field(&response.status).finish(),
        }
    }
}

/// A secret for which a placeholder stands inside the sandbox.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Swap {
    /// The one header in which it is replaced.
    pub header: String,
    /// What stands for the secret.
    pub placeholder: String,
    /// The secret; `None`: it is kept to itself by whoever has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

impl std::fmt::Debug for Swap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Swap({})", self.header)
    }
}

/// An answer in place of the real one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectResponse {
    /// 200 to 599.
    #[serde(rename = "statusCode")]
    pub status: u16,
    /// Headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Type of the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
}

/// Which requests a rule is for. Dimensions are ANDed, methods are ORed.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestMatch {
    /// Path of the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Matcher>,
    /// Any of these methods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub method: Vec<String>,
    /// All of these parameters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query_string: Vec<KeyValueMatcher>,
    /// All of these headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<KeyValueMatcher>,
}

/// A text that must match.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Matcher {
    /// Equal.
    Exact(String),
    /// Begins so.
    StartsWith(String),
    /// Regular expression (RE2).
    Regex(String),
}

/// A parameter or header that must match.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct KeyValueMatcher {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Matcher>,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Matcher>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let headers = BTreeMap::from([("authorization".to_owned(), Some("Bearer s3cret".to_owned()))]);
        let rule = Rule { matches: None, action: Action::SetHeaders(headers) };
        assert!(!format!("{rule:?}").contains("s3cret"));
        let stored = serde_json::to_string(&rule).unwrap();
        assert_eq!(serde_json::from_str::<Rule>(&stored).unwrap(), rule);
        let domain = DomainPolicy { domain: "github.com".to_owned(), rules: vec![rule] };
        let policy = NetworkPolicy::Custom(CustomPolicy { domains: vec![domain], ..CustomPolicy::default() });
        let shown = serde_json::to_string(&policy.without_values()).unwrap();
        assert!(!shown.contains("s3cret") && shown.contains("authorization"), "{shown}");
    }
}
