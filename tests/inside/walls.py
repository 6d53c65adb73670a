"""What a sandbox can take of the kernel, and what it gets.

    walls.py writable          every file of /proc, /sys and /dev that opens for writing
    walls.py calls NUMBER...   what the kernel says to each call, with -1 for every argument
    walls.py exhaust KIND      takes all of it, prints how much and the errno, and keeps it
    walls.py use KIND          takes one, and prints `done` or the errno
    walls.py hold PATH         makes a program of some pages that fills a file in memory
    walls.py fill KIND         fills the buffers of many sockets, prints `full`, and keeps them
    walls.py closed N          makes and closes N connections, prints how many are kept
    walls.py group             speaks to a multicast group of its own, prints what it hears
    walls.py neighbours LINK   sends past every gateway, to 3,000 neighbours of each kind
    walls.py touch             writes to every segment of System V, prints how many
    walls.py int80             makes a call as a program of 32 bits does
"""

import ctypes
import errno
import mmap
import os
import signal
import socket
import stat
import struct
import sys
import tempfile
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


WATCHED = 1100
instances = []
watched = []


def watches():
    """Of one inotify instance after the other: there are fewer of them than watches."""
    number = len(keep)
    keep.append(None)
    if number % WATCHED == 0:
        instances.append(checked(c.inotify_init1(0)))
    if number < WATCHED:
        watched.append(tempfile.NamedTemporaryFile())
    checked(c.inotify_add_watch(instances[-1], watched[number % WATCHED].name.encode(), 2))


def semaphores():
    checked(c.semget(0, 8000, 0o600 | 0o1000))


def messages():
    checked(c.msgget(0, 0o600 | 0o1000))


def full_messages():
    """A queue with as many messages as it takes; each is an entry of the kernel's."""
    queue = checked(c.msgget(0, 0o600 | 0o1000))
    message = ctypes.create_string_buffer(struct.pack("qc", 1, b"x"))
    while c.msgsnd(queue, message, 1, 0o4000) == 0:
        pass


def files():
    if not os.path.exists("/dev/shm/files"):
        os.mkdir("/dev/shm/files")
        os.chmod("/dev/shm/files", 0o777)
    keep.append(None)
    os.symlink("x" * 100, f"/dev/shm/files/{os.getpid()}-{len(keep)}")


def huge_pages():
    # MAP_HUGETLB, private and anonymous.
    mmap.mmap(-1, 2 << 20, flags=0x40022)[0] = 1


def huge_files():
    # MFD_HUGETLB
    os.close(os.memfd_create("huge", 4))


def program(*instructions):
    """A `struct sock_fprog`."""
    keep.append(ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in instructions)))
    return struct.pack("HxxxxxxQ", len(instructions), ctypes.addressof(keep[-1]))


def socket_filters():
    everything = program((6, 0, 0, 0xFFFF))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for option in (26, 51):
            one.setsockopt(socket.SOL_SOCKET, option, everything)


def filters_by_seccomp():
    checked(c.prctl(38, 1, 0, 0, 0))
    checked(c.syscall(317, 1, 0, program((6, 0, 0, 0x7FFF0000))))


def filters_by_prctl():
    checked(c.prctl(38, 1, 0, 0, 0))
    checked(c.prctl(22, 2, program((6, 0, 0, 0x7FFF0000))))


def pair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


def tcp():
    one, other = pair()
    one.sendall(b"x" * (1 << 16))
    assert other.recv(1 << 16, socket.MSG_WAITALL) == b"x" * (1 << 16)


def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        one.settimeout(5)
        one.sendto(b"x" * 9000, one.getsockname())
        assert len(one.recv(9000)) == 9000


KINDS = {
    f.__name__: f
    for f in (
        inotify, watches, timers, queues, terminals, segments, semaphores, messages, full_messages, files,
        aio, huge_pages, huge_files, socket_filters, filters_by_seccomp, filters_by_prctl, tcp, udp,
    )
}  # fmt: skip


def fill(kind):
    held = []
    try:
        for _ in range(9000):
            if kind == "tcp":
                held += pair()
                held[-2].setblocking(False)
                try:
                    while True:
                        held[-2].send(b"x" * (1 << 20))
                except BlockingIOError:
                    pass
            else:
                held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
                held[-1].bind(("127.0.0.1", 0))
                for _ in range(8):
                    held[0].sendto(b"x" * 50000, held[-1].getsockname())
    except OSError as error:
        print(error)
    print("full", flush=True)
    time.sleep(120)


def closed(count):
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(count):
            one = socket.create_connection(server.getsockname())
            other = server.accept()[0]
            one.close()
            other.close()
    line = next(line for line in open("/proc/net/sockstat") if line.startswith("TCP:")).split()
    print(line[line.index("tw") + 1])


def group():
    """Speaks to a group, connected and not, and says what the group heard."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as member:
        member.bind(("", 9000))
        member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("230.1.2.3") + bytes(4))
        member.settimeout(5)
        for connected in (True, False):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                if connected:
                    one.connect(("230.1.2.3", 9000))
                    one.send(b"heard")
                else:
                    one.sendto(b"heard", ("230.1.2.3", 9000))
            print(member.recv(100).decode(), end=" ")


def neighbours(link):
    index = socket.if_nametoindex(link)
    sent = {"local": 0, "six": 0}

    def many(kind, family, address):
        held = []
        for number in range(3000):
            # One socket may only have so much waiting for neighbours.
            if number % 100 == 0:
                held.append(socket.socket(family, socket.SOCK_DGRAM))
                held[-1].setblocking(False)
                held[-1].setsockopt(socket.SOL_SOCKET, 25, link.encode() + b"\0")
                if kind == "local":
                    held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
            try:
                held[-1].sendto(b"x", address(number))
                sent[kind] += 1
            except OSError:
                pass
        time.sleep(0.5)

    many("local", socket.AF_INET, lambda n: (f"100.65.{n >> 8}.{n & 255}", 9))
    many("six", socket.AF_INET6, lambda n: (f"fe80::1:{n:x}", 9, 0, index))
    print(*(f"{kind}={count}" for kind, count in sent.items()))


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
        while taken < 4_000_000:
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
    case "fill":
        fill(sys.argv[2])
    case "closed":
        closed(int(sys.argv[2]))
    case "group":
        group()
    case "neighbours":
        neighbours(sys.argv[2])
