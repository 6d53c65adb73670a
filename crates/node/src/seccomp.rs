//! The system-call policy of every sandbox, as data, and its compilation to a
//! BPF program (`seccomp(2)`).
//!
//! It is an allow list. A call that is known and refused answers EPERM, or ENOSYS
//! where a program has another way and takes it then; one that is on no list
//! answers ENOSYS, as on a kernel that does not have it. Other architectures' calls
//! end the process. `docs/system-calls.md` is made from these lists, and the tests
//! ask for every number inside.

mod calls;

use calls::{ALLOWED, LOOKED_AT, REFUSED};

/// `x86_64`, little endian, 64 bit (`linux/audit.h`).
const ARCH_X86_64: u32 = 0xc000_003e;
/// Calls of the x32 personality have this bit.
const X32_BIT: u32 = 0x4000_0000;

const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
const EPERM: u32 = 1;
const ENOMEM: u32 = 12;
const EINVAL: u32 = 22;
const ENOTTY: u32 = 25;
const ENOSYS: u32 = 38;
const EPROTONOSUPPORT: u32 = 93;
const EAFNOSUPPORT: u32 = 97;

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Without `CLONE_NEW*`.
    Namespaces,
    /// By family and protocol.
    Sockets,
    /// By request.
    Requests,
    /// By persona.
    Personalities,
    /// Without `MAP_HUGETLB`.
    Mappings,
    /// Without `MFD_HUGETLB`.
    MemoryFiles,
    /// By level and name.
    SocketOptions,
    /// `setrlimit(2)`: done, but for core dumps.
    Limits,
    /// `prlimit(2)`: likewise, where it sets one.
    LimitsOfProcesses,
    /// `prctl(2)`: without filters of its own, where there are to be none.
    Controls,
    /// `seccomp(2)`: likewise.
    Filters,
}

impl Look {
    /// For the reference.
    #[cfg(test)]
    fn words(self) -> &'static str {
        match self {
            Self::Namespaces => "allowed without a flag `CLONE_NEW*`, else EPERM",
            Self::Sockets => {
                "allowed for Unix, for IP with TCP, UDP and ICMP, and for routing netlink; another \
                 protocol is EPROTONOSUPPORT, another family EAFNOSUPPORT"
            }
            Self::Requests => {
                "allowed but for `TIOCSTI` and `TIOCLINUX` (EPERM) and what is btrfs' own (ENOTTY)"
            }
            Self::Personalities => {
                "allowed for Linux, 32 bits of it, `UNAME26`, `ADDR_NO_RANDOMIZE` and the question, else EPERM"
            }
            Self::Mappings => {
                "allowed without `MAP_HUGETLB`, else ENOMEM: the host's huge pages are the host's"
            }
            Self::MemoryFiles => "allowed without `MFD_HUGETLB`, else ENOSYS",
            Self::SocketOptions => {
                "allowed but for `SO_ATTACH_FILTER` and `SO_ATTACH_REUSEPORT_CBPF` (EPERM): the kernel has one \
                 number of bytes for the programs of all"
            }
            Self::Limits => "allowed; `RLIMIT_CORE` answers 0 and stays as it is: there are no core dumps",
            Self::Controls => {
                "allowed; `PR_SET_SECCOMP` is EINVAL where `sandbox.kernel.own_filters` is false"
            }
            Self::Filters => {
                "allowed; `SECCOMP_SET_MODE_FILTER` is EINVAL where `sandbox.kernel.own_filters` is false"
            }
            Self::LimitsOfProcesses => {
                "allowed; setting `RLIMIT_CORE` answers 0 and does nothing, or EPERM where the old one is asked for"
            }
        }
    }
}

/// `CLONE_NEW*` of `clone(2)` and `unshare(2)`: time, mount, cgroup, uts, ipc,
/// user, pid, net.
const NEW_NAMESPACES: u32 =
    0x80 | 0x2_0000 | 0x200_0000 | 0x400_0000 | 0x800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;

const AF_UNIX: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const AF_NETLINK: u32 = 16;

/// Protocols of IP sockets: the usual one of their type, ICMP, TCP, UDP, ICMPv6.
/// Others are code of the kernel that hardly anybody runs (MPTCP, UDP-Lite, SCTP).
const IP_PROTOCOLS: [u32; 5] = [0, 1, 6, 17, 58];

/// Netlink's routing, which libc asks for interface lists.
const NETLINK_ROUTE: u32 = 0;

/// Terminal tricks that type into somebody else's input.
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;

/// `FICLONE`, `FICLONERANGE`, `FIDEDUPERANGE` (`ioctl_ficlone(2)`), which have the type of
/// those below.
const CLONES: [u32; 3] = [0x4004_9409, 0x4020_940d, 0xc018_9436];

/// The type within a request's number, and that of btrfs' own: on a drive they would make
/// subvolumes, which no limit counts, and tell about the pool. As on any other file system
/// there are none.
const IOCTL_TYPE: u32 = 0xff00;
const BTRFS_IOCTL: u32 = 0x9400;

/// `PER_LINUX`, `PER_LINUX32`, both with `UNAME26`, `ADDR_NO_RANDOMIZE` (debuggers),
/// and the question which it is (`personality(2)`).
const PERSONALITIES: [u32; 6] = [0, 8, 0x2_0000, 0x2_0008, 0x4_0000, 0xffff_ffff];

/// `MAP_HUGETLB` (`mmap(2)`) and `MFD_HUGETLB` (`memfd_create(2)`): pages of a pool that no
/// limit of the sandbox counts.
const MAP_HUGETLB: u32 = 0x4_0000;
const MFD_HUGETLB: u32 = 4;

/// `SOL_SOCKET`, and options that load a program of classic BPF (`socket(7)`).
const SOL_SOCKET: u32 = 1;
const FILTERS: [u32; 2] = [26, 51];

/// `RLIMIT_CORE` (`getrlimit(2)`). At 0 the kernel hands what is left of a process to the
/// program that the host's `core_pattern` may name (`core(5)`); it is 1 so that it does
/// not, and has to stay.
const RLIMIT_CORE: u32 = 4;

/// `PR_SET_SECCOMP` (`prctl(2)`) and `SECCOMP_SET_MODE_FILTER` (`seccomp(2)`).
const PR_SET_SECCOMP: u32 = 22;
const SECCOMP_SET_MODE_FILTER: u32 = 1;

/// Offsets in `struct seccomp_data`.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// What the filter does about a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Allow,
    Errno(u32),
    Look(Look),
}

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const IF_ANY_BIT: u16 = 0x45;

fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, k }
}

/// Returns `action` if the loaded value passes the test, else goes on.
fn when(code: u16, k: u32, action: u32) -> [Instruction; 2] {
    [Instruction { code, jump_true: 0, jump_false: 1, k }, plain(RETURN, action)]
}

/// Returns `action` if the call's first argument is `k`, else goes on.
fn when_first(k: u32, action: u32) -> Vec<Instruction> {
    std::iter::once(plain(LOAD, argument(0))).chain(when(IF_EQUAL, k, action)).collect()
}

impl Answer {
    /// Every path ends with a return.
    fn program(self) -> Vec<Instruction> {
        let mut p = Vec::new();
        match self {
            Self::Allow => {}
            Self::Errno(errno) => p.push(plain(RETURN, ERRNO | errno)),
            Self::Look(Look::Namespaces) => {
                p.push(plain(LOAD, argument(0)));
                p.extend(when(IF_ANY_BIT, NEW_NAMESPACES, ERRNO | EPERM));
            }
            Self::Look(Look::Sockets) => {
                // What a kernel without that protocol says; `sudo` asks for audit, Go for
                // MPTCP, and they do without it.
                let one_of = |protocols: &[u32]| {
                    let mut p = vec![plain(LOAD, argument(2))];
                    p.extend(protocols.iter().flat_map(|protocol| when(IF_EQUAL, *protocol, ALLOW)));
                    p.push(plain(RETURN, ERRNO | EPROTONOSUPPORT));
                    p
                };
                p.push(plain(LOAD, argument(0)));
                p.extend(when(IF_EQUAL, AF_UNIX, ALLOW));
                for (family, protocols) in
                    [(AF_INET, &IP_PROTOCOLS[..]), (AF_INET6, &IP_PROTOCOLS), (AF_NETLINK, &[NETLINK_ROUTE])]
                {
                    let then = one_of(protocols);
                    // A dozen instructions.
                    let skip = u8::try_from(then.len()).unwrap_or(u8::MAX);
                    p.push(Instruction { code: IF_EQUAL, jump_true: 0, jump_false: skip, k: family });
                    p.extend(then);
                }
                p.push(plain(RETURN, ERRNO | EAFNOSUPPORT));
            }
            Self::Look(Look::Requests) => {
                p.push(plain(LOAD, argument(1)));
                for request in [TIOCSTI, TIOCLINUX] {
                    p.extend(when(IF_EQUAL, request, ERRNO | EPERM));
                }
                for request in CLONES {
                    p.extend(when(IF_EQUAL, request, ALLOW));
                }
                p.push(plain(AND, IOCTL_TYPE));
                p.extend(when(IF_EQUAL, BTRFS_IOCTL, ERRNO | ENOTTY));
            }
            Self::Look(Look::Personalities) => {
                p.push(plain(LOAD, argument(0)));
                p.extend(PERSONALITIES.into_iter().flat_map(|persona| when(IF_EQUAL, persona, ALLOW)));
                p.push(plain(RETURN, ERRNO | EPERM));
            }
            Self::Look(Look::Mappings) => {
                p.push(plain(LOAD, argument(3)));
                p.extend(when(IF_ANY_BIT, MAP_HUGETLB, ERRNO | ENOMEM));
            }
            Self::Look(Look::MemoryFiles) => {
                p.push(plain(LOAD, argument(1)));
                p.extend(when(IF_ANY_BIT, MFD_HUGETLB, ERRNO | ENOSYS));
            }
            Self::Look(Look::SocketOptions) => {
                p.push(plain(LOAD, argument(1)));
                // Past the options, where the level is another.
                p.push(Instruction { code: IF_EQUAL, jump_true: 0, jump_false: 5, k: SOL_SOCKET });
                p.push(plain(LOAD, argument(2)));
                p.extend(FILTERS.into_iter().flat_map(|option| when(IF_EQUAL, option, ERRNO | EPERM)));
            }
            Self::Look(Look::Controls) => p.extend(when_first(PR_SET_SECCOMP, ERRNO | EINVAL)),
            Self::Look(Look::Filters) => p.extend(when_first(SECCOMP_SET_MODE_FILTER, ERRNO | EINVAL)),
            Self::Look(Look::Limits) => p.extend(when_first(RLIMIT_CORE, ERRNO)),
            Self::Look(Look::LimitsOfProcesses) => {
                p.push(plain(LOAD, argument(1)));
                p.push(Instruction { code: IF_EQUAL, jump_true: 0, jump_false: 10, k: RLIMIT_CORE });
                // A null pointer, both halves of it, only asks.
                p.push(plain(LOAD, argument(2)));
                p.push(Instruction { code: IF_EQUAL, jump_true: 0, jump_false: 2, k: 0 });
                p.push(plain(LOAD, argument(2) + 4));
                p.push(Instruction { code: IF_EQUAL, jump_true: 6, jump_false: 0, k: 0 });
                // Who wants to know what it was before gets no answer from a filter.
                p.push(plain(LOAD, argument(3)));
                p.push(Instruction { code: IF_EQUAL, jump_true: 0, jump_false: 3, k: 0 });
                p.push(plain(LOAD, argument(3) + 4));
                p.push(Instruction { code: IF_EQUAL, jump_true: 0, jump_false: 1, k: 0 });
                p.push(plain(RETURN, ERRNO));
                p.push(plain(RETURN, ERRNO | EPERM));
            }
        }
        p.push(plain(RETURN, ALLOW));
        p
    }
}

/// The policy by number, in order: from each on, until the next, the answer is this.
/// Where programs may load filters of their own, the calls for it need no look.
fn segments(own_filters: bool) -> Vec<(u32, Answer)> {
    let allowed = ALLOWED.iter().flat_map(|(_, calls)| *calls).map(|call| (call, Answer::Allow));
    let refused = REFUSED
        .iter()
        .flat_map(|(_, errno, calls)| calls.iter().map(move |call| (call, Answer::Errno(*errno))));
    let looked_at = LOOKED_AT.iter().map(|(call, look)| match look {
        Look::Controls | Look::Filters if own_filters => (call, Answer::Allow),
        look => (call, Answer::Look(*look)),
    });
    let mut known: Vec<_> = allowed
        .chain(refused)
        .chain(looked_at)
        // Numbers are small and positive.
        .map(|((_, number), answer)| (u32::try_from(*number).unwrap_or(u32::MAX), answer))
        .collect();
    known.sort_by_key(|(number, _)| *number);
    let unknown = Answer::Errno(ENOSYS);
    let mut segments = vec![(0, unknown)];
    for (number, answer) in known {
        segments.push((number, answer));
        segments.push((number + 1, unknown));
    }
    // Of several that begin at one number the last counts; of several with one
    // answer the first is enough.
    let mut merged: Vec<(u32, Answer)> = Vec::new();
    for (start, answer) in segments {
        if merged.last().is_some_and(|(last, _)| *last == start) {
            merged.pop();
        }
        if merged.last().is_none_or(|(_, last)| *last != answer) {
            merged.push((start, answer));
        }
    }
    merged
}

/// A search tree over segments, for a loaded number.
fn tree(segments: &[(u32, Answer)]) -> Vec<Instruction> {
    let (left, right) = segments.split_at(segments.len() / 2);
    let (Some((middle, _)), false) = (right.first(), left.is_empty()) else {
        return segments.first().map_or_else(Vec::new, |(_, answer)| answer.program());
    };
    let (left, right) = (tree(left), tree(right));
    let mut p = match u8::try_from(left.len()) {
        Ok(skip) => vec![Instruction { code: IF_AT_LEAST, jump_true: skip, jump_false: 0, k: *middle }],
        // Conditional jumps reach 255 instructions.
        Err(_) => {
            let skip = u32::try_from(left.len()).unwrap_or(u32::MAX);
            vec![
                Instruction { code: IF_AT_LEAST, jump_true: 0, jump_false: 1, k: *middle },
                plain(JUMP, skip),
            ]
        }
    };
    p.extend(left);
    p.extend(right);
    p
}

/// The compiled filter: `struct sock_filter` after `struct sock_filter`. Programs may
/// load filters of their own, or may not.
pub(crate) fn compile(own_filters: bool) -> Vec<u8> {
    let mut p = vec![plain(LOAD, OFFSET_ARCH)];
    p.push(Instruction { code: IF_EQUAL, jump_true: 1, jump_false: 0, k: ARCH_X86_64 });
    p.push(plain(RETURN, KILL_PROCESS));
    p.push(plain(LOAD, OFFSET_NUMBER));
    p.extend(when(IF_AT_LEAST, X32_BIT, ERRNO | ENOSYS));
    p.extend(tree(&segments(own_filters)));
    let mut bytes = Vec::with_capacity(p.len() * 8);
    for Instruction { code, jump_true, jump_false, k } in p {
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes.extend_from_slice(&[jump_true, jump_false]);
        bytes.extend_from_slice(&k.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn run(program: &[u8], number: u32, arch: u32, args: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend_from_slice(&number.to_ne_bytes());
        data.extend_from_slice(&arch.to_ne_bytes());
        data.extend_from_slice(&[0; 8]);
        args.iter().for_each(|arg| data.extend_from_slice(&arg.to_ne_bytes()));
        let word = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let (mut pc, mut a) = (0, 0);
        loop {
            let i = &program[pc * 8..pc * 8 + 8];
            let (code, jt, jf, k) = (u16::from_ne_bytes([i[0], i[1]]), i[2], i[3], word(i, 4));
            pc += 1;
            let taken = match code {
                LOAD => {
                    a = word(&data, k as usize);
                    continue;
                }
                AND => {
                    a &= k;
                    continue;
                }
                JUMP => {
                    pc += k as usize;
                    continue;
                }
                RETURN => return k,
                IF_EQUAL => a == k,
                IF_AT_LEAST => a >= k,
                IF_ANY_BIT => a & k != 0,
                _ => panic!("unknown instruction {code:#x}"),
            };
            pc += usize::from(if taken { jt } else { jf });
        }
    }

    fn number(call: i64) -> u32 {
        u32::try_from(call).unwrap()
    }

    fn answer(call: i64, args: &[u64]) -> u32 {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        run(&compile(true), number(call), ARCH_X86_64, all)
    }

    /// What the lists say of a number.
    fn listed(number: i64) -> Option<(&'static str, Answer)> {
        let mut found = Vec::new();
        for (_, calls) in ALLOWED {
            found.extend(calls.iter().filter(|c| c.1 == number).map(|c| (c.0, Answer::Allow)));
        }
        for (_, errno, calls) in REFUSED {
            found.extend(calls.iter().filter(|c| c.1 == number).map(|c| (c.0, Answer::Errno(*errno))));
        }
        found.extend(LOOKED_AT.iter().filter(|l| l.0.1 == number).map(|l| (l.0.0, Answer::Look(l.1))));
        assert!(found.len() < 2, "{number} is on several lists: {found:?}");
        found.pop()
    }

    /// The newest number that was looked at.
    fn newest() -> i64 {
        (0..1000).rev().find(|number| listed(*number).is_some()).unwrap()
    }

    #[test]
    fn the_program_is_the_lists() {
        let program = compile(true);
        assert!(program.len() / 8 < 4096, "BPF_MAXINSNS");
        for number in 0..1000 {
            let found = run(&program, u32::try_from(number).unwrap(), ARCH_X86_64, [0; 6]);
            match listed(number).map(|(_, answer)| answer) {
                Some(Answer::Allow) => assert_eq!(found, ALLOW, "{number}"),
                Some(Answer::Errno(errno)) => assert_eq!(found, ERRNO | errno, "{number}"),
                Some(Answer::Look(_)) => {}
                None => assert_eq!(found, ERRNO | ENOSYS, "{number}"),
            }
        }
        // Every number of this architecture was decided upon: 387 to 423 belong to none.
        for number in (0..=newest()).filter(|number| !(337..424).contains(number)) {
            assert!(listed(number).is_some(), "{number} is on no list");
        }
    }

    #[test]
    fn what_is_looked_at_depends_on_arguments() {
        assert_eq!(answer(libc::SYS_clone, &[0x3d_0f00]), ALLOW, "a thread");
        assert_eq!(answer(libc::SYS_clone, &[17]), ALLOW, "a fork");
        assert_eq!(answer(libc::SYS_unshare, &[0x200]), ALLOW, "own working directory");
        for bit in [0x80_u64, 1 << 17, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30] {
            assert_eq!(answer(libc::SYS_clone, &[bit | 17]), ERRNO | EPERM, "{bit:#x}");
            assert_eq!(answer(libc::SYS_unshare, &[bit]), ERRNO | EPERM, "{bit:#x}");
        }
        for (family, kind, protocol) in [(1, 1, 0), (2, 1, 0), (2, 1, 6), (2, 2, 17), (10, 2, 58), (16, 3, 0)]
        {
            assert_eq!(answer(libc::SYS_socket, &[family, kind, protocol]), ALLOW, "{family} {protocol}");
        }
        for family in [0, 3, 5, 17, 29, 38, 40, 44] {
            assert_eq!(answer(libc::SYS_socket, &[family, 3, 0]), ERRNO | EAFNOSUPPORT, "{family}");
        }
        // MPTCP, UDP-Lite, SCTP, netfilter's netlink, audit.
        for (family, protocol) in [(2, 262), (2, 136), (10, 136), (2, 132), (16, 12), (16, 9)] {
            assert_eq!(answer(libc::SYS_socket, &[family, 1, protocol]), ERRNO | EPROTONOSUPPORT);
        }
        assert_eq!(answer(libc::SYS_ioctl, &[0, 0x5413]), ALLOW);
        assert_eq!(answer(libc::SYS_ioctl, &[0, u64::from(TIOCSTI)]), ERRNO | EPERM);
        assert_eq!(answer(libc::SYS_ioctl, &[0, u64::from(TIOCLINUX)]), ERRNO | EPERM);
        // BTRFS_IOC_SUBVOL_CREATE, and what cp(1) asks for.
        assert_eq!(answer(libc::SYS_ioctl, &[0, 0x5000_940e]), ERRNO | ENOTTY);
        assert_eq!(answer(libc::SYS_ioctl, &[0, u64::from(CLONES[0])]), ALLOW);
        assert_eq!(answer(libc::SYS_personality, &[0xffff_ffff]), ALLOW);
        let (private, huge) = (0x22_u64, u64::from(MAP_HUGETLB));
        assert_eq!(answer(libc::SYS_mmap, &[0, 4096, 3, private]), ALLOW);
        assert_eq!(answer(libc::SYS_mmap, &[0, 4096, 3, private | huge]), ERRNO | ENOMEM);
        // With a size in the upper bits.
        assert_eq!(answer(libc::SYS_mmap, &[0, 4096, 3, private | huge | 30 << 26]), ERRNO | ENOMEM);
        assert_eq!(answer(libc::SYS_memfd_create, &[1, 3]), ALLOW);
        assert_eq!(answer(libc::SYS_memfd_create, &[1, 7]), ERRNO | ENOSYS);
        // SO_REUSEADDR; IP_TTL, which has another option's number.
        for (level, option, wanted) in
            [(1, 2, ALLOW), (0, 26, ALLOW), (1, 26, ERRNO | EPERM), (1, 51, ERRNO | EPERM)]
        {
            assert_eq!(answer(libc::SYS_setsockopt, &[3, level, option]), wanted, "{level} {option}");
        }
        assert_eq!(answer(libc::SYS_setrlimit, &[7, 1]), ALLOW);
        assert_eq!(answer(libc::SYS_setrlimit, &[4, 1]), ERRNO);
        for (resource, new, wanted) in
            [(7, 1, ALLOW), (4, 0, ALLOW), (4, 1, ERRNO), (4, 1 << 32, ERRNO), (4, 0x7fff_0000_1000, ERRNO)]
        {
            assert_eq!(answer(libc::SYS_prlimit64, &[0, resource, new]), wanted, "{resource} {new:#x}");
            for old in [1, 1 << 32] {
                let wanted = if wanted == ERRNO { ERRNO | EPERM } else { ALLOW };
                assert_eq!(answer(libc::SYS_prlimit64, &[0, resource, new, old]), wanted, "{old:#x}");
            }
        }
        for (call, operation) in
            [(libc::SYS_prctl, PR_SET_SECCOMP), (libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER)]
        {
            let asked = |operation: u32, own| {
                let args = [u64::from(operation), 2, 3, 0, 0, 0];
                run(&compile(own), number(call), ARCH_X86_64, args)
            };
            assert_eq!(asked(operation, true), ALLOW);
            assert_eq!(asked(operation, false), ERRNO | EINVAL);
            assert_eq!(asked(operation + 1, false), ALLOW);
        }
        // READ_IMPLIES_EXEC.
        assert_eq!(answer(libc::SYS_personality, &[0x40_0000]), ERRNO | EPERM);
    }

    #[test]
    fn other_architectures_are_refused() {
        assert_eq!(answer(i64::from(X32_BIT), &[]), ERRNO | ENOSYS);
        assert_eq!(run(&compile(true), 0, 0x4000_0003, [0; 6]), KILL_PROCESS);
    }

    /// Made anew with `UPDATE_DOCS=1`.
    #[test]
    fn the_reference_is_made_from_the_lists() {
        let mut text = String::from(
            "# System calls in a sandbox\n\n\
             The filter of every sandbox is an allow list. What is known and refused answers EPERM, or ENOSYS\n\
             where programs have another way and take it then. What is not in the table answers ENOSYS, as on a\n\
             kernel that does not have it; so do calls of x32. A call of another architecture (`int 0x80`) ends\n\
             the process with SIGSYS. This page is made from the lists in `crates/node/src/seccomp/calls.rs`.\n",
        );
        let mut section = |title: &str, calls: &mut dyn Iterator<Item = (String, i64, String)>| {
            text += &format!("\n## {title}\n\n| Number | Call | Answer |\n| --- | --- | --- |\n");
            for (name, number, answer) in calls {
                text += &format!("| {number} | `{name}` | {answer} |\n");
            }
        };
        for (why, calls) in ALLOWED {
            section(why, &mut calls.iter().map(|c| (c.0.to_owned(), c.1, "allowed".to_owned())));
        }
        let looks = LOOKED_AT.iter().map(|((name, number), look)| (*name, *number, look.words()));
        section("Looked at more closely.", &mut looks.map(|(n, k, w)| (n.to_owned(), k, w.to_owned())));
        for (why, errno, calls) in REFUSED {
            let word = if *errno == EPERM { "EPERM" } else { "ENOSYS" };
            section(why, &mut calls.iter().map(|c| (c.0.to_owned(), c.1, word.to_owned())));
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/system-calls.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), text, "UPDATE_DOCS=1 makes it anew");
    }
}
