//! States and kinds that rows, replies and logs spell with one word each. An
//! enum here is the only place where such a word is written.

/// An enum whose variants are words: as text, from text, in JSON and in the
/// database.
#[macro_export]
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident, $kind:literal { $($(#[$word_doc:meta])* $variant:ident = $word:literal,)+ })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$word_doc])* $variant,)+
        }

        impl $name {
            /// Every variant.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::WordError;

            fn from_str(word: &str) -> ::std::result::Result<Self, $crate::WordError> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::WordError { kind: $kind, words: &[$($word),+] }),
                }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, to: S) -> ::std::result::Result<S::Ok, S::Error> {
                to.serialize_str(self.as_str())
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(from: D) -> ::std::result::Result<Self, D::Error> {
                let word = <::std::borrow::Cow<'de, str>>::deserialize(from)?;
                word.parse().map_err(::serde::de::Error::custom)
            }
        }

        $crate::text_column!($name);
    )*};
}

/// A text that is none of the words of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} must be one of {}", .words.join(", "))]
pub struct WordError {
    /// What it should have been.
    pub kind: &'static str,
    /// The words that there are.
    pub words: &'static [&'static str],
}

words! {
    /// State of one run.
    ///
    /// ```text
    /// pending ─► running ─► stopping ─► stopped
    ///    │          │           ▲  │
    ///    └► failed  └── died ───┘  └► aborted (its files were gone)
    /// ```
    RunStatus, "run status" {
        /// Being made.
        Pending = "pending",
        /// Takes commands.
        Running = "running",
        /// How it ends is recorded; its processes are being ended and its files
        /// kept.
        Stopping = "stopping",
        /// Its files are being kept. Other providers report it; our rows do not
        /// have it.
        Snapshotting = "snapshotting",
        /// Ended.
        Stopped = "stopped",
        /// Never came up.
        Failed = "failed",
        /// Ended without its files.
        Aborted = "aborted",
    }

    /// Why a run ended.
    StopReason, "stop reason" {
        /// Somebody asked.
        Requested = "requested",
        /// A snapshot was made of it that ended it.
        Snapshot = "snapshot",
        /// Nobody used it for its idle timeout.
        Idle = "idle",
        /// Its hard lifetime passed.
        Lifetime = "lifetime",
        /// Its processes ended by themselves or were killed.
        Died = "died",
        /// The host was restarted.
        HostRestart = "host_restart",
        /// The sandbox was deleted.
        Deleted = "deleted",
        /// It never came up.
        StartFailed = "start_failed",
    }

    /// Who made a snapshot.
    SnapshotKind, "snapshot kind" {
        /// Somebody asked.
        Manual = "manual",
        /// The stop of a persistent sandbox.
        Automatic = "automatic",
    }

    /// State of a snapshot.
    SnapshotStatus, "snapshot status" {
        /// Sandboxes can start from it.
        Created = "created",
        /// Its files are gone; the record stays for a while.
        Deleted = "deleted",
    }

    /// What the owner of a session says of it (session contract, section 10).
    SessionStatus, "status" {
        /// Work goes on.
        Running = "running",
        /// It was done.
        Completed = "completed",
        /// It came to nothing.
        Failed = "failed",
        /// Put away.
        Archived = "archived",
    }

    /// State of a session's sandbox; the diagram is in `dormouse-sessions`.
    LifecycleState, "lifecycle state" {
        /// No sandbox yet.
        Provisioning = "provisioning",
        /// A live sandbox.
        Active = "active",
        /// On its way to sleep.
        Hibernating = "hibernating",
        /// Asleep; everything is kept.
        Hibernated = "hibernated",
        /// Being made, or on its way back.
        Restoring = "restoring",
        /// Put away by its owner.
        Archived = "archived",
        /// The last change failed.
        Failed = "failed",
    }

    /// Where a delivery to a webhook stands.
    DeliveryState, "delivery state" {
        /// It is to be sent, for the first time or again.
        Waiting = "waiting",
        /// It arrived.
        Delivered = "delivered",
        /// It was given up.
        Failed = "failed",
    }

    /// Why something happened to a session.
    EventReason, "event reason" {
        /// Its sandbox is being made, or woken.
        Provision = "provision",
        /// The repository is being cloned.
        Clone = "clone",
        /// Its sandbox is ready; the branch is the detail.
        Ready = "ready",
        /// Its sandbox did not come, or could not be stopped; why is the detail.
        Failed = "failed",
        /// It was called off while its sandbox was being made.
        CalledOff = "called_off",
        /// Nobody used it for long.
        Idle = "idle",
        /// Its lifetime ended.
        Lifetime = "lifetime",
        /// Somebody asked for its sleep.
        Requested = "requested",
        /// Its sandbox died.
        Died = "died",
        /// Its sandbox sleeps.
        Asleep = "asleep",
        /// It was used over the provider API.
        Used = "used",
        /// It was put away.
        Archived = "archived",
        /// It was taken out again.
        Unarchived = "unarchived",
        /// Nothing was left of what was in its sandbox: it got a new one.
        BeganAnew = "began_anew",
        /// Its sandbox was deleted over the provider API.
        SandboxDeleted = "sandbox_deleted",
        /// What a server that died left unfinished was undone.
        Recovered = "recovered",
    }

    /// How a repository is read, and so by whom a snapshot with it in it may be.
    RepoAccess, "access" {
        /// As anybody reads it.
        Public = "public",
        /// With the service's token, for members of organizations that claim it.
        Claimed = "claimed",
    }

    /// Where the build of an org snapshot is.
    BuildPhase, "build phase" {
        /// A sandbox is being made for it.
        Create = "create",
        /// The repository is being cloned, or brought up to date.
        Clone = "clone",
        /// The repository's set-up runs.
        SetUp = "set_up",
        /// The sandbox's files are being kept.
        Snapshot = "snapshot",
        /// It is being made the one that sandboxes start from.
        Publish = "publish",
        /// It is.
        Published = "published",
        /// It came to nothing.
        Failed = "failed",
    }

    /// Whether the set-up of a repository was run, and how it went.
    SetUp, "set-up" {
        /// The repository has none.
        Nothing = "none",
        /// It has one that is yet to be run.
        Pending = "pending",
        /// It went well.
        Done = "done",
        /// It failed; what it did until then is there.
        Failed = "failed",
    }
}

impl RunStatus {
    /// The run has ended for good.
    #[must_use]
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed | Self::Aborted)
    }
}

#[cfg(test)]
mod tests {
    use super::{LifecycleState, RunStatus, StopReason};

    #[test]
    fn words_lead_back_to_their_variant() {
        for status in RunStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(*status));
        }
        let json = serde_json::to_string(LifecycleState::ALL).unwrap();
        assert_eq!(serde_json::from_str::<Vec<LifecycleState>>(&json).unwrap(), LifecycleState::ALL);
        let error = "gone".parse::<StopReason>().unwrap_err().to_string();
        assert!(error.starts_with("stop reason must be one of requested, snapshot"), "{error}");
    }
}
