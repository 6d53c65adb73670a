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

/// The user `name` (or numeric id), with all groups.
pub(crate) fn find(name: &str) -> io::Result<User> {
    let passwd = database("/etc/passwd").unwrap_or_default();
    let group = database("/etc/group").unwrap_or_default();
    lookup(name, &passwd, &group)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no user {name:?} in the sandbox")))
}

fn database(path: &str) -> io::Result<String> {
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(MAX_DATABASE).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn lookup(name: &str, passwd: &str, group: &str) -> Option<User> {
    let mut user = passwd
        .lines()
        .filter_map(passwd_line)
        .find(|user| user.name == name || user.uid.to_string() == name)
        .or_else(|| {
            // root needs no database: an image without /etc/passwd still runs.
            (name == "root" || name == "0").then(|| User {
                name: "root".to_owned(),
                uid: 0,
                gid: 0,
                groups: Vec::new(),
                home: "/root".to_owned(),
                shell: "/bin/sh".to_owned(),
            })
        })?;
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
}
