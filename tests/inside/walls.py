"""What a sandbox can take of the kernel, and what it gets.

    walls.py writable          every file of /proc, /sys and /dev that opens for writing
    walls.py calls NUMBER...   what the kernel says to each call, with -1 for every argument
    walls.py exhaust KIND      takes all of it, prints how much and the errno, and keeps it
    walls.py use KIND          takes one, and prints `done` or the errno
    walls.py hold PATH         makes a program of some pages that fills a file in memory
    walls.py touch             writes to every segment of System V, prints how many
    walls.py int80             makes a call as a program of 32 bits does
"""

import ctypes
import errno
import os
import signal
import stat
import struct
import sys
import time

c = ctypes.CDLL(None, use_errno=True)
keep = []


def checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def inotify():
    keep.append(checked(c.inotify_init1(0)))


def timers():
    timer = ctypes.c_void_p()
    checked(c.syscall(222, 0, None, ctypes.byref(timer)))


def queues():
    # struct mq_attr: flags, maxmsg, msgsize, curmsgs.
    attributes = struct.pack("qqqq32x", 0, 10, 8192, 0)
    name = b"/q%d-%d" % (os.getpid(), len(keep))
    keep.append(checked(c.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, attributes)))
    checked(c.mq_unlink(name))


def terminals():
    keep.append(checked(c.posix_openpt(os.O_RDWR | os.O_NOCTTY)))


def aio():
    context = ctypes.c_ulong()
    checked(c.syscall(206, 1024, ctypes.byref(context)))


def segments():
    checked(c.shmget(0, 1 << 20, 0o600 | 0o1000))


KINDS = {f.__name__: f for f in (inotify, timers, queues, terminals, aio, segments)}


def writable():
    places = ["/sys", "/dev", "/proc/self"]
    for name in sorted(os.listdir("/proc")):
        if not name.isdigit() and name not in ("self", "thread-self", "mounts", "net"):
            places.append(f"/proc/{name}")
    found = set()
    for place in places:
        for path in walk(place):
            try:
                mode = os.stat(path).st_mode
                if stat.S_ISDIR(mode) or stat.S_ISSOCK(mode):
                    continue
                # Root opens them too, and gets EINVAL or EIO for its bytes.
                if place == "/proc/self" and not mode & 0o222:
                    continue
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))
            except OSError:
                continue
            found.add(path)
    print("\n".join(sorted(found)))


def walk(place):
    if not os.path.isdir(place):
        yield place
        return
    for here, dirs, files in os.walk(place):
        # Threads and descriptors of this process, which are its own.
        dirs[:] = [d for d in dirs if os.path.join(here, d) not in ("/proc/self/task", "/proc/self/fd", "/proc/self/map_files", "/dev/fd")]
        for name in files:
            path = os.path.join(here, name)
            if os.path.islink(path) and here == "/dev":
                continue
            yield path


def calls(numbers):
    for number in numbers:
        child = os.fork()
        if child == 0:
            c.prctl(38, 1, 0, 0, 0)
            signal.alarm(3)
            minus = ctypes.c_long(-1)
            ctypes.set_errno(0)
            result = c.syscall(ctypes.c_long(number), *[minus] * 6)
            os._exit(ctypes.get_errno() if result == -1 else 0)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            answer = signal.Signals(os.WTERMSIG(status)).name
        else:
            answer = errno.errorcode.get(os.WEXITSTATUS(status), "done")
        print(number, answer, flush=True)


def int80():
    """Asks for getpid of 32 bits."""
    import mmap

    # mov eax, 20; int 0x80; ret
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    child = os.fork()
    if child == 0:
        address = ctypes.addressof(ctypes.c_char.from_buffer(code))
        ctypes.CFUNCTYPE(ctypes.c_long)(address)()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "done")


def exhaust(kind):
    taken, end = 0, "none"
    try:
        while taken < 1_000_000:
            KINDS[kind]()
            taken += 1
    except OSError as error:
        end = errno.errorcode[error.errno]
    print(taken, end, flush=True)
    time.sleep(120)


def use(kind):
    try:
        KINDS[kind]()
        print("done")
    except OSError as error:
        print(errno.errorcode[error.errno])


def hold(path):
    # memfd_create("h", 0), and write(it, the stack, 65536) for ever: of its own it has
    # next to nothing, so the agent is larger.
    code = bytes.fromhex(
        "b83f010000" "488d3d1e000000" "31f6" "0f05" "89c7" "4881ec00000100" "4889e6"
        "b801000000" "ba00000100" "0f05" "ebf2" "6800"
    )
    size = 120 + len(code)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    header += struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, size, size, 0x1000)
    with open(path, "wb") as file:
        file.write(header + code)
    os.chmod(path, 0o755)


def touch():
    import subprocess

    c.shmat.restype = ctypes.c_void_p
    lines = subprocess.check_output(["ipcs", "-m"], text=True).splitlines()
    segments = [int(line.split()[1]) for line in lines if line.startswith("0x")]
    for segment in segments:
        ctypes.memset(c.shmat(segment, None, 0), 1, 1 << 20)
    print(len(segments))


match sys.argv[1]:
    case "hold":
        hold(sys.argv[2])
    case "touch":
        touch()
    case "writable":
        writable()
    case "calls":
        calls(int(number) for number in sys.argv[2:])
    case "int80":
        int80()
    case "exhaust":
        exhaust(sys.argv[2])
    case "use":
        use(sys.argv[2])
