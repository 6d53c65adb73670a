//! Users of the sandbox, read from its own `/etc/passwd` and `/etc/group`.
//! Those files belong to the sandbox: they are read with a bound and believed
//! only in so far as they choose among ids of this user namespace.

use std::io::{self, Read as _};

/// Largest user or group file that is read, in bytes.
const MAX_DATABASE: u64 = 1 << 20;

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
    pub(crate) shell: String,
}

/// Ids of a user that the sandbox's own database does not know.
const STRANGER: (u32, u32) = (1000, 1000);

/// The user `name` with all groups: a name or a number, perhaps with a group
/// behind a colon. One that the database does not know runs all the same, as
/// uid 1000: a sandbox must stay usable whatever became of its files.
pub(crate) fn find(name: &str) -> User {
    let (passwd, group) = databases();
    lookup(name, &passwd, &group).unwrap_or_else(|| {
        let home = format!("/home/{name}");
        let home = if std::path::Path::new(&home).is_dir() { home } else { "/".to_owned() };
        stranger(name, STRANGER, home)
    })
}

/// Whether the sandbox's own database knows the user.
pub(crate) fn exists(name: &str) -> bool {
    let (passwd, group) = databases();
    lookup(name, &passwd, &group).is_some()
}

/// Texts of the user and the group database.
pub(crate) fn databases() -> (String, String) {
    (database("/etc/passwd").unwrap_or_default(), database("/etc/group").unwrap_or_default())
}

fn stranger(name: &str, (uid, gid): (u32, u32), home: String) -> User {
    User { name: name.to_owned(), uid, gid, groups: vec![gid], home, shell: "/bin/sh".to_owned() }
}

fn database(path: &str) -> io::Result<String> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // Never a FIFO's open that waits.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut text = Vec::new();
    file.take(MAX_DATABASE).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn lookup(name: &str, passwd: &str, group: &str) -> Option<User> {
    if let Some((name, of)) = name.split_once(':') {
        let gid = group_id(of, group)?;
        return Some(User { gid, groups: vec![gid], ..lookup(name, passwd, group)? });
    }
    let mut user = passwd
        .lines()
        .filter_map(passwd_line)
        .find(|user| user.name == name || user.uid.to_string() == name)
        .or_else(|| {
            // root needs no database: an image without /etc/passwd still runs.
            let root = name == "root" || name == "0";
            root.then(|| stranger("root", (0, 0), "/root".to_owned()))
        })
        // A number needs none either (as in Docker).
        .or_else(|| Some(stranger(name, (name.parse().ok()?, 0), "/".to_owned())))?;
    user.groups = group
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let (_, gid, members) = (fields.next()?, fields.nth(1)?, fields.next()?);
            members.split(',').any(|member| member == user.name).then(|| gid.parse().ok())?
        })
        .filter(|gid| *gid != user.gid)
        .collect();
    user.groups.insert(0, user.gid);
    Some(user)
}

/// Id of a user by name or number.
pub(crate) fn user_id(name: &str, passwd: &str) -> Option<u32> {
    Some(lookup(name, passwd, "")?.uid)
}

/// Id of a group by name or number; that of root needs no database.
pub(crate) fn group_id(name: &str, group: &str) -> Option<u32> {
    let of_line = |line: &str| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    };
    let number = || name.parse().ok().or_else(|| (name == "root").then_some(0));
    group.lines().find_map(of_line).or_else(number)
}

fn passwd_line(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next()?, fields.next()?);
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let (_comment, home, shell) = (fields.next()?, fields.next()?, fields.next().unwrap_or("/bin/sh"));
    Some(User {
        name: name.to_owned(),
        uid,
        gid,
        groups: Vec::new(),
        home: home.to_owned(),
        shell: if shell.is_empty() { "/bin/sh" } else { shell }.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::lookup;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\nubuntu:x:1000:1000::/home/ubuntu:\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:ubuntu,other\nubuntu:x:1000:\ndev:x:50:ubuntu\n";

    #[test]
    fn users_come_with_their_groups() {
        let user = lookup("ubuntu", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.shell.as_str()), (1000, 1000, "/bin/sh"));
        assert_eq!(user.groups, [1000, 27, 50]);
        assert_eq!(lookup("1000", PASSWD, GROUP).unwrap().name, "ubuntu");
    }

    #[test]
    fn an_image_without_a_database_still_has_root() {
        assert_eq!(lookup("root", "", "").unwrap().uid, 0);
        assert!(lookup("ubuntu", "", "").is_none());
    }

    #[test]
    fn images_name_users_in_several_ways() {
        let ids = |name| lookup(name, PASSWD, GROUP).map(|user| (user.uid, user.gid));
        assert_eq!(ids("ubuntu:dev"), Some((1000, 50)));
        assert_eq!(ids("ubuntu:7"), Some((1000, 7)));
        assert_eq!(ids("4000"), Some((4000, 0)));
        assert_eq!(ids("4000:4000"), Some((4000, 4000)));
        assert_eq!(ids("nobody-knows"), None);
        assert_eq!(ids("ubuntu:nobody-knows"), None);
    }
}
