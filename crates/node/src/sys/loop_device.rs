//! Loop devices (`loop(4)`): a file as a block device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::check;

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4C07;
const FLAG_READ_ONLY: u32 = 1;
/// The device is free again when nobody has it open or mounted.
const FLAG_AUTOCLEAR: u32 = 4;
/// Past the page cache of the file's own file system.
const FLAG_DIRECT_IO: u32 = 16;

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl Default for Info {
    fn default() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// Others may take a free device between the question and its use.
const TRIES: usize = 64;

/// A device over `file`, with direct I/O where the file's file system can. It
/// lives until the returned descriptor and every mount of it are gone.
pub(crate) fn attach(file: &File, read_only: bool) -> io::Result<(PathBuf, File)> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    let mut flags = FLAG_AUTOCLEAR | FLAG_DIRECT_IO | if read_only { FLAG_READ_ONLY } else { 0 };
    for _ in 0..TRIES {
        // SAFETY: takes no argument.
        let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) }.into())?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device =
            OpenOptions::new().read(true).write(!read_only).custom_flags(libc::O_CLOEXEC).open(&path)?;
        let config = Config {
            fd: u32::try_from(file.as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?,
            block_size: 0,
            info: Info { flags, ..Info::default() },
            reserved: [0; 8],
        };
        // SAFETY: `config` has the layout of struct loop_config and outlives the call.
        match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }.into()) {
            Ok(_) => return Ok((path, device)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && flags & FLAG_DIRECT_IO != 0 => {
                flags &= !FLAG_DIRECT_IO;
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "no loop device stays free long enough to take it"))
}

/// The device that is over `file` already, if there is one that can be seen.
pub(crate) fn of_file(file: &File) -> io::Result<Option<PathBuf>> {
    use std::os::unix::fs::MetadataExt as _;
    let wanted = file.metadata()?;
    for entry in std::fs::read_dir("/sys/block")?.flatten() {
        let name = entry.file_name();
        // Only a device in use has this directory.
        if !name.to_string_lossy().starts_with("loop") || !entry.path().join("loop").exists() {
            continue;
        }
        let path = Path::new("/dev").join(&name);
        let Ok(device) = OpenOptions::new().read(true).custom_flags(libc::O_CLOEXEC).open(&path) else {
            continue;
        };
        let mut info = Info::default();
        // SAFETY: `info` has the layout of struct loop_info64 and outlives the call.
        let told = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
        if told == 0 && (info.device, info.inode) == (wanted.dev(), wanted.ino()) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Takes in that the file of a device has grown.
pub(crate) fn take_size(device: &Path) -> io::Result<()> {
    let device = OpenOptions::new().read(true).write(true).open(device)?;
    // SAFETY: takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY, 0) }.into()).map(drop)
}

/// Keeps discards away from the file: they would give room back to the host
/// that was reserved in it.
pub(crate) fn refuse_discards(device: &Path) -> io::Result<()> {
    let name = device.file_name().unwrap_or_default();
    std::fs::write(Path::new("/sys/block").join(name).join("queue/discard_max_bytes"), "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_large_as_the_kernels() {
        assert_eq!(size_of::<Info>(), 232);
        assert_eq!(size_of::<Config>(), 304);
    }
}
