//! `/proc` of a sandbox. What tells about its own processes is as the kernel has
//! it; of everything else a list says what is shown, and that is read-only. What
//! is on no list is covered, so a kernel that has more shows no more.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, OwnedFd};

use crate::child::{directory, number, tmpfs};
use crate::error::{Context as _, Error};
use crate::spec::Spec;
use crate::{limits, sys};

/// What is shown of the kernel: what programs ask for (`proc(5)`), and nothing
/// that a program has done elsewhere on the host, as far as a file is not about
/// the machine as a whole.
const SHOWN: [&CStr; 27] = [
    c"buddyinfo",
    c"cgroups",
    c"config.gz",
    c"consoles",
    c"cpuinfo",
    c"crypto",
    c"devices",
    c"diskstats",
    c"dma",
    c"driver",
    c"execdomains",
    c"filesystems",
    c"loadavg",
    c"locks",
    c"meminfo",
    c"misc",
    c"partitions",
    c"softirqs",
    c"stat",
    c"swaps",
    c"sys",
    c"sysvipc",
    c"tty",
    c"uptime",
    c"version",
    c"vmstat",
    c"zoneinfo",
];

/// Directories that are shown as they are: nothing in them takes a write, whoever
/// opens it (each mount takes its time).
const PLAIN: [&CStr; 3] = [c"driver", c"sysvipc", c"tty"];

/// What becomes of an entry of `/proc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Treatment {
    /// Of a process, or nobody inside may open it.
    Leave,
    ReadOnly,
    /// Covered by an empty file, or an empty directory.
    Mask,
}

/// By the name of an entry and its mode (`stat(2)`).
fn treatment(name: &CStr, mode: libc::mode_t) -> Treatment {
    let kind = mode & libc::S_IFMT;
    let of_a_process = name.to_bytes().iter().all(u8::is_ascii_digit);
    if of_a_process || kind == libc::S_IFLNK {
        return Treatment::Leave;
    }
    if !SHOWN.contains(&name) {
        // It is the host's root's, who is nobody in here.
        let closed = mode & 0o007 == 0;
        return if closed { Treatment::Leave } else { Treatment::Mask };
    }
    let takes_writes = mode & 0o222 != 0 || (kind == libc::S_IFDIR && !PLAIN.contains(&name));
    if takes_writes { Treatment::ReadOnly } else { Treatment::Leave }
}

/// Mounts a `/proc` at `proc` of the directory `root`, and returns it.
pub(crate) fn mount(root: &OwnedFd, spec: &Spec) -> Result<OwnedFd, Error> {
    let fs = sys::fsopen(c"proc").context("fsopen proc")?;
    sys::fsconfig_create(&fs).context("create proc (is the host's own /proc partly covered?)")?;
    let proc = sys::fsmount(&fs, sys::ATTR_INERT).context("fsmount proc")?;
    sys::attach(&proc, directory(root, c"proc")?.as_fd()).context("mount /proc")?;
    choose_pids(&proc, spec.boots)?;
    bound_ipc(&proc, spec.account.shared_bytes)?;

    let covers = make_covers(root, spec)?;
    for name in sys::names(&proc).context("list /proc")? {
        let shown = || format!("protect /proc/{}", name.to_string_lossy());
        let mode = match sys::mode_at(&proc, &name) {
            // A process that has ended.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            other => other.context_with(shown)?,
        };
        let cover = match treatment(&name, mode) {
            Treatment::Leave => continue,
            Treatment::ReadOnly => {
                let copy = sys::clone_tree_at(&proc, &name).context_with(shown)?;
                sys::set_attributes(&copy, sys::ATTR_INERT | sys::ATTR_RDONLY).context_with(shown)?;
                copy
            }
            Treatment::Mask => {
                let is_directory = mode & libc::S_IFMT == libc::S_IFDIR;
                let cover = if is_directory { c"directory" } else { c"file" };
                sys::clone_tree_at(&covers, cover).context_with(shown)?
            }
        };
        sys::attach_at(&cover, &proc, &name).context_with(shown)?;
    }
    limits::cover(&proc, &covers, spec)?;
    Ok(proc)
}

/// What covers files of `/proc`: an empty file, an empty directory, and those that
/// tell the limits. It takes no writes. Attached below `root`: before 6.15 the kernel
/// clones no part of a mount that hangs nowhere.
fn make_covers(root: &OwnedFd, spec: &Spec) -> Result<OwnedFd, Error> {
    let fs = tmpfs(Some(1 << 20), c"555", 0)?;
    sys::attach(&fs, directory(root, c"covers")?.as_fd()).context("attach what covers /proc")?;
    drop(sys::create_file_at(&fs, c"file").context("make an empty file")?);
    sys::mkdir_at(&fs, c"directory", 0o555).context("make an empty directory")?;
    limits::make_files(&fs, spec)?;
    sys::set_attributes(&fs, sys::ATTR_INERT | sys::ATTR_RDONLY).context("make covers read-only")?;
    Ok(fs)
}

/// Where process numbers begin: far from those of earlier runs, since a file
/// that was left by one must not name a living process of this one. Successive
/// multiples of the golden ratio keep the largest distance from one another
/// that there is.
fn first_pid(boots: u64, limit: u64) -> u64 {
    // 2^64 divided by the golden ratio.
    let fraction = boots.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    // The lowest few hundred are for those who look at them.
    let (first, span) = (300, limit.saturating_sub(2 * 300).max(1));
    first + ((fraction * span) >> 32)
}

/// Largest process number that is used: as large as they are by default
/// (`proc_sys_kernel(5)`, `pid_max`), so that they stay readable.
const MOST_PIDS: u64 = 32_768;

/// Has process numbers begin at [`first_pid`].
fn choose_pids(proc: &OwnedFd, boots: u64) -> Result<(), Error> {
    let shown = || "choose process numbers";
    let most = sys::read_at(proc, c"sys/kernel/pid_max").context_with(|| shown().to_owned())?;
    let most = most.trim().parse::<u64>().unwrap_or(MOST_PIDS).min(MOST_PIDS);
    let last = first_pid(boots, most).to_string();
    sys::write_at(proc, c"sys/kernel/ns_last_pid", last.as_bytes()).context_with(|| shown().to_owned())
}

/// Bounds what System V keeps for the IPC namespace (`proc_sys_kernel(5)`): segments of
/// `bytes` together, messages of a fourth of that, semaphores of an eighth. All of it is
/// memory of the sandbox that no process has to hold, so killing one gives none of it back.
fn bound_ipc(proc: &OwnedFd, bytes: u64) -> Result<(), Error> {
    const PAGE: u64 = 4096;
    // `msgmnb` bytes in as many messages, each of which takes 64 of the kernel.
    const QUEUE: u64 = 16_384 * 64;
    let queues = (bytes / 4 / QUEUE).max(1);
    // Of 64 bytes of the kernel each; more than these no program wants.
    let semaphores = (bytes / 8 / 64).clamp(1, 65_536);
    // In a set, in all, operations of a call, sets.
    let semaphores = std::ffi::CString::new(format!("32000 {semaphores} 500 4096")).unwrap_or_default();
    let bounds = [
        (c"sys/kernel/shmall", number(bytes / PAGE)),
        (c"sys/kernel/msgmni", number(queues)),
        (c"sys/kernel/sem", semaphores),
    ];
    bounds.into_iter().try_for_each(|(file, value)| {
        let written = sys::write_at(proc, file, value.to_bytes());
        written.context_with(|| format!("write {}", file.to_string_lossy()))
    })
}

#[cfg(test)]
mod tests {
    use super::{Treatment, first_pid, treatment};

    #[test]
    fn process_numbers_of_different_runs_begin_far_apart() {
        for limit in [32_768, 4_194_304] {
            let begins: Vec<u64> = (1..=20).map(|boots| first_pid(boots, limit)).collect();
            assert!(begins.iter().all(|begin| (300..limit).contains(begin)), "{begins:?}");
            for (n, one) in begins.iter().enumerate() {
                let nearest = begins[..n].iter().map(|other| one.abs_diff(*other)).min();
                assert!(nearest.is_none_or(|distance| distance > limit / 40), "{begins:?}");
            }
        }
    }

    #[test]
    fn what_is_on_no_list_is_covered() {
        let (file, directory, link) = (libc::S_IFREG, libc::S_IFDIR, libc::S_IFLNK);
        for (name, mode, wanted) in [
            (c"42", directory | 0o555, Treatment::Leave),
            (c"self", link | 0o777, Treatment::Leave),
            (c"meminfo", file | 0o444, Treatment::Leave),
            // A kernel in which somebody may write to it.
            (c"meminfo", file | 0o644, Treatment::ReadOnly),
            (c"sys", directory | 0o555, Treatment::ReadOnly),
            (c"tty", directory | 0o555, Treatment::Leave),
            (c"pressure", directory | 0o555, Treatment::Mask),
            (c"news", file | 0o666, Treatment::Mask),
            (c"kmsg", file | 0o400, Treatment::Leave),
            (c"sysrq-trigger", file | 0o200, Treatment::Leave),
        ] {
            assert_eq!(treatment(name, mode), wanted, "{name:?} {mode:o}");
        }
    }
}
