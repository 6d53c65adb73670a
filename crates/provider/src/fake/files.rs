//! Files in memory: names that lead to inodes, so that hard links and renames
//! are what they are on a disk, and a copy is a copy.

use std::collections::BTreeMap;

/// Why an operation on files failed: an `errno` and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileError {
    pub(super) errno: i32,
    pub(super) message: String,
}

/// No such file or directory.
pub(super) const ENOENT: i32 = 2;
/// Permission denied.
const EACCES: i32 = 13;
/// It exists already.
const EEXIST: i32 = 17;
/// It is a directory.
const EISDIR: i32 = 21;

pub(super) type Result<T> = std::result::Result<T, FileError>;

fn error<T>(errno: i32, path: &str, why: &str) -> Result<T> {
    Err(FileError { errno, message: format!("{path}: {why}") })
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    Dir,
    File(Vec<u8>),
}

#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) content: Content,
    pub(super) owner: String,
    pub(super) mode: u32,
}

/// A tree of files.
#[derive(Debug, Clone)]
pub(super) struct Files {
    names: BTreeMap<String, u64>,
    inodes: BTreeMap<u64, Inode>,
    next: u64,
}

/// `path` seen from `cwd`, without `.` and `..`; nothing is above the root.
pub(super) fn absolute(cwd: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{cwd}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(at) => &path[..at],
    }
}

impl Files {
    /// Those of an image: a few directories, and one file that only root reads.
    pub(super) fn of_image() -> Self {
        let mut files = Self { names: BTreeMap::new(), inodes: BTreeMap::new(), next: 1 };
        files.put("/", Content::Dir, "root", 0o755);
        for dir in ["/etc", "/home", "/vercel"] {
            files.put(dir, Content::Dir, "root", 0o755);
        }
        files.put("/tmp", Content::Dir, "root", 0o1777);
        for dir in ["/home/ubuntu", "/vercel/sandbox"] {
            files.put(dir, Content::Dir, "ubuntu", 0o755);
        }
        files.put("/etc/shadow", Content::File(b"secret".to_vec()), "root", 0o600);
        files
    }

    fn put(&mut self, path: &str, content: Content, owner: &str, mode: u32) {
        self.inodes.insert(self.next, Inode { content, owner: owner.to_owned(), mode });
        self.names.insert(path.to_owned(), self.next);
        self.next += 1;
    }

    pub(super) fn get(&self, path: &str) -> Result<&Inode> {
        match self.names.get(path).and_then(|inode| self.inodes.get(inode)) {
            Some(inode) => Ok(inode),
            None => error(ENOENT, path, "No such file or directory"),
        }
    }

    pub(super) fn read(&self, path: &str, user: &str) -> Result<Vec<u8>> {
        let inode = self.get(path)?;
        match &inode.content {
            Content::Dir => error(EISDIR, path, "Is a directory"),
            Content::File(_) if user != "root" && inode.owner != user && inode.mode & 0o4 == 0 => {
                error(EACCES, path, "Permission denied")
            }
            Content::File(bytes) => Ok(bytes.clone()),
        }
    }

    pub(super) fn write(
        &mut self,
        path: &str,
        bytes: &[u8],
        append: bool,
        user: &str,
        mode: u32,
    ) -> Result<()> {
        self.get(parent(path))?;
        if let Some(inode) = self.names.get(path).and_then(|inode| self.inodes.get_mut(inode)) {
            return match &mut inode.content {
                Content::Dir => error(EISDIR, path, "Is a directory"),
                Content::File(content) => {
                    if !append {
                        content.clear();
                    }
                    content.extend_from_slice(bytes);
                    Ok(())
                }
            };
        }
        self.put(path, Content::File(bytes.to_vec()), user, mode);
        Ok(())
    }

    pub(super) fn mkdir(&mut self, path: &str, parents: bool, user: &str) -> Result<()> {
        match self.get(path) {
            Ok(Inode { content: Content::Dir, .. }) if parents => return Ok(()),
            Ok(_) => return error(EEXIST, path, "File exists"),
            Err(_) => {}
        }
        if self.get(parent(path)).is_err() {
            if !parents {
                return error(ENOENT, path, "No such file or directory");
            }
            self.mkdir(parent(path), true, user)?;
        }
        self.put(path, Content::Dir, user, 0o755);
        Ok(())
    }

    pub(super) fn link(&mut self, from: &str, to: &str) -> Result<()> {
        let Some(inode) = self.names.get(from).copied() else {
            return error(ENOENT, from, "No such file or directory");
        };
        self.names.insert(to.to_owned(), inode);
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        self.get(from)?;
        let below = format!("{from}/");
        let moved: Vec<String> =
            self.names.keys().filter(|name| *name == from || name.starts_with(&below)).cloned().collect();
        for name in moved {
            if let Some(inode) = self.names.remove(&name) {
                self.names.insert(format!("{to}{}", &name[from.len()..]), inode);
            }
        }
        Ok(())
    }

    /// Names in a directory.
    pub(super) fn list(&self, path: &str) -> Result<Vec<String>> {
        self.get(path)?;
        let below = if path == "/" { "/".to_owned() } else { format!("{path}/") };
        let names = self.names.keys().filter_map(|name| name.strip_prefix(&below));
        Ok(names.filter(|name| !name.is_empty() && !name.contains('/')).map(str::to_owned).collect())
    }

    /// Bytes of all files.
    pub(super) fn size(&self) -> u64 {
        let of = |inode: &Inode| match &inode.content {
            Content::Dir => 0,
            Content::File(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        };
        self.inodes.values().map(of).sum()
    }
}
