//! Names of hosts, and patterns of a policy that stand for them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Longest name of a host, in bytes (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;

/// Longest label, in bytes (the same section).
const MAX_LABEL: usize = 63;

/// The name of a host in its one form: lower case, without the dot at the end,
/// letters, digits, hyphens and underscores. An address is none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct HostName(String);

impl HostName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if text.is_empty() || text.len() > MAX_NAME {
            return Err("a host name has 1 to 253 characters");
        }
        if text.parse::<IpAddr>().is_ok() || looks_like_an_address(&text) {
            return Err("an address is no host name");
        }
        let fits = |label: &str| {
            let byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
            !label.is_empty() && label.len() <= MAX_LABEL && label.bytes().all(byte)
        };
        if !text.split('.').all(fits) {
            return Err("a label has 1 to 63 letters, digits, hyphens and underscores");
        }
        Ok(Self(text))
    }
}

/// What `inet_aton(3)` takes for an address: its last label is a number.
fn looks_like_an_address(text: &str) -> bool {
    let last = text.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    hex || (!last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()))
}

/// Which hosts an entry of a policy is for (provider contract, section 6): a name;
/// a leading `*` label stands for any number of labels, another for exactly one;
/// `*` alone for every name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainPattern(String);

impl DomainPattern {
    /// The pattern in its one form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// It is `*`.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.0 == "*"
    }

    /// Whether it stands for `host`.
    #[must_use]
    pub fn matches(&self, host: &HostName) -> bool {
        if self.is_everything() {
            return true;
        }
        let (mut pattern, mut name) = (self.0.rsplit('.').peekable(), host.as_str().rsplit('.'));
        while let Some(label) = pattern.next() {
            let Some(found) = name.next() else { return false };
            if label == "*" && pattern.peek().is_none() {
                // It leads: whatever is left belongs to it.
                return true;
            }
            if !matches_label(label, found) {
                return false;
            }
        }
        name.next().is_none()
    }

    /// Of two patterns that stand for the same host, the rules of the one that says
    /// more about it count: a name before a wildcard, then the one with more labels,
    /// then the one with more letters.
    #[must_use]
    pub fn precision(&self) -> (bool, usize, usize) {
        let letters = self.0.bytes().filter(|b| *b != b'*').count();
        (!self.0.contains('*'), if self.is_everything() { 0 } else { self.0.split('.').count() }, letters)
    }
}

/// One label against one of a pattern, in which a `*` stands for any letters.
fn matches_label(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == label,
        Some((head, tail)) => {
            label.len() >= head.len() + tail.len() && label.starts_with(head) && label.ends_with(tail)
        }
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DomainPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{text:?} is no domain: {why}");
        if text == "*" {
            return Ok(Self(text.to_owned()));
        }
        if !text.is_ascii() {
            return Err(wrong(
                "write international names in their ASCII form, such as xn--bcher-kva.example",
            ));
        }
        if text.contains("**") || text.split('.').any(|label| label.matches('*').count() > 1) {
            return Err(wrong("a label has at most one *"));
        }
        // What a name may be with the wildcards filled in.
        let filled: HostName = text.replace('*', "x").parse().map_err(wrong)?;
        let pattern = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        debug_assert_eq!(pattern.len(), filled.as_str().len());
        Ok(Self(pattern))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> DomainPattern {
        text.parse().unwrap()
    }

    #[test]
    fn one_form_of_a_name() {
        for (text, name) in [
            ("GitHub.COM", "github.com"),
            ("a.b.", "a.b"),
            ("_dmarc.x.test", "_dmarc.x.test"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(text.parse::<HostName>().unwrap().as_str(), name);
        }
        let long = "a".repeat(64);
        for bad in [
            "",
            ".",
            "a..b",
            "a b",
            "a\0b",
            "ex%61mple.com",
            "1.2.3.4",
            "::1",
            "[::1]",
            "0x7f.1",
            "127.1",
            "a.1",
            "bücher.de",
            &long,
            "a/b",
            "a:80",
            "a@b",
        ] {
            assert!(bad.parse::<HostName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn wildcards() {
        let matches = |text: &str, name: &str| pattern(text).matches(&name.parse().unwrap());
        assert!(matches("*", "a") && matches("*", "a.b.c"));
        assert!(matches("github.com", "GitHub.com."));
        assert!(!matches("github.com", "api.github.com") && !matches("github.com", "evilgithub.com"));
        assert!(!matches("github.com", "github.com.evil.test"));
        // Leading: any depth, but not the domain itself.
        assert!(matches("*.shop.test", "registry.shop.test") && matches("*.shop.test", "a.b.shop.test"));
        assert!(!matches("*.shop.test", "shop.test") && !matches("*.shop.test", "evilshop.test"));
        // Inside: one label.
        assert!(matches("s3.*.amazonaws.com", "s3.eu-west-1.amazonaws.com"));
        assert!(!matches("s3.*.amazonaws.com", "s3.a.b.amazonaws.com"));
        assert!(!matches("s3.*.amazonaws.com", "s3.amazonaws.com"));
        assert!(
            matches("api-*.test.com", "api-1.test.com") && !matches("api-*.test.com", "a.api-1.test.com")
        );
        assert!(matches("*.s3.*.amazonaws.com", "x.y.s3.eu.amazonaws.com"));
    }

    #[test]
    fn what_says_more_counts() {
        let texts = ["a.b.test", "*.a.b.test", "*.b.test", "*.test", "*"];
        let precise: Vec<_> = texts.iter().map(|text| pattern(text).precision()).collect();
        assert!(precise.windows(2).all(|pair| pair[0] > pair[1]), "{precise:?}");
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["", "**", "a.**.b", "*a*.b", "http://a.test", "a b", "1.2.3.4", "bücher.de", "a..b"] {
            assert!(bad.parse::<DomainPattern>().is_err(), "{bad}");
        }
        assert_eq!(pattern("*.GitHub.com.").as_str(), "*.github.com");
    }
}
