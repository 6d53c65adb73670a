//! What is done about a session, by the state that it is in. Pure: nothing here
//! waits, reads or writes.
//!
//! ```text
//!  create ─► provisioning ──provision──► restoring ──ready──► active
//!                  ▲                      │   ▲                 │ idle, lifetime, pause
//!                  └───── crash ──────────┘   │                 ▼
//!                   (nothing is left)         └─provision── hibernated ◄── hibernating
//!
//!  failed: the last change failed; the next provision heals it, and without one the
//!          reconciler stops what may run, or removes what may be left
//!  any ──its sandbox was deleted──► provisioning
//!  any ──archive──► archived ──unarchive──► hibernated, or provisioning without a sandbox
//! ```

use dormouse_provider::StopReason;
use dormouse_store::SessionRow;
use dormouse_types::{LifecycleState, SessionStatus, Timestamp};

/// What of a session decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) state: LifecycleState,
    /// A sandbox was ready once.
    pub(crate) bound: bool,
    pub(crate) archived: bool,
    /// Its owner wants it gone.
    pub(crate) deleted: bool,
}

impl View {
    pub(crate) fn of(row: &SessionRow) -> Self {
        Self {
            state: row.lifecycle_state,
            bound: row.sandbox_name.is_some(),
            archived: row.status == SessionStatus::Archived,
            deleted: row.deleted_at.is_some(),
        }
    }
}

/// What happens to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Somebody wants its sandbox.
    Provision,
    /// The sandbox is there.
    Ready,
    /// It did not come.
    ProvisionFailed,
    /// Nobody wants it any more: it was stopped, archived or deleted meanwhile.
    CalledOff,
    /// It is to sleep.
    Sleep,
    /// Its sandbox does not run any more.
    Asleep,
    /// Its sandbox could not be stopped.
    SleepFailed,
    /// Its sandbox is gone: somebody deleted it, or what it would start from.
    Gone,
    /// Its owner puts it away; its sandbox sleeps.
    Archive,
    /// Its owner wants it back.
    Unarchive,
    /// Something was done in its sandbox. `running`: whether that runs, if it
    /// was asked.
    Used { running: Option<bool> },
    /// The reconciler looks at it. `busy`: whether a command runs, if it was
    /// asked.
    Look { now: Due, busy: Option<bool> },
}

/// Which of its deadlines have passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    No,
    Idle,
    Lifetime,
}

impl Due {
    pub(crate) fn of(row: &SessionRow, now: Timestamp) -> Self {
        let past = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        if past(row.sandbox_expires_at) {
            Self::Lifetime
        } else if past(row.hibernate_after) {
            Self::Idle
        } else {
            Self::No
        }
    }
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Nothing,
    /// The state is this one from now on.
    Put(LifecycleState),
    /// Its deadline moves.
    Touch,
    /// The sandbox is asked first; the event comes again with the answer.
    Ask,
    /// It is put to sleep, for this reason.
    Hibernate(StopReason),
    /// What was made for it goes; the state stays.
    Discard,
    /// What was made for it goes, and then the state is this one.
    DiscardAndPut(LifecycleState),
    /// It is put away: its sandbox sleeps first.
    Archive,
    /// It goes, with its sandbox.
    Delete,
    /// It is archived.
    Refuse,
}

/// What to do. Total: every event has an answer in every state.
pub(crate) fn decide(view: View, event: Event) -> Action {
    use Action::{Archive, Ask, Delete, Discard, DiscardAndPut, Hibernate, Nothing, Put, Refuse, Touch};
    use LifecycleState::{Active, Archived, Failed, Hibernated, Hibernating, Provisioning, Restoring};
    let View { state, bound, archived, deleted } = view;
    // Where it rests without a live sandbox.
    let rest = if bound { Hibernated } else { Provisioning };
    match (event, state) {
        (Event::Provision | Event::Ready | Event::Sleep, _) if archived => Refuse,
        (Event::Provision, Active) if bound => Nothing,
        // A crash from here on leaves a trace that the reconciler finds.
        (Event::Provision, _) => Put(Restoring),
        (Event::Ready, _) => Put(Active),
        (Event::ProvisionFailed, _) => Put(Failed),
        // Whoever called it off puts the sandbox to sleep; without one it is as new.
        (Event::CalledOff, _) if archived || bound => Nothing,
        (Event::CalledOff, _) => Put(Provisioning),

        (Event::Sleep, _) => Put(Hibernating),
        (Event::Asleep, _) => Put(rest),
        (Event::SleepFailed, _) => Put(Failed),
        // Archived it stays, without a sandbox.
        (Event::Gone, Archived) => Put(Archived),
        (Event::Gone, _) => Put(Provisioning),
        (Event::Archive, _) => Put(Archived),
        (Event::Unarchive, Archived) => Put(rest),
        (Event::Unarchive, _) => Nothing,

        (Event::Used { .. }, Provisioning | Archived) => Nothing,
        (Event::Used { .. }, Active) => Touch,
        (Event::Used { .. }, _) if archived || !bound => Nothing,
        (Event::Used { running: None }, _) => Ask,
        // Nobody is at it: it was woken without the session, or a crash left it.
        (Event::Used { running: Some(true) }, _) => Put(Active),
        (Event::Used { running: Some(false) }, _) => Nothing,

        (Event::Look { .. }, _) if deleted => Delete,
        // A crash came between the word and the deed.
        (Event::Look { .. }, state) if archived && state != Archived => Archive,
        // A crash cut the first provisioning off: what it made was never
        // acknowledged.
        (Event::Look { .. }, Restoring) if !bound => DiscardAndPut(Provisioning),
        // Or a resume: whatever runs is found by the next provision.
        (Event::Look { .. }, Restoring) => Hibernate(StopReason::Requested),
        (Event::Look { .. }, Hibernating) => Hibernate(StopReason::Idle),
        // It heals: what may run is stopped, what may be left goes.
        (Event::Look { now: Due::No, .. }, Failed) => Nothing,
        (Event::Look { .. }, Failed) if bound => Hibernate(StopReason::Requested),
        (Event::Look { .. }, Failed) => Discard,
        (Event::Look { now: Due::Lifetime, .. }, Active) => Hibernate(StopReason::Lifetime),
        (Event::Look { now: Due::Idle, busy: None }, Active) => Ask,
        (Event::Look { now: Due::Idle, busy: Some(true) }, Active) => Touch,
        (Event::Look { now: Due::Idle, busy: Some(false) }, Active) => Hibernate(StopReason::Idle),
        (Event::Look { .. }, _) => Nothing,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A small model: a session, and whether its sandbox runs.
    #[derive(Debug, Clone, Copy)]
    struct Model {
        view: View,
        runs: bool,
    }

    impl Model {
        fn new() -> Self {
            let state = LifecycleState::Provisioning;
            let view = View { state, bound: false, archived: false, deleted: false };
            Self { view, runs: false }
        }

        fn put(&mut self, event: Event) -> Action {
            let action = decide(self.view, event);
            if let Action::Put(state) | Action::DiscardAndPut(state) = action {
                self.view.state = state;
            }
            action
        }

        /// What `provision` does; `works`: the sandbox comes. A crash leaves it
        /// in the middle.
        fn provision(&mut self, works: bool, crash: bool) {
            if self.put(Event::Provision) == Action::Refuse {
                return;
            }
            if crash {
                self.runs |= works;
                return;
            }
            if works {
                self.runs = true;
                assert_eq!(self.put(Event::Ready), Action::Put(LifecycleState::Active));
                self.view.bound = true;
            } else {
                self.put(Event::ProvisionFailed);
            }
        }

        fn hibernate(&mut self, works: bool, crash: bool) {
            if self.put(Event::Sleep) == Action::Refuse {
                return;
            }
            if crash {
                return;
            }
            if works {
                self.runs = false;
                self.put(Event::Asleep);
            } else {
                self.put(Event::SleepFailed);
            }
        }

        fn look(&mut self, now: Due, busy: bool) {
            let action = match self.put(Event::Look { now, busy: None }) {
                Action::Ask => self.put(Event::Look { now, busy: Some(busy) }),
                action => action,
            };
            match action {
                Action::Hibernate(_) => self.hibernate(true, false),
                Action::Discard | Action::DiscardAndPut(_) => self.runs = false,
                _ => {}
            }
        }

        fn used(&mut self) {
            if self.put(Event::Used { running: None }) == Action::Ask {
                self.put(Event::Used { running: Some(self.runs) });
            }
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum Act {
        Provision(bool, bool),
        Hibernate(bool, bool),
        Look(Due, bool),
        Used,
        Archive,
        Unarchive,
        /// Somebody woke the sandbox without the session, or it died.
        Elsewhere(bool),
        /// Somebody deleted it.
        Gone,
    }

    fn acts() -> impl Strategy<Value = Act> {
        let due = prop_oneof![Just(Due::No), Just(Due::Idle), Just(Due::Lifetime)];
        prop_oneof![
            any::<(bool, bool)>().prop_map(|(works, crash)| Act::Provision(works, crash)),
            any::<(bool, bool)>().prop_map(|(works, crash)| Act::Hibernate(works, crash)),
            (due, any::<bool>()).prop_map(|(due, busy)| Act::Look(due, busy)),
            Just(Act::Used),
            Just(Act::Archive),
            Just(Act::Unarchive),
            any::<bool>().prop_map(Act::Elsewhere),
            Just(Act::Gone),
        ]
    }

    fn states() -> impl Strategy<Value = View> {
        let state = prop::sample::select(LifecycleState::ALL);
        (state, any::<[bool; 3]>()).prop_map(|(state, [bound, archived, deleted])| View {
            state,
            bound,
            archived,
            deleted,
        })
    }

    proptest! {
        #[test]
        fn a_session_rests_where_its_sandbox_is(acts in prop::collection::vec(acts(), 1..60)) {
            let mut model = Model::new();
            for act in acts {
                let before = model;
                match act {
                    Act::Provision(works, crash) => model.provision(works, crash),
                    Act::Hibernate(works, crash) if model.view.bound => model.hibernate(works, crash),
                    Act::Hibernate(..) => {}
                    Act::Look(due, busy) => model.look(due, busy),
                    Act::Used => model.used(),
                    Act::Archive if !model.view.archived => {
                        if model.view.bound {
                            model.hibernate(true, false);
                        }
                        model.put(Event::Archive);
                        model.view.archived = true;
                    }
                    Act::Archive => {}
                    Act::Unarchive => {
                        model.put(Event::Unarchive);
                        model.view.archived = false;
                    }
                    Act::Elsewhere(runs) => model.runs = runs && model.view.bound,
                    Act::Gone => {
                        model.put(Event::Gone);
                        (model.view.bound, model.runs) = (false, false);
                    }
                }
                // A sandbox that was handed over is not forgotten while it is there.
                prop_assert!(model.view.bound || !before.view.bound || matches!(act, Act::Gone));
                // Archived is a state of its own, whatever happens besides.
                if model.view.archived {
                    prop_assert_eq!(model.view.state, LifecycleState::Archived);
                }
                if model.view.state == LifecycleState::Active {
                    prop_assert!(model.view.bound);
                }
            }
            // Left alone, it comes to rest with one look, and nothing runs that
            // nobody used.
            if !matches!(model.view.state, LifecycleState::Failed | LifecycleState::Archived) {
                model.look(Due::Lifetime, false);
                let rests = [LifecycleState::Hibernated, LifecycleState::Provisioning];
                prop_assert!(rests.contains(&model.view.state), "{:?}", model);
            }
        }

        #[test]
        fn nothing_asks_twice(view in states(), idle in any::<bool>(), answer in any::<bool>()) {
            let now = if idle { Due::Idle } else { Due::No };
            prop_assert_ne!(decide(view, Event::Look { now, busy: Some(answer) }), Action::Ask);
            prop_assert_ne!(decide(view, Event::Used { running: Some(answer) }), Action::Ask);
        }
    }
}
