//! Identifiers. Each kind is a type, so one cannot be passed for another, and
//! carries its prefix, so a reader of a log knows what it names.

use std::fmt;
use std::str::FromStr;

/// A text that is not an id of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a {kind}: {rule}")]
pub struct IdError {
    kind: &'static str,
    value: String,
    rule: &'static str,
}

/// Longest id that is read, in bytes.
const MAX_ID: usize = 64;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// A new id: the kind's prefix and a UUIDv7, so ids sort by age.
            #[must_use]
            #[allow(clippy::new_without_default, reason = "a fresh id is not a default")]
            pub fn generate() -> Self {
                Self(format!(concat!($prefix, "{}"), uuid::Uuid::now_v7().simple()))
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(value: &str) -> Result<Self, IdError> {
                let rest = value.strip_prefix($prefix).unwrap_or("");
                let fits = !rest.is_empty()
                    && value.len() <= MAX_ID
                    && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
                if fits {
                    Ok(Self(value.to_owned()))
                } else {
                    Err(IdError {
                        kind: $kind,
                        value: value.chars().take(MAX_ID).collect(),
                        rule: concat!("it starts with ", $prefix, " and has letters, digits, - and _ after it"),
                    })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(value: String) -> Result<Self, IdError> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        $crate::text_column!($name);
    )*};
}

ids! {
    /// Who calls.
    AccountId, "acc_", "account id";
    /// A group of accounts that claims repositories.
    OrgId, "org_", "organization id";
    /// Where an organization is told what happens.
    WebhookId, "hook_", "webhook id";
    /// One event, to one webhook.
    DeliveryId, "dlv_", "delivery id";
    /// An API key's public half: what it is listed and revoked by.
    KeyId, "key_", "key id";
    /// An agent session.
    SessionId, "ses_", "session id";
    /// A sandbox, whatever its name.
    SandboxId, "box_", "sandbox id";
    /// One boot of a sandbox (`session` on the wire, with this prefix).
    RunId, "sbx_", "run id";
    /// A snapshot.
    SnapshotId, "snap_", "snapshot id";
    /// The making of an org snapshot.
    BuildId, "build_", "build id";
    /// A snapshot with a repository in it.
    OrgSnapshotId, "orgsnap_", "org snapshot id";
    /// The files of a sandbox above its image.
    VolumeId, "vol_", "volume id";
    /// A volume of its own that sandboxes mount.
    DriveId, "drive_", "drive id";
    /// A base image.
    ImageId, "img_", "image id";
    /// A command inside a run.
    CommandId, "cmd_", "command id";
    /// A server with its data directory: where sandboxes run.
    HostId, "host_", "host id";
    /// Work that takes time.
    JobId, "job_", "job id";
    /// One holding of a lease.
    LeaseId, "lease_", "lease id";
    /// A request over HTTP, in logs and error replies.
    RequestId, "req_", "request id";
}

/// Name of a sandbox, unique in its namespace: 1 to 128 of `A-Z a-z 0-9 _ -`
/// (provider contract, section 3).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxName(String);

impl SandboxName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of a session's sandbox (session contract, section 5).
    #[must_use]
    pub fn for_session(session: &SessionId) -> Self {
        Self(format!("session-{session}"))
    }

    /// The session that this sandbox belongs to, if its name says so.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        self.0.strip_prefix("session-")?.parse().ok()
    }

    /// A name for a sandbox that the caller did not name.
    #[must_use]
    pub fn generate() -> Self {
        Self(format!("sandbox-{}", uuid::Uuid::now_v7().simple()))
    }
}

impl FromStr for SandboxName {
    type Err = IdError;

    fn from_str(value: &str) -> Result<Self, IdError> {
        let fits = (1..=128).contains(&value.len())
            && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if fits {
            Ok(Self(value.to_owned()))
        } else {
            Err(IdError {
                kind: "sandbox name",
                value: value.chars().take(MAX_ID).collect(),
                rule: "it has 1 to 128 letters, digits, - and _",
            })
        }
    }
}

impl TryFrom<String> for SandboxName {
    type Error = IdError;
    fn try_from(value: String) -> Result<Self, IdError> {
        value.parse()
    }
}

impl From<SandboxName> for String {
    fn from(name: SandboxName) -> Self {
        name.0
    }
}

impl fmt::Display for SandboxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

crate::text_column!(SandboxName);

#[cfg(test)]
mod tests {
    use super::{RunId, SandboxName, SessionId};

    #[test]
    fn ids_keep_to_their_kind() {
        let run = RunId::generate();
        assert_eq!(run.as_str().parse::<RunId>().unwrap(), run);
        assert!(run.as_str().parse::<SessionId>().is_err());
        for bad in ["", "sbx_", "sbx_../x", "sbx_a/b", &format!("sbx_{}", "x".repeat(90))] {
            assert!(bad.parse::<RunId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_session_sandbox_name_leads_back_to_its_session() {
        let session = SessionId::generate();
        let name = SandboxName::for_session(&session);
        assert_eq!(name.session(), Some(session));
        assert_eq!("other".parse::<SandboxName>().unwrap().session(), None);
        assert!("a b".parse::<SandboxName>().is_err());
    }
}
