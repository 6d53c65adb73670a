//! btrfs by its ioctls (`btrfs-ioctl(2)`, `include/uapi/linux/btrfs.h`):
//! subvolumes, snapshots, quota groups, size.
//!
//! Quotas are *simple* ones (Linux 6.7): an extent counts for the subvolume
//! that wrote it, and for every group above that one, for as long as anybody
//! holds it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_ulong;
use std::io;
use std::os::fd::AsRawFd;

use super::check;

const fn ioc(direction: c_ulong, number: c_ulong, size: usize) -> c_ulong {
    direction << 30 | (size as c_ulong) << 16 | 0x94 << 8 | number
}

fn ioctl<T>(fd: &impl AsRawFd, request: c_ulong, args: &mut T) -> io::Result<()> {
    // SAFETY: every caller passes the request that takes exactly a `T`, in the
    // kernel's layout.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(args)) }.into()).map(drop)
}

/// A quota group: level 0 is a subvolume's own, higher ones hold others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Group(u64);

impl Group {
    /// The group `number` (48 bits) of a level.
    pub(crate) const fn new(level: u16, number: u64) -> Self {
        Self((level as u64) << 48 | number & ((1 << 48) - 1))
    }

    /// A subvolume's own.
    pub(crate) const fn of_subvolume(id: u64) -> Self {
        Self::new(0, id)
    }

    pub(crate) const fn level(self) -> u64 {
        self.0 >> 48
    }

    pub(crate) const fn number(self) -> u64 {
        self.0 & ((1 << 48) - 1)
    }
}

#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; 4088],
}

#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transaction: u64,
    flags: u64,
    size: u64,
    inherit: *const Inherit,
    unused: [u64; 2],
    name: [u8; 4040],
}

/// `struct btrfs_qgroup_inherit` with one group.
#[repr(C)]
struct Inherit {
    flags: u64,
    groups: u64,
    referenced_copies: u64,
    exclusive_copies: u64,
    limit: [u64; 5],
    group: u64,
}

fn put_name<const N: usize>(field: &mut [u8; N], name: &str) -> io::Result<()> {
    // The last byte stays zero, as the kernel wants.
    let target = field[..N - 1].get_mut(..name.len());
    target.ok_or_else(|| io::Error::from_raw_os_error(libc::ENAMETOOLONG))?.copy_from_slice(name.as_bytes());
    Ok(())
}

const READ_ONLY: u64 = 1 << 1;
const INHERIT: u64 = 1 << 2;

fn make(
    parent: &impl AsRawFd,
    number: c_ulong,
    source: i64,
    name: &str,
    flags: u64,
    group: Option<Group>,
) -> io::Result<()> {
    let inherit = Inherit {
        flags: 0,
        groups: 1,
        referenced_copies: 0,
        exclusive_copies: 0,
        limit: [0; 5],
        group: group.map_or(0, |group| group.0),
    };
    let mut args = VolArgsV2 {
        fd: source,
        transaction: 0,
        flags: flags | if group.is_some() { INHERIT } else { 0 },
        size: if group.is_some() { size_of::<Inherit>() as u64 } else { 0 },
        inherit: if group.is_some() { &raw const inherit } else { std::ptr::null() },
        unused: [0; 2],
        name: [0; 4040],
    };
    put_name(&mut args.name, name)?;
    ioctl(parent, ioc(1, number, size_of::<VolArgsV2>()), &mut args)
}

/// Makes the subvolume `name` in the directory `parent`; what it writes counts
/// for `group` too.
pub(crate) fn create(parent: &impl AsRawFd, name: &str, group: Option<Group>) -> io::Result<()> {
    make(parent, 24, 0, name, 0, group)
}

/// Makes `name` in the directory `parent` a copy of the subvolume `source`, as
/// its files are now. Everything that was written to `source` before is on
/// disk when this returns, in both.
pub(crate) fn snapshot(
    source: &impl AsRawFd,
    parent: &impl AsRawFd,
    name: &str,
    read_only: bool,
    group: Option<Group>,
) -> io::Result<()> {
    make(parent, 23, source.as_raw_fd().into(), name, if read_only { READ_ONLY } else { 0 }, group)
}

/// Deletes the subvolume `name` in the directory `parent`; the kernel frees
/// its space in the background.
pub(crate) fn delete(parent: &impl AsRawFd, name: &str) -> io::Result<()> {
    let mut args = VolArgs { fd: 0, name: [0; 4088] };
    put_name(&mut args.name, name)?;
    ioctl(parent, ioc(1, 15, size_of::<VolArgs>()), &mut args)
}

/// Number of the subvolume that `fd` lies in.
pub(crate) fn subvolume_id(fd: &impl AsRawFd) -> io::Result<u64> {
    #[repr(C)]
    struct InoLookup {
        tree: u64,
        object: u64,
        name: [u8; 4080],
    }
    const FIRST_FREE_OBJECTID: u64 = 256;
    let mut args = InoLookup { tree: 0, object: FIRST_FREE_OBJECTID, name: [0; 4080] };
    ioctl(fd, ioc(3, 18, size_of::<InoLookup>()), &mut args)?;
    Ok(args.tree)
}

/// What counts for the subvolume that `fd` lies in alone.
pub(crate) fn own_group(fd: &impl AsRawFd) -> io::Result<Group> {
    subvolume_id(fd).map(Group)
}

/// Turns on simple quotas. Harmless where they are on; fails with `EINVAL`
/// where classic ones are.
pub(crate) fn enable_simple_quotas(fs: &impl AsRawFd) -> io::Result<()> {
    #[repr(C)]
    struct QuotaCtl {
        command: u64,
        status: u64,
    }
    const ENABLE_SIMPLE: u64 = 4;
    ioctl(fs, ioc(3, 40, size_of::<QuotaCtl>()), &mut QuotaCtl { command: ENABLE_SIMPLE, status: 0 })
}

#[repr(C)]
struct GroupCreate {
    create: u64,
    group: u64,
}

/// Makes a group. `EEXIST`: there is one.
pub(crate) fn create_group(fs: &impl AsRawFd, group: Group) -> io::Result<()> {
    ioctl(fs, ioc(1, 42, size_of::<GroupCreate>()), &mut GroupCreate { create: 1, group: group.0 })
}

/// Removes a group. `EBUSY`: something still counts for it.
pub(crate) fn remove_group(fs: &impl AsRawFd, group: Group) -> io::Result<()> {
    ioctl(fs, ioc(1, 42, size_of::<GroupCreate>()), &mut GroupCreate { create: 0, group: group.0 })
}

/// What counts for `member` counts for `parent` from now on. `EEXIST`: it did.
pub(crate) fn assign(fs: &impl AsRawFd, member: Group, parent: Group) -> io::Result<()> {
    #[repr(C)]
    struct Assign {
        assign: u64,
        member: u64,
        parent: u64,
    }
    let mut args = Assign { assign: 1, member: member.0, parent: parent.0 };
    ioctl(fs, ioc(1, 41, size_of::<Assign>()), &mut args)
}

/// Limits what may count for a group, in bytes; `None`: no limit.
pub(crate) fn limit(fs: &impl AsRawFd, group: Group, bytes: Option<u64>) -> io::Result<()> {
    #[repr(C)]
    struct Limit {
        group: u64,
        flags: u64,
        max_referenced: u64,
        max_exclusive: u64,
        reserved: [u64; 2],
    }
    const MAX_REFERENCED: u64 = 1;
    // `CLEAR_VALUE`: takes a limit away.
    let max_referenced = bytes.unwrap_or(u64::MAX);
    let mut args =
        Limit { group: group.0, flags: MAX_REFERENCED, max_referenced, max_exclusive: 0, reserved: [0; 2] };
    ioctl(fs, ioc(2, 43, size_of::<Limit>()), &mut args)
}

const ROOT_TREE: u64 = 1;
const QUOTA_TREE: u64 = 8;
const ROOT_ITEM: u32 = 132;
const ORPHAN_ITEM: u32 = 48;
const GROUP_INFO: u32 = 242;
const GROUP_RELATION: u32 = 246;

#[repr(C)]
struct Search {
    tree: u64,
    objects: [u64; 2],
    offsets: [u64; 2],
    transactions: [u64; 2],
    types: [u32; 2],
    items: u32,
    unused: [u32; 9],
    found: [u8; 3992],
}

/// Bytes of a `struct btrfs_ioctl_search_header`.
const HEADER: usize = 32;

/// Calls `each` with object, type, offset and content of every item of a tree
/// whose key lies between the first and the last one of these (keys are ordered
/// by object, type, offset), and whose type is one of `types`.
fn search(
    fs: &impl AsRawFd,
    tree: u64,
    objects: [u64; 2],
    types: [u32; 2],
    offsets: [u64; 2],
    mut each: impl FnMut(u64, u32, u64, &[u8]),
) -> io::Result<()> {
    let (mut object, mut kind, mut offset) = (objects[0], types[0], offsets[0]);
    loop {
        let mut args = Search {
            tree,
            objects: [object, objects[1]],
            offsets: [offset, offsets[1]],
            transactions: [0, u64::MAX],
            types: [kind, types[1]],
            items: u32::MAX,
            unused: [0; 9],
            found: [0; 3992],
        };
        ioctl(fs, ioc(3, 17, size_of::<Search>()), &mut args)?;
        let number = |at: usize| {
            let bytes = args.found.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_ne_bytes)
        };
        let short = |at: usize| {
            let bytes = args.found.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_ne_bytes)
        };
        let mut at = 0;
        let mut last = None;
        for _ in 0..args.items {
            // transid, objectid, offset, type, len
            let (found, place) = (number(at + 8), number(at + 16));
            let (found_kind, length) = (short(at + 24), short(at + 28) as usize);
            let content = args.found.get(at + HEADER..at + HEADER + length).unwrap_or_default();
            // The kernel compares keys as a whole: other types lie in between.
            if found_kind >= types[0] && found_kind <= types[1] {
                each(found, found_kind, place, content);
            }
            last = Some((found, found_kind, place));
            at += HEADER + length;
        }
        let Some(last) = last else { return Ok(()) };
        (object, kind, offset) = match last {
            (found, found_kind, u64::MAX) => (found, found_kind + 1, 0),
            (found, found_kind, place) => (found, found_kind, place + 1),
        };
    }
}

/// Bytes that count for a group. Exact after a commit of the file system
/// ([`commit`], [`snapshot`]); between two, what was true at the last one.
pub(crate) fn group_used(fs: &impl AsRawFd, group: Group) -> io::Result<u64> {
    let mut used = None;
    search(fs, QUOTA_TREE, [0, 0], [GROUP_INFO, GROUP_INFO], [group.0, group.0], |_, _, _, content| {
        used = Some(u64_at(content, 8));
    })?;
    used.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

/// All quota groups of a file system.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// Bytes that count for each.
    pub(crate) used: BTreeMap<Group, u64>,
    /// Members of each that has any.
    pub(crate) members: BTreeMap<Group, BTreeSet<Group>>,
}

/// Reads all quota groups.
pub(crate) fn groups(fs: &impl AsRawFd) -> io::Result<Groups> {
    let mut groups = Groups::default();
    let all = [0, u64::MAX];
    search(fs, QUOTA_TREE, [0, 0], [GROUP_INFO, GROUP_INFO], all, |_, _, group, content| {
        groups.used.insert(Group(group), u64_at(content, 8));
    })?;
    search(fs, QUOTA_TREE, all, [GROUP_RELATION, GROUP_RELATION], all, |one, _, other, _| {
        // Each relation is there twice, once for either side.
        let (one, other) = (Group(one), Group(other));
        if one.level() > other.level() {
            groups.members.entry(one).or_default().insert(other);
        }
    })?;
    Ok(groups)
}

/// Numbers of the subvolumes that are there, those being deleted included.
pub(crate) fn subvolumes(fs: &impl AsRawFd) -> io::Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    // The highest numbers are the file system's own.
    let (objects, all) = ([256, u64::MAX - 256], [0, u64::MAX]);
    search(fs, ROOT_TREE, objects, [ROOT_ITEM, ROOT_ITEM], all, |id, _, _, _| {
        found.insert(id);
    })?;
    Ok(found)
}

/// How many deleted subvolumes still hold their room.
pub(crate) fn being_deleted(fs: &impl AsRawFd) -> io::Result<usize> {
    // `BTRFS_ORPHAN_OBJECTID`
    const ORPHANS: u64 = -5_i64 as u64;
    let mut found = 0;
    let subvolumes = [256, u64::MAX - 256];
    search(fs, ROOT_TREE, [ORPHANS; 2], [ORPHAN_ITEM; 2], subvolumes, |_, _, _, _| found += 1)?;
    Ok(found)
}

/// Begins to commit the running transaction, if there is one, and returns its
/// number, else that of the last one.
pub(crate) fn begin_commit(fs: &impl AsRawFd) -> io::Result<u64> {
    let mut transaction = 0_u64;
    ioctl(fs, ioc(2, 24, size_of::<u64>()), &mut transaction)?;
    Ok(transaction)
}

/// Has the kernel free deleted subvolumes that nobody holds any more. `root` is
/// a directory whose time of change matters to nobody.
///
/// The kernel's cleaner looks for them after a commit, and else twice a minute.
/// A subvolume whose last file was let go after the commit of its deletion
/// waits for the next one, which never comes while nobody writes: hence the
/// change.
pub(crate) fn free_deleted(root: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: no times to read (`futimens(3)`: then it is now).
    check(unsafe { libc::futimens(root.as_raw_fd(), std::ptr::null()) }.into())?;
    begin_commit(root).map(drop)
}

/// Commits the running transaction: what is recorded of subvolumes and quota
/// groups survives from here on. Does not write files' own data.
pub(crate) fn commit(fs: &impl AsRawFd) -> io::Result<()> {
    let mut transaction = begin_commit(fs)?;
    ioctl(fs, ioc(1, 22, size_of::<u64>()), &mut transaction)
}

/// Gives the file system all of its (grown) device.
pub(crate) fn grow_to_device(fs: &impl AsRawFd) -> io::Result<()> {
    let mut args = VolArgs { fd: 0, name: [0; 4088] };
    put_name(&mut args.name, "1:max")?;
    ioctl(fs, ioc(1, 3, size_of::<VolArgs>()), &mut args)
}

/// Rewrites metadata once, in one copy (`btrfs-balance(8)`, `-f
/// -mconvert=single -sconvert=single`). On a new file system this leaves a
/// large first block group for metadata, which data cannot take.
pub(crate) fn keep_one_copy_of_metadata(fs: &impl AsRawFd) -> io::Result<()> {
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct BalanceArgs {
        profiles: u64,
        usage: u64,
        device: u64,
        physical: [u64; 2],
        virtual_: [u64; 2],
        target: u64,
        flags: u64,
        limit: u64,
        stripes: [u32; 2],
        unused: [u64; 6],
    }
    #[repr(C)]
    struct Balance {
        flags: u64,
        state: u64,
        data: BalanceArgs,
        metadata: BalanceArgs,
        system: BalanceArgs,
        progress: [u64; 3],
        unused: [u64; 72],
    }
    const SYSTEM: u64 = 2;
    const METADATA: u64 = 4;
    const FORCE: u64 = 8;
    const CONVERT: u64 = 1 << 8;
    /// `BTRFS_AVAIL_ALLOC_BIT_SINGLE`.
    const SINGLE: u64 = 1 << 48;
    let nothing = BalanceArgs {
        profiles: 0,
        usage: 0,
        device: 0,
        physical: [0; 2],
        virtual_: [0; 2],
        target: 0,
        flags: 0,
        limit: 0,
        stripes: [0; 2],
        unused: [0; 6],
    };
    let single = BalanceArgs { target: SINGLE, flags: CONVERT, ..nothing };
    let mut args = Balance {
        flags: SYSTEM | METADATA | FORCE,
        state: 0,
        data: nothing,
        metadata: single,
        system: single,
        progress: [0; 3],
        unused: [0; 72],
    };
    ioctl(fs, ioc(3, 32, size_of::<Balance>()), &mut args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_large_as_the_kernels() {
        assert_eq!(size_of::<VolArgs>(), 4096);
        assert_eq!(size_of::<VolArgsV2>(), 4096);
        assert_eq!(size_of::<Search>(), 4096);
        assert_eq!(size_of::<Inherit>(), 80);
    }

    #[test]
    fn a_group_has_a_level_and_a_number() {
        let group = Group::new(1, 0xffff_0000_0000_0007);
        assert_eq!((group.level(), group.number()), (1, 7));
        assert!(Group::of_subvolume(300) < group);
    }
}
