//! Names of branches, as git allows them.

use std::fmt;
use std::str::FromStr;

/// Longest name that is taken, in bytes: `refs/heads/` and the name are a path.
const MAX: usize = 200;

/// The name of a branch, safe as an argument of git and as a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BranchName(String);

/// A text that is no name of a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be the name of a branch: 1 to 200 characters, without spaces, control characters or any of \
     ~ ^ : ? * [ \\ .. @{{ //, and no part that begins with a dot or ends with .lock (git-check-ref-format)"
)]
pub struct BranchError;

impl BranchName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BranchName {
    type Err = BranchError;

    /// By the rules of `git-check-ref-format(1)` with `--branch`.
    fn from_str(text: &str) -> Result<Self, BranchError> {
        let forbidden = |c: char| c.is_whitespace() || c.is_control() || "~^:?*[\\".contains(c);
        let part = |part: &str| {
            !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock") && !part.ends_with('.')
        };
        let fits = text.len() <= MAX
            && !text.starts_with('-')
            && !["HEAD", "@"].contains(&text)
            && !text.contains(forbidden)
            && !text.contains("..")
            && !text.contains("@{")
            && text.split('/').all(part);
        if fits { Ok(Self(text.to_owned())) } else { Err(BranchError) }
    }
}

impl TryFrom<String> for BranchName {
    type Error = BranchError;

    fn try_from(text: String) -> Result<Self, BranchError> {
        text.parse()
    }
}

impl From<BranchName> for String {
    fn from(name: BranchName) -> Self {
        name.0
    }
}

impl fmt::Display for BranchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::BranchName;

    #[test]
    fn names_are_those_of_git() {
        for good in ["main", "feature/x-1", "a.b", "ünïcode", "x@y", "refs/heads/x"] {
            assert!(good.parse::<BranchName>().is_ok(), "{good}");
        }
        let long = "x".repeat(201);
        for bad in [
            "", "-x", "a b", "a..b", "a/", "/a", "a//b", ".a", "a/.b", "a.lock", "a.lock/b", "a.", "@",
            "HEAD", "a@{1}", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "a\nb", "a\u{7f}", &long,
        ] {
            assert!(bad.parse::<BranchName>().is_err(), "{bad:?}");
        }
    }
}
