//! What a sandbox's task does, by the phase that it finds its sandbox in. Pure:
//! nothing here waits, reads or writes.
//!
//! ```text
//!            start                  processes end, or are to
//!  asleep ──────────► live ──────────────────────────────┐
//!    ▲                  │ by themselves                    │
//!    │                  ▼                                  ▼
//!    │               dying ──────── end ───────────────► ending
//!    │                                                     │ files are kept or dropped,
//!    ├─────────────────────────────────────────────────────┘ and that is recorded
//!    └──── finish ──── left over (an end that failed, and whose task is gone)
//! ```
//!
//! `ending` is seen by an order only where an end failed half-way: the order
//! goes on with it, as it was meant.

use dormouse_provider::StopReason;

/// What is with a sandbox when its task takes up an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No run is live.
    Asleep,
    /// The rows know of a live run that nobody has.
    LeftOver,
    /// A run takes commands.
    Live,
    /// The processes of a run are ending by themselves.
    Dying,
    /// How the run ends is recorded; that it did is not.
    Ending,
}

/// What happens to a sandbox. `current`: the order names the run that is live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Resume,
    Stop {
        current: bool,
        reason: StopReason,
    },
    Snapshot {
        current: bool,
        live: bool,
    },
    Copy,
    Delete,
    Update,
    SetPolicy {
        current: bool,
    },
    Extend {
        current: bool,
    },
    /// The processes are gone.
    Died,
    /// The hard lifetime is over.
    Expired,
}

/// What comes before the order itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Wait until the last process is gone.
    AwaitDeath,
    /// End the live run, as was recorded, else for this reason.
    End(StopReason),
    /// Finish a run that nobody has, as was recorded, else for this reason.
    FinishLeftOver(StopReason),
}

/// The order itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// Nothing more: tell what is recorded.
    Answer,
    /// Start a run.
    Start,
    /// Forget the sandbox.
    Forget,
    /// Copy the files under the live run.
    CopyLive,
    /// Copy the files that lie there.
    CopyAsleep,
    /// Change the rows, and what is in force.
    Change,
    /// There is no live run for this.
    Refuse,
}

/// Steps, in this order, and then the order itself; where a step fails, so does
/// the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) then: Then,
}

fn plan(steps: impl IntoIterator<Item = Step>, then: Then) -> Plan {
    Plan { steps: steps.into_iter().collect(), then }
}

/// What to do. Total: every event has an answer in every phase.
pub(crate) fn decide(phase: Phase, event: Event) -> Plan {
    use Phase::{Asleep, Dying, Ending, LeftOver, Live};
    use Step::{AwaitDeath, End, FinishLeftOver};
    use StopReason::{Deleted, Died, Lifetime, Snapshot};
    match (event, phase) {
        (Event::Resume, Asleep) => plan([], Then::Start),
        (Event::Resume, LeftOver) => plan([FinishLeftOver(Died)], Then::Start),
        (Event::Resume, Live) => plan([], Then::Answer),
        // The news of its death is still on its way.
        (Event::Resume, Dying | Ending) => plan([AwaitDeath, End(Died)], Then::Start),

        (Event::Stop { reason, .. }, LeftOver) => plan([FinishLeftOver(reason)], Then::Answer),
        (Event::Stop { current: true, reason }, Live | Dying | Ending) => plan([End(reason)], Then::Answer),
        // Another one: that which was meant has ended.
        (Event::Stop { .. }, _) => plan([], Then::Answer),

        (Event::Snapshot { current: true, live: true }, Live) => plan([], Then::CopyLive),
        (Event::Snapshot { current: true, live: false }, Live | Dying) => plan([End(Snapshot)], Then::Answer),
        (Event::Snapshot { .. }, _) => plan([], Then::Refuse),

        (Event::Copy, Live) => plan([], Then::CopyLive),
        (Event::Copy, Dying | Ending) => plan([AwaitDeath, End(Died)], Then::CopyAsleep),
        (Event::Copy, LeftOver) => plan([FinishLeftOver(Died)], Then::CopyAsleep),
        (Event::Copy, Asleep) => plan([], Then::CopyAsleep),

        // One step with the end of its run: a deletion that is cut off goes on.
        (Event::Delete, Live | Dying | Ending) => plan([End(Deleted)], Then::Answer),
        (Event::Delete, LeftOver) => plan([FinishLeftOver(Deleted)], Then::Answer),
        (Event::Delete, Asleep) => plan([], Then::Forget),

        (Event::Update, _) => plan([], Then::Change),
        (Event::SetPolicy { current: true } | Event::Extend { current: true }, Live) => {
            plan([], Then::Change)
        }
        (Event::SetPolicy { .. } | Event::Extend { .. }, _) => plan([], Then::Refuse),

        (Event::Died, Live | Dying | Ending) => plan([End(Died)], Then::Answer),
        (Event::Expired, Live | Dying | Ending) => plan([End(Lifetime)], Then::Answer),
        (Event::Died | Event::Expired, Asleep | LeftOver) => plan([], Then::Answer),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A small model of one sandbox: what is true of it, and what each act may
    /// only be done to.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Model {
        phase: Phase,
        there: bool,
        runs: u32,
    }

    impl Model {
        /// Applies a step. `works`: it does not fail half-way.
        fn step(&mut self, step: Step, works: bool) -> bool {
            match step {
                Step::AwaitDeath => {
                    assert!(matches!(self.phase, Phase::Dying | Phase::Ending));
                    true
                }
                Step::End(reason) => {
                    assert!(matches!(self.phase, Phase::Live | Phase::Dying | Phase::Ending));
                    self.phase = if works { Phase::Asleep } else { Phase::Ending };
                    self.there &= !(works && reason == StopReason::Deleted);
                    works
                }
                Step::FinishLeftOver(reason) => {
                    assert_eq!(self.phase, Phase::LeftOver);
                    self.phase = if works { Phase::Asleep } else { Phase::LeftOver };
                    self.there &= !(works && reason == StopReason::Deleted);
                    works
                }
            }
        }

        fn then(&mut self, then: Then, works: bool) {
            match then {
                Then::Answer | Then::Change | Then::Refuse => {}
                // One live run: nothing is started beside another.
                Then::Start => {
                    assert_eq!(self.phase, Phase::Asleep);
                    if works {
                        self.phase = Phase::Live;
                        self.runs += 1;
                    }
                }
                Then::Forget => {
                    assert_eq!(self.phase, Phase::Asleep);
                    self.there &= !works;
                }
                Then::CopyLive => assert_eq!(self.phase, Phase::Live),
                Then::CopyAsleep => assert_eq!(self.phase, Phase::Asleep),
            }
        }
    }

    fn phases() -> impl Strategy<Value = Phase> {
        prop_oneof![
            Just(Phase::Asleep),
            Just(Phase::LeftOver),
            Just(Phase::Live),
            Just(Phase::Dying),
            Just(Phase::Ending)
        ]
    }

    fn events() -> impl Strategy<Value = Event> {
        let reasons = prop::sample::select(StopReason::ALL);
        prop_oneof![
            Just(Event::Resume),
            (any::<bool>(), reasons).prop_map(|(current, reason)| Event::Stop { current, reason }),
            any::<(bool, bool)>().prop_map(|(current, live)| Event::Snapshot { current, live }),
            Just(Event::Copy),
            Just(Event::Delete),
            Just(Event::Update),
            any::<bool>().prop_map(|current| Event::SetPolicy { current }),
            any::<bool>().prop_map(|current| Event::Extend { current }),
            Just(Event::Died),
            Just(Event::Expired),
        ]
    }

    /// What happens besides orders.
    fn worlds() -> impl Strategy<Value = (Event, Vec<bool>, bool)> {
        (events(), prop::collection::vec(any::<bool>(), 4), any::<bool>())
    }

    proptest! {
        #[test]
        fn whatever_happens_there_is_one_run_and_every_order_has_its_effect(
            phase in phases(),
            happenings in prop::collection::vec(worlds(), 1..40),
        ) {
            let mut model = Model { phase, there: true, runs: 0 };
            for (event, works, elsewhere) in happenings {
                if !model.there {
                    break;
                }
                match (model.phase, elsewhere) {
                    // Its processes are ending, or its task went with an end
                    // half-done.
                    (Phase::Live, true) => model.phase = Phase::Dying,
                    (Phase::Ending, true) => model.phase = Phase::LeftOver,
                    _ => {}
                }
                let before = model;
                let plan = decide(model.phase, event);
                let mut works = works.into_iter();
                let mut whole = true;
                for step in plan.steps {
                    if !model.step(step, works.next().unwrap_or(true)) {
                        whole = false;
                        break;
                    }
                }
                if !whole {
                    continue;
                }
                let acts = works.next().unwrap_or(true);
                model.then(plan.then, acts);
                match event {
                    Event::Resume if acts => {
                        prop_assert_eq!(model.phase, Phase::Live);
                        prop_assert!(model.runs - before.runs <= 1);
                    }
                    Event::Delete if acts => prop_assert!(!model.there),
                    Event::Stop { current: true, .. } | Event::Died | Event::Expired => {
                        prop_assert!(matches!(model.phase, Phase::Asleep | Phase::LeftOver));
                    }
                    _ => {}
                }
                // A refusal changes nothing.
                if plan.then == Then::Refuse {
                    prop_assert_eq!(model, before);
                }
            }
        }
    }
}
