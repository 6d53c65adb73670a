//! How a repository gets into a sandbox: by shell scripts that run inside, as
//! its default user. Whoever makes sandboxes uses the same ones.
//!
//! Only what was checked goes in, as an argument. Hooks and local transports
//! are off while nobody has looked at the repository; submodules stay out, and of
//! large files the pointers come first. What the shell can do itself it does:
//! each further process would cost as much as the sandbox.

use dormouse_types::{BranchName, is_commit};

/// `$1` URL, `$2` directory, `$3` depth, `$4` branch, tag or commit (empty: the
/// default branch), `$5` what is added to the repository's configuration, `$6` a
/// branch to make there (empty: none), `$7` `--progress` (empty: quiet).
///
/// A remote without a commit is fine. One that has commits, and a `HEAD` that
/// names none of them, is not: nobody would expect an empty directory.
const CLONE: &str = r#"set -e
export GIT_TERMINAL_PROMPT=0 GIT_ALLOW_PROTOCOL=https GIT_LFS_SKIP_SMUDGE=1
git() { command git -c core.hooksPath=/dev/null -c init.defaultBranch=main -c advice.detachedHead=false "$@"; }
case "${#4}:$4" in
*:*[!0-9a-f]*) commit= ;;
40:*) commit=sha1 ;;
64:*) commit=sha256 ;;
*) commit= ;;
esac
if [ "$commit" ]; then
    git init --quiet --object-format="$commit" -- "$2"
    cd -- "$2"
    git remote add origin "$1"
    git fetch --quiet --depth="$3" origin "$4" >&2
    git checkout --quiet --detach FETCH_HEAD >&2
else
    git clone ${7:---quiet} --depth="$3" --no-recurse-submodules ${4:+--branch="$4"} -- "$1" "$2" >&2
    cd -- "$2"
    # Every branch can be fetched, not only the one that was cloned.
    printf '[remote "origin"]\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n' >> .git/config
fi
printf '%s' "$5" >> .git/config
if [ "$6" ]; then git checkout --quiet -b "$6" >&2; fi
"#;

/// `$1` branch that the remote stands at (empty: it is not fetched), `$2` what is
/// added to the repository's configuration, `$3` another branch of the remote's to
/// fetch and check out, `$4` one to make (empty: neither). What is not tracked stays.
const UPDATE: &str = r#"set -e
export GIT_TERMINAL_PROMPT=0 GIT_ALLOW_PROTOCOL=https GIT_LFS_SKIP_SMUDGE=1
printf '%s' "$2" >> .git/config
git() { command git -c core.hooksPath=/dev/null "$@"; }
if [ "$1$3" ]; then
    git fetch --quiet --depth=1 --no-tags origin ${1:+"+refs/heads/$1:refs/remotes/origin/$1"} \
        ${3:+"+refs/heads/$3:refs/remotes/origin/$3"} >&2
fi
if [ "$1" ]; then
    git checkout --quiet --force -B "$1" "refs/remotes/origin/$1" >&2
    git symbolic-ref refs/remotes/origin/HEAD "refs/remotes/origin/$1"
fi
if [ "$3" ]; then git checkout --quiet --force -B "$3" "refs/remotes/origin/$3" >&2; fi
if [ "$4" ]; then git checkout --quiet -b "$4" >&2; fi
"#;

/// Reads what is checked out: a branch, a commit, or both. A branch without a
/// commit is what an empty repository has.
const READ: &str = r#"
read -r head < .git/HEAD
branch=${head#ref: refs/heads/} commit=
if [ "$branch" = "$head" ]; then
    commit=$head branch=
elif [ -f ".git/refs/heads/$branch" ]; then
    read -r commit < ".git/refs/heads/$branch"
else
    commit=$(git rev-parse --quiet --verify HEAD || :)
fi
"#;

/// The word for a directory with nothing in it.
const NOTHING: &str = "nothing";

/// Ends here where there is no repository of the usual kind.
const LOOK: &str = r#"
if [ ! -e .git ] && [ -z "$(ls -A)" ]; then echo nothing; exit 0; fi
[ -f .git/HEAD ] || exit 0
"#;

/// A clone that was cut off has no commit, no branch and no file, and nobody's name,
/// which comes last: what it left goes.
const LEFT: &str = r#"
if [ -z "$commit" ] && [ "$(ls -A)" = .git ] && [ -z "$(git for-each-ref --count=1)" ] && ! git config --local user.name >/dev/null; then
    rm -rf .git
    echo nothing
    exit 0
fi
"#;

/// Fails where nothing is checked out and the remote is not empty.
const CHECK: &str = r#"
if [ -z "$commit" ]; then
    refs=$(git ls-remote --quiet --refs origin | head -n 3 | while read -r _ ref; do printf ' %s' "${ref#refs/}"; done)
    if [ "$refs" ]; then
        echo "its HEAD names the branch $branch, which it does not have; it has:$refs" >&2
        exit 1
    fi
fi
"#;

/// Prints it, a line each, and a word if the repository has a set-up.
const PRINT: &str = r#"
printf '%s\n%s\n' "$branch" "$commit"
for file in .dormouse/setup .devcontainer/devcontainer.json .devcontainer.json; do
    if [ -f "$file" ]; then echo set-up; break; fi
done
"#;

/// A clone into a sandbox.
#[derive(Debug, Clone)]
pub struct Clone<'a> {
    /// `https://…`.
    pub url: &'a str,
    /// Directory that it goes to, below the working directory.
    pub directory: &'a str,
    /// Commits of history.
    pub depth: u32,
    /// Branch, tag or whole commit; `None`: the remote's default branch.
    pub revision: Option<&'a str>,
    /// Who commits in it.
    pub identity: Option<&'a Identity>,
    /// Branch to make there and check out.
    pub new_branch: Option<&'a str>,
    /// Have git say how far it is, on standard error.
    pub progress: bool,
}

/// Who commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name.
    pub name: String,
    /// E-mail address.
    pub email: String,
}

impl Identity {
    /// As a section of git's configuration (`git-config(1)`, "Syntax").
    fn section(&self) -> String {
        let quoted = |text: &str| {
            let text: String = text.chars().filter(|c| !c.is_control()).collect();
            text.replace('\\', "\\\\").replace('"', "\\\"")
        };
        format!("[user]\n\tname = \"{}\"\n\temail = \"{}\"\n", quoted(&self.name), quoted(&self.email))
    }
}

/// How far a clone is, from the last of what git said of it (`Receiving objects:  42%
/// (…)`): by far the longest of its parts.
#[must_use]
pub fn percent(said: &str) -> Option<u8> {
    let (_, rest) = said.rsplit_once("Receiving objects:")?;
    let (number, _) = rest.split_once('%')?;
    number.trim().parse().ok().filter(|percent| *percent <= 100)
}

/// What git said without how far it was: lines that it wrote over.
#[must_use]
pub fn without_progress(said: &str) -> String {
    let lines = said.lines().map(|line| line.rsplit('\r').next().unwrap_or_default());
    let known = |line: &str| {
        [
            "remote: Enumerating",
            "remote: Counting",
            "remote: Compressing",
            "remote: Total",
            "Receiving objects",
            "Resolving deltas",
            "Updating files",
            "Cloning into",
        ]
        .iter()
        .any(|start| line.starts_with(start))
    };
    lines.filter(|line| !known(line)).collect::<Vec<_>>().join("\n")
}

/// What is checked out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkout {
    /// The branch; `None`: a commit alone.
    pub branch: Option<String>,
    /// The commit; `None`: the repository has none.
    pub commit: Option<String>,
    /// The repository says how it is set up.
    pub set_up: bool,
}

impl Checkout {
    /// What a caller is told of it: the branch, or the commit.
    #[must_use]
    pub fn shown(&self) -> String {
        self.branch.clone().or_else(|| self.commit.clone()).unwrap_or_default()
    }

    /// From what a script printed; `None`: something else.
    #[must_use]
    pub fn read(printed: &str) -> Option<Self> {
        let mut lines = printed.lines();
        let (branch, commit) = (lines.next()?, lines.next()?);
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let found = Self { branch: some(branch), commit: some(commit), set_up: lines.next().is_some() };
        (found.branch.is_some() || found.commit.is_some()).then_some(found)
    }
}

/// Longest file of git's own that is read, in bytes: the name of a branch.
pub const MAX_HEAD: usize = 4096;

impl Checkout {
    /// From `.git/HEAD`: a branch, or a commit; `None`: something else.
    #[must_use]
    pub fn of_head(head: &str) -> Option<Self> {
        let head = head.trim_end();
        let fine = |text: &str| !text.is_empty() && !text.contains(|c: char| c.is_control());
        match head.strip_prefix("ref: refs/heads/") {
            Some(branch) if fine(branch) => {
                Some(Self { branch: Some(branch.to_owned()), commit: None, set_up: false })
            }
            _ => is_commit(head).then(|| Self { branch: None, commit: Some(head.to_owned()), set_up: false }),
        }
    }
}

fn argv<const N: usize>(script: String, arguments: [String; N]) -> Vec<String> {
    ["sh".to_owned(), "-c".to_owned(), script, "sh".to_owned()].into_iter().chain(arguments).collect()
}

impl Clone<'_> {
    /// The command that does it, and prints what [`Checkout::read`] reads.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        let identity = self.identity.map(Identity::section).unwrap_or_default();
        let (depth, revision) = (self.depth.to_string(), self.revision.unwrap_or_default().to_owned());
        let new_branch = self.new_branch.unwrap_or_default().to_owned();
        let progress = if self.progress { "--progress" } else { "" }.to_owned();
        let (url, directory) = (self.url.to_owned(), self.directory.to_owned());
        let arguments = [url, directory, depth, revision, identity, new_branch, progress];
        argv([CLONE, READ, CHECK, PRINT].concat(), arguments)
    }
}

/// A branch that somebody wants to have checked out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Branch {
    /// One of the remote's.
    Existing(BranchName),
    /// One that is made, at the tip of the default branch.
    New(BranchName),
}

impl Branch {
    /// Its name, if the remote has it.
    #[must_use]
    pub fn existing(&self) -> Option<&str> {
        match self {
            Self::Existing(name) => Some(name.as_str()),
            Self::New(_) => None,
        }
    }

    /// Its name, if it is made.
    #[must_use]
    pub fn made(&self) -> Option<&str> {
        match self {
            Self::New(name) => Some(name.as_str()),
            Self::Existing(_) => None,
        }
    }
}

/// The command that brings a repository in the working directory to the tip of
/// `tip`, or leaves it where it is, checks `wanted` out, and says who commits from
/// now on. It prints what [`Checkout::read`] reads.
#[must_use]
pub fn update(tip: Option<&str>, wanted: Option<&Branch>, identity: Option<&Identity>) -> Vec<String> {
    let identity = identity.map(Identity::section).unwrap_or_default();
    let text = |name: Option<&str>| name.unwrap_or_default().to_owned();
    let (existing, made) = (wanted.and_then(Branch::existing), wanted.and_then(Branch::made));
    let arguments = [text(tip), identity, text(existing.filter(|name| Some(*name) != tip)), text(made)];
    argv([UPDATE, READ, PRINT].concat(), arguments)
}

/// The command that looks at the working directory. It prints what [`Found::read`]
/// reads.
#[must_use]
pub fn look() -> Vec<String> {
    argv([LOOK, READ, LEFT, PRINT].concat(), [])
}

/// What is in a working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A repository.
    Checkout(Checkout),
    /// Nothing, or what a clone left that was cut off.
    Nothing,
    /// Something else: its owner moved the repository, or made it another kind.
    Other,
}

impl Found {
    /// From what the script printed.
    #[must_use]
    pub fn read(printed: &str) -> Self {
        match printed.trim_end() {
            NOTHING => Self::Nothing,
            _ => Checkout::read(printed).map_or(Self::Other, Self::Checkout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_and_left_out() {
        let said = "Cloning into 'x'...\nremote: Counting objects: 100% (3/3), done.\nReceiving objects:   7% \
                    (1/14)\rReceiving objects:  42% (6/14), 1.2 MiB";
        assert_eq!(percent(said), Some(42));
        assert_eq!(percent("Resolving deltas: 3%"), None);
        assert_eq!(percent("Receiving objects: 1"), None);
        assert_eq!(without_progress(said), "");
        assert_eq!(without_progress(&format!("{said}\nfatal: early EOF\n")), "fatal: early EOF");
    }

    #[test]
    fn names_cannot_leave_their_quotes() {
        let identity = Identity { name: "A \"B\" \\ C\n[core]".to_owned(), email: "a@b".to_owned() };
        let expected = "[user]\n\tname = \"A \\\"B\\\" \\\\ C[core]\"\n\temail = \"a@b\"\n";
        assert_eq!(identity.section(), expected);
    }

    #[test]
    fn what_a_script_printed_is_read() {
        let found = |branch: &str, commit: &str, set_up| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            Some(Checkout { branch: some(branch), commit: some(commit), set_up })
        };
        assert_eq!(Checkout::read("main\nabc\n"), found("main", "abc", false));
        assert_eq!(Checkout::read("main\nabc\nset-up\n"), found("main", "abc", true));
        assert_eq!(Checkout::read("main\n\n"), found("main", "", false));
        assert_eq!(Checkout::read("\nabc\n"), found("", "abc", false));
        assert_eq!(Checkout::read("\n\n"), None);
        assert_eq!(Checkout::read(""), None);
        assert_eq!(Found::read("nothing\n"), Found::Nothing);
        assert_eq!(Found::read(""), Found::Other);
        let checkout = found("main", "abc", false).unwrap();
        assert_eq!(Found::read("main\nabc\n"), Found::Checkout(checkout));
    }
}
