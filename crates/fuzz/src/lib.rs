//! Fuzzing of parsers in plain tests, on a stable compiler: every input of a kept corpus,
//! and then changes of them for a bounded time. What breaks a parser is made small and
//! kept in the corpus, so that every later run begins with it.
//!
//! What this does not do is watch which lines an input reaches. A corpus therefore holds
//! one input for each shape that its parser knows.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestError, TestRunner};

/// How long a target is tried where `FUZZ_SECONDS` does not say.
const BRIEFLY: Duration = Duration::from_millis(500);

/// One change of an input.
#[derive(Debug, Clone)]
enum Change {
    /// A byte becomes another.
    Set(Index, u8),
    /// Two bytes become another number, as a length is written on the wire.
    Length(Index, u16),
    /// Bytes are put in.
    Insert(Index, Vec<u8>),
    /// Bytes are taken out.
    Remove(Index, usize),
    /// Bytes are put in once more, elsewhere.
    Repeat(Index, usize, Index),
    /// A word gives way to another of the corpus.
    Word(Index, Index),
    /// From here on it is another input.
    Splice(Index, Index),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let at = any::<Index>;
    let length = prop_oneof![any::<u16>(), Just(0), Just(u16::MAX), 0..64_u16];
    let change = prop_oneof![
        1 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        1 => (at(), length).prop_map(|(at, length)| Change::Length(at, length)),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        1 => (at(), 1..17_usize).prop_map(|(at, length)| Change::Remove(at, length)),
        1 => (at(), 1..65_usize, at()).prop_map(|(from, length, to)| Change::Repeat(from, length, to)),
        4 => (at(), at()).prop_map(|(at, word)| Change::Word(at, word)),
        1 => (at(), at()).prop_map(|(at, other)| Change::Splice(at, other)),
    ];
    prop::collection::vec(change, 1..6)
}

/// Where the words of an input begin and end.
fn words(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    for part in bytes.split(|byte| !byte.is_ascii_alphanumeric()) {
        if !part.is_empty() {
            found.push((at, at + part.len()));
        }
        at += part.len() + 1;
    }
    found
}

fn apply(mut input: Vec<u8>, changes: &[Change], corpus: &[Vec<u8>], dictionary: &[Vec<u8>]) -> Vec<u8> {
    for change in changes {
        // There is always a place behind the last byte.
        let place = |at: &Index| at.index(input.len() + 1);
        match change {
            Change::Set(at, byte) => {
                let at = place(at);
                if let Some(there) = input.get_mut(at) {
                    *there = *byte;
                }
            }
            Change::Length(at, length) => {
                let at = place(at);
                if let Some(there) = input.get_mut(at..at + 2) {
                    there.copy_from_slice(&length.to_be_bytes());
                }
            }
            Change::Insert(at, bytes) => {
                let at = place(at);
                input.splice(at..at, bytes.iter().copied());
            }
            Change::Remove(at, length) => {
                let at = place(at);
                input.drain(at..(at + length).min(input.len()));
            }
            Change::Repeat(from, length, to) => {
                let (from, to) = (place(from), place(to));
                let part = input[from..(from + length).min(input.len())].to_vec();
                input.splice(to..to, part);
            }
            Change::Word(at, word) => {
                let words = words(&input);
                if !words.is_empty() && !dictionary.is_empty() {
                    let (begin, end) = *at.get(&words);
                    input.splice(begin..end, word.get(dictionary).iter().copied());
                }
            }
            Change::Splice(at, other) => {
                let at = place(at);
                let other = other.get(corpus);
                input.truncate(at);
                input.extend(other.iter().skip(at));
            }
        }
    }
    input
}

/// Tries `check` on every file of the folder `corpus`, and then on changes of them for
/// `FUZZ_SECONDS` of the environment, half a second where that is not set.
///
/// # Panics
/// Where `check` does. The smallest input that it was seen with is then a new file of the
/// folder. Also without a corpus.
pub fn run(corpus: impl AsRef<Path>, check: impl Fn(&[u8])) {
    let folder = corpus.as_ref();
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let time = seconds.map_or(BRIEFLY, Duration::from_secs_f64);
    if let Err(broken) = search(folder, time, &check) {
        let name = folder.join(format!("found-{:016x}", hash(&broken.input)));
        let kept = std::fs::write(&name, &broken.input);
        panic!("{}: {} (kept: {kept:?})", name.display(), broken.reason);
    }
}

struct Broken {
    input: Vec<u8>,
    reason: String,
}

fn search(folder: &Path, time: Duration, check: &impl Fn(&[u8])) -> Result<(), Broken> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap_or_else(|error| panic!("{}: {error}", folder.display())).path())
        .collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files
        .iter()
        .map(|file| std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display())))
        .collect();
    assert!(!corpus.is_empty(), "{}: no input", folder.display());
    for (file, input) in files.iter().zip(&corpus) {
        println!("{}", file.display());
        check(input);
    }

    let mut dictionary: Vec<Vec<u8>> =
        corpus.iter().flat_map(|input| words(input).into_iter().map(|(a, b)| input[a..b].to_vec())).collect();
    dictionary.sort();
    dictionary.dedup();
    // What breaks it is kept as a file of the corpus, not by the seed that led there.
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let strategy = (any::<Index>(), changes());
    let changed = |(seed, changes): &(Index, Vec<Change>)| {
        apply(seed.get(&corpus).clone(), changes, &corpus, &dictionary)
    };
    let until = Instant::now() + time;
    while Instant::now() < until {
        let tried = runner.run(&strategy, |case| {
            check(&changed(&case));
            Ok(())
        });
        match tried {
            Ok(()) => {}
            Err(TestError::Fail(reason, case)) => {
                // What was made small so far are the changes, not what came of them.
                let input = smallest(changed(&case), check);
                return Err(Broken { input, reason: reason.to_string() });
            }
            Err(TestError::Abort(reason)) => panic!("{}: {reason}", folder.display()),
        }
    }
    Ok(())
}

/// The input without every part that it breaks `check` without.
fn smallest(mut input: Vec<u8>, check: &impl Fn(&[u8])) -> Vec<u8> {
    let breaks = |input: &[u8]| catch_unwind(AssertUnwindSafe(|| check(input))).is_err();
    let mut length = input.len();
    while length > 0 {
        let mut at = 0;
        while at < input.len() {
            let mut without = input.clone();
            without.drain(at..(at + length).min(input.len()));
            if breaks(&without) {
                input = without;
            } else {
                at += length;
            }
        }
        length /= 2;
    }
    input
}

/// FNV-1a: a name, and nothing that has to be safe.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A parser of lengths that believes what it is told.
    fn breaks(bytes: &[u8]) {
        if let [length, rest @ ..] = bytes {
            let _ = &rest[..usize::from(*length)];
        }
    }

    #[test]
    fn what_breaks_is_found_and_made_small() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/lengths");
        let broken = search(&folder, Duration::from_secs(60), &breaks).err();
        let broken = broken.unwrap_or_else(|| panic!("nothing was found"));
        assert!(broken.input.len() <= 4, "{:?}", broken.input);
        assert!(search(&folder, BRIEFLY, &|_: &[u8]| {}).is_ok());
    }

    #[test]
    fn words_give_way_to_others() {
        let corpus = [b"{\"a\": 12}".to_vec(), b"other".to_vec()];
        assert_eq!(words(&corpus[0]), [(2, 3), (6, 8)]);
        assert!(words(b"").is_empty() && words(b"--").is_empty());
    }
}
