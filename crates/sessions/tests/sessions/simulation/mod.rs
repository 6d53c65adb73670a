//! Deterministic simulation: servers, their database, a provider, a git host and
//! callers in one process, driven by a seed. It decides what comes before what,
//! what fails, how time goes and when a server dies; the same seed is the same
//! history, step by step. Real are the sessions, their jobs and leases, and the
//! database's code; in memory are the sandboxes and the git host.
//!
//! `make sim SEEDS=10000` runs as many, `make sim SEED=17` tells one of them.

mod checks;
mod hosts;
mod schedule;
mod world;

use world::World;

/// Histories that a plain test run has.
const SEEDS: u64 = 150;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: no number")))
}

/// Steps that a history that went wrong shows of itself.
const LAST: usize = 40;

/// What calls came to, in all histories of this run.
static OUTCOMES: std::sync::Mutex<std::collections::BTreeMap<String, usize>> =
    std::sync::Mutex::new(std::collections::BTreeMap::new());

fn tell(seed: u64) -> Option<String> {
    let history = World::run(seed);
    let mut outcomes = OUTCOMES.lock().unwrap();
    for one in &history.outcome {
        let kind = one.replace(|c: char| c.is_ascii_digit(), "");
        *outcomes.entry(kind).or_default() += 1;
    }
    drop(outcomes);
    let wrong = history.wrong?;
    let all = std::env::var_os("TRACE").is_some();
    let rest = history.trace.iter().position(|what| what == "to rest").unwrap_or(history.trace.len());
    let shown = if all { &history.trace[..] } else { &history.trace[rest.saturating_sub(LAST)..rest] };
    Some(format!("seed {seed}: {wrong}\n    {}", shown.join("\n    ")))
}

#[test]
fn no_history_breaks_an_invariant() {
    if let Some(seed) = number("SEED") {
        assert!(tell(seed).is_none_or(|wrong| {
            eprintln!("{wrong}");
            false
        }));
        return;
    }
    let (from, seeds) = (number("FROM").unwrap_or(0), number("SEEDS").unwrap_or(SEEDS));
    let workers = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let work = |worker: u64| {
            (from + worker..from + seeds).step_by(usize::try_from(workers).unwrap()).find_map(tell)
        };
        let running: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        running.into_iter().filter_map(|worker| worker.join().unwrap()).collect()
    });
    for (outcome, count) in &*OUTCOMES.lock().unwrap() {
        eprintln!("{count:6} {outcome}");
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A seed that shows a fault shows it again.
#[test]
fn a_seed_is_one_history() {
    for seed in 0..5 {
        let (one, other) = (World::run(seed), World::run(seed));
        assert!(one.trace.len() > 100, "{:?}", one.trace);
        let differs = one.trace.iter().zip(&other.trace).position(|(one, other)| one != other);
        assert!(
            differs.is_none() && one.trace.len() == other.trace.len(),
            "seed {seed}, step {differs:?}: {:?} {:?}",
            differs.map(|at| &one.trace[at.saturating_sub(25)..=at]),
            differs.map(|at| &other.trace[at..(at + 6).min(other.trace.len())])
        );
        assert_eq!(one.outcome, other.outcome, "seed {seed}");
    }
    assert_ne!(World::run(1).trace, World::run(2).trace);
}
