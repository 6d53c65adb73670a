//! The few lines of git's protocol that are needed (`gitprotocol-common(5)`,
//! `gitprotocol-v2(5)`).

use dormouse_sessions::{RemoteError, Tip};

/// The branches of a repository.
const BRANCHES: &str = "refs/heads/";

/// Ends a section.
const DELIMITER: &str = "0001";

/// Ends a message.
const FLUSH: &str = "0000";

fn line(text: &str) -> String {
    format!("{:04x}{text}", text.len() + 4)
}

/// Asks for `HEAD` and what it points to.
pub(crate) fn ls_head() -> String {
    let arguments = [line("symrefs"), line("ref-prefix HEAD")].concat();
    [&line("command=ls-refs"), DELIMITER, &arguments, FLUSH].concat()
}

/// What the answer says of `HEAD`.
pub(crate) fn head(answer: &[u8]) -> Result<Tip, RemoteError> {
    let odd = || RemoteError::Silent("not a git response".to_owned());
    let mut rest = answer;
    loop {
        let (length, after) = rest.split_at_checked(4).ok_or_else(odd)?;
        let length = std::str::from_utf8(length).ok().and_then(|hex| usize::from_str_radix(hex, 16).ok());
        let length = length.ok_or_else(odd)?;
        // A flush: that was all.
        let Some(length) = length.checked_sub(4) else { return Err(RemoteError::NoBranch) };
        let (text, after) = after.split_at_checked(length).ok_or_else(odd)?;
        let text = std::str::from_utf8(text).map_err(|_| odd())?.trim_end_matches('\n');
        if let Some(words) = text.strip_prefix("ERR ") {
            return Err(RemoteError::Silent(words.chars().take(200).collect()));
        }
        let mut words = text.split(' ');
        let (commit, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if name == "HEAD" {
            let target = words.find_map(|word| word.strip_prefix("symref-target:"));
            let branch = target.and_then(|target| target.strip_prefix(BRANCHES));
            return match branch.filter(|_| dormouse_types::is_commit(commit)) {
                Some(branch) => Ok(Tip { branch: branch.to_owned(), commit: commit.to_owned() }),
                None => Err(RemoteError::NoBranch),
            };
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_to_the_byte() {
        let commit = "a".repeat(40);
        let of = |text: &str| head(format!("{}0000", line(text)).as_bytes());
        let tip = |branch: &str| Ok(Tip { branch: branch.to_owned(), commit: commit.clone() });
        assert_eq!(of(&format!("{commit} HEAD symref-target:refs/heads/a/b\n")), tip("a/b"));
        assert_eq!(of(&format!("{commit} HEAD peeled:x symref-target:refs/heads/m")), tip("m"));
        // A detached one, and one that leads to no branch.
        assert_eq!(of(&format!("{commit} HEAD")), Err(RemoteError::NoBranch));
        assert_eq!(of(&format!("{commit} HEAD symref-target:refs/tags/v1")), Err(RemoteError::NoBranch));
        assert_eq!(of("unborn HEAD symref-target:refs/heads/main"), Err(RemoteError::NoBranch));
        assert_eq!(head(b"0000"), Err(RemoteError::NoBranch));
        assert_eq!(of("ERR no"), Err(RemoteError::Silent("no".to_owned())));
        for odd in [&b""[..], b"00", b"zzzz", b"0010abc", b"\xff\xff\xff\xff"] {
            assert!(matches!(head(odd), Err(RemoteError::Silent(_))), "{odd:?}");
        }
    }
}
