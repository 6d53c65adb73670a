//! The system-call policy of every sandbox, as data, and its compilation to a
//! BPF program (`seccomp(2)`).
//!
//! Calls up to [`HIGHEST_KNOWN`] are allowed unless they are listed below.
//! Newer ones answer ENOSYS: somebody has to look at them first. Other
//! architectures' calls end the process. There are no nested user namespaces
//! and there is no mounting: most kernel holes of recent years start there.

/// `x86_64`, little endian, 64 bit (`linux/audit.h`).
const ARCH_X86_64: u32 = 0xc000_003e;
/// Calls of the x32 personality have this bit.
const X32_BIT: u32 = 0x4000_0000;
/// Highest call number that was looked at: `mseal`.
const HIGHEST_KNOWN: u32 = 462;

const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EPROTONOSUPPORT: u32 = 93;
const EAFNOSUPPORT: u32 = 97;

/// Calls that are never allowed: number, answer.
const DENIED: &[(i64, u32)] = &[
    // Mounts, both interfaces.
    (libc::SYS_mount, EPERM),
    (libc::SYS_umount2, EPERM),
    (libc::SYS_pivot_root, EPERM),
    (libc::SYS_open_tree, EPERM),
    (libc::SYS_move_mount, EPERM),
    (libc::SYS_fsopen, EPERM),
    (libc::SYS_fsconfig, EPERM),
    (libc::SYS_fsmount, EPERM),
    (libc::SYS_fspick, EPERM),
    (libc::SYS_mount_setattr, EPERM),
    // statmount and listmount tell about mounts of other namespaces.
    (457, EPERM),
    (458, EPERM),
    // Namespaces of others. clone3 hides its flags from a filter: ENOSYS makes
    // libc fall back to clone.
    (libc::SYS_setns, EPERM),
    (libc::SYS_clone3, ENOSYS),
    // Files by handle reach outside the root.
    (libc::SYS_name_to_handle_at, EPERM),
    (libc::SYS_open_by_handle_at, EPERM),
    // Kernel code, kernel state, hardware.
    (libc::SYS_bpf, EPERM),
    (libc::SYS_perf_event_open, EPERM),
    (libc::SYS_userfaultfd, EPERM),
    (libc::SYS_io_uring_setup, ENOSYS),
    (libc::SYS_io_uring_enter, ENOSYS),
    (libc::SYS_io_uring_register, ENOSYS),
    (libc::SYS_kexec_load, EPERM),
    (libc::SYS_kexec_file_load, EPERM),
    (libc::SYS_init_module, EPERM),
    (libc::SYS_finit_module, EPERM),
    (libc::SYS_delete_module, EPERM),
    (174, EPERM),
    (178, EPERM),
    (177, EPERM),
    (libc::SYS_iopl, EPERM),
    (libc::SYS_ioperm, EPERM),
    (libc::SYS_modify_ldt, EPERM),
    (libc::SYS_syslog, EPERM),
    (libc::SYS_reboot, EPERM),
    (libc::SYS_swapon, EPERM),
    (libc::SYS_swapoff, EPERM),
    (libc::SYS_acct, EPERM),
    (libc::SYS_quotactl, EPERM),
    (libc::SYS_quotactl_fd, EPERM),
    (libc::SYS_nfsservctl, EPERM),
    (libc::SYS_lookup_dcookie, EPERM),
    (libc::SYS_vhangup, EPERM),
    (libc::SYS__sysctl, EPERM),
    (libc::SYS_uselib, EPERM),
    (libc::SYS_ustat, EPERM),
    (libc::SYS_sysfs, EPERM),
    (libc::SYS_fanotify_init, EPERM),
    (libc::SYS_fanotify_mark, EPERM),
    (libc::SYS_move_pages, EPERM),
    (libc::SYS_migrate_pages, EPERM),
    // The clock is the host's.
    (libc::SYS_settimeofday, EPERM),
    (libc::SYS_clock_settime, EPERM),
    (libc::SYS_adjtimex, EPERM),
    (libc::SYS_clock_adjtime, EPERM),
    // Keyrings are not namespaced.
    (libc::SYS_add_key, EPERM),
    (libc::SYS_request_key, EPERM),
    (libc::SYS_keyctl, EPERM),
    // Other processes' memory and descriptors; ptrace of one's own children
    // stays, under the kernel's checks.
    (libc::SYS_process_vm_readv, EPERM),
    (libc::SYS_process_vm_writev, EPERM),
    (libc::SYS_process_madvise, EPERM),
    (libc::SYS_pidfd_getfd, EPERM),
    (libc::SYS_kcmp, EPERM),
];

/// `CLONE_NEW*` of `clone(2)` and `unshare(2)`: time, mount, cgroup, uts, ipc,
/// user, pid, net.
const NEW_NAMESPACES: u32 =
    0x80 | 0x2_0000 | 0x200_0000 | 0x400_0000 | 0x800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;

/// Address families that a sandbox may use: unix, inet, inet6. Netlink (16)
/// only with protocol 0, routing, which libc asks for interface lists.
const FAMILIES: [u32; 3] = [1, 2, 10];
const AF_NETLINK: u32 = 16;

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
const ENOTTY: u32 = 25;

/// Offsets in `struct seccomp_data`.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

struct Program(Vec<u8>);

impl Program {
    fn instruction(&mut self, code: u16, jump_true: u8, jump_false: u8, k: u32) {
        self.0.extend_from_slice(&code.to_ne_bytes());
        self.0.extend_from_slice(&[jump_true, jump_false]);
        self.0.extend_from_slice(&k.to_ne_bytes());
    }

    fn load(&mut self, offset: u32) {
        self.instruction(0x20, 0, 0, offset);
    }

    /// Keeps of the loaded value the bits of `k`.
    fn and(&mut self, k: u32) {
        self.instruction(0x54, 0, 0, k);
    }

    fn answer(&mut self, action: u32) {
        self.instruction(0x06, 0, 0, action);
    }

    fn errno(&mut self, errno: u32) {
        self.answer(0x0005_0000 | errno);
    }

    /// Skips `count` instructions unless the loaded value is `k`.
    fn unless_equal_skip(&mut self, k: u32, count: u8) {
        self.instruction(0x15, 0, count, k);
    }

    /// Skips `count` instructions unless the loaded value is at least `k`.
    fn unless_at_least_skip(&mut self, k: u32, count: u8) {
        self.instruction(0x35, 0, count, k);
    }

    /// Skips `count` instructions unless the loaded value has a bit of `k`.
    fn unless_any_bit_skip(&mut self, k: u32, count: u8) {
        self.instruction(0x45, 0, count, k);
    }
}

fn number(call: i64) -> u32 {
    // Call numbers are small and positive.
    u32::try_from(call).unwrap_or(u32::MAX)
}

/// The compiled filter: `struct sock_filter` after `struct sock_filter`.
pub(crate) fn compile() -> Vec<u8> {
    let mut p = Program(Vec::new());
    p.load(OFFSET_ARCH);
    p.instruction(0x15, 1, 0, ARCH_X86_64);
    p.answer(KILL_PROCESS);
    p.load(OFFSET_NUMBER);
    p.unless_at_least_skip(X32_BIT, 1);
    p.errno(ENOSYS);
    p.unless_at_least_skip(HIGHEST_KNOWN + 1, 1);
    p.errno(ENOSYS);
    for (call, errno) in DENIED {
        p.unless_equal_skip(number(*call), 1);
        p.errno(*errno);
    }
    for call in [libc::SYS_clone, libc::SYS_unshare] {
        p.unless_equal_skip(number(call), 4);
        p.load(argument(0));
        p.unless_any_bit_skip(NEW_NAMESPACES, 1);
        p.errno(EPERM);
        p.answer(ALLOW);
    }
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        p.unless_equal_skip(number(call), 13);
        p.load(argument(0));
        for family in FAMILIES {
            p.unless_equal_skip(family, 1);
            p.answer(ALLOW);
        }
        p.unless_equal_skip(AF_NETLINK, 4);
        p.load(argument(2));
        p.unless_equal_skip(0, 1);
        p.answer(ALLOW);
        // What a kernel without that protocol says; `sudo` asks for audit and
        // does without it.
        p.errno(EPROTONOSUPPORT);
        p.errno(EAFNOSUPPORT);
    }
    p.unless_equal_skip(number(libc::SYS_ioctl), 15);
    p.load(argument(1));
    for command in [TIOCSTI, TIOCLINUX] {
        p.unless_equal_skip(command, 1);
        p.errno(EPERM);
    }
    for command in CLONES {
        p.unless_equal_skip(command, 1);
        p.answer(ALLOW);
    }
    p.and(IOCTL_TYPE);
    p.unless_equal_skip(BTRFS_IOCTL, 1);
    p.errno(ENOTTY);
    p.answer(ALLOW);
    p.answer(ALLOW);
    p.0
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
                0x20 => {
                    a = word(&data, k as usize);
                    continue;
                }
                0x54 => {
                    a &= k;
                    continue;
                }
                0x06 => return k,
                0x15 => a == k,
                0x35 => a >= k,
                0x45 => a & k != 0,
                _ => panic!("unknown instruction {code:#x}"),
            };
            pc += usize::from(if taken { jt } else { jf });
        }
    }

    fn answer(call: i64, args: &[u64]) -> u32 {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        run(&compile(), number(call), ARCH_X86_64, all)
    }

    const ERRNO: u32 = 0x0005_0000;

    #[test]
    fn everyday_calls_pass() {
        for call in [libc::SYS_read, libc::SYS_execve, libc::SYS_futex, libc::SYS_openat2, libc::SYS_ptrace] {
            assert_eq!(answer(call, &[]), ALLOW);
        }
        assert_eq!(answer(libc::SYS_clone, &[0x3d_0f00]), ALLOW, "a thread");
        assert_eq!(answer(libc::SYS_clone, &[17]), ALLOW, "a fork");
        assert_eq!(answer(libc::SYS_unshare, &[0x200]), ALLOW, "own working directory");
        for family in [1, 2, 10] {
            assert_eq!(answer(libc::SYS_socket, &[family, 1, 0]), ALLOW);
        }
        assert_eq!(answer(libc::SYS_socket, &[16, 3, 0]), ALLOW, "routing netlink");
        assert_eq!(answer(libc::SYS_ioctl, &[0, 0x5413]), ALLOW);
    }

    #[test]
    fn every_listed_call_is_refused() {
        for (call, errno) in DENIED {
            assert_eq!(answer(*call, &[]), ERRNO | errno, "{call}");
        }
    }

    #[test]
    fn every_namespace_flag_is_refused() {
        for bit in [0x80_u64, 1 << 17, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30] {
            assert_eq!(answer(libc::SYS_clone, &[bit | 17]), ERRNO | EPERM, "{bit:#x}");
            assert_eq!(answer(libc::SYS_unshare, &[bit]), ERRNO | EPERM, "{bit:#x}");
        }
    }

    #[test]
    fn odd_sockets_and_terminals_are_refused() {
        for family in [0, 3, 5, 17, 29, 38, 40, 44] {
            assert_eq!(answer(libc::SYS_socket, &[family, 3, 0]), ERRNO | EAFNOSUPPORT, "{family}");
        }
        assert_eq!(answer(libc::SYS_socket, &[16, 3, 12]), ERRNO | EPROTONOSUPPORT, "netfilter netlink");
        assert_eq!(answer(libc::SYS_ioctl, &[0, u64::from(TIOCSTI)]), ERRNO | EPERM);
        assert_eq!(answer(libc::SYS_ioctl, &[0, u64::from(TIOCLINUX)]), ERRNO | EPERM);
        // BTRFS_IOC_SUBVOL_CREATE, and what cp(1) asks for.
        assert_eq!(answer(libc::SYS_ioctl, &[0, 0x5000_940e]), ERRNO | ENOTTY);
        assert_eq!(answer(libc::SYS_ioctl, &[0, u64::from(CLONES[0])]), ALLOW);
    }

    #[test]
    fn unknown_calls_and_architectures_are_refused() {
        assert_eq!(answer(i64::from(HIGHEST_KNOWN) + 1, &[]), ERRNO | ENOSYS);
        assert_eq!(answer(i64::from(X32_BIT), &[]), ERRNO | ENOSYS);
        assert_eq!(run(&compile(), 0, 0x4000_0003, [0; 6]), KILL_PROCESS);
    }
}
