"""Files behave as on a disk. Runs inside a sandbox, as the default user.

    behaviour.py make             make everything that is looked at later
    behaviour.py age              add a tree, as another run would
    behaviour.py check            look, with the inode numbers of the last look
    behaviour.py check --copied   look, without them: file by file, they were copied

Prints {"checks": N, "bad": ["what: expected …, found …", …]}. State is kept in
the sandbox itself, so that a fork goes on where its source was.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys

ZOO = "/vercel/sandbox/zoo"
STATE = "/var/tmp/behaviour.json"
LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, SYMLINK_FOLLOW, NOREPLACE, EXCHANGE = -100, 0x400, 1, 2

bad = []
checks = 0


def expect(what, expected, found):
    global checks
    checks += 1
    if expected != found:
        bad.append(f"{what}: expected {expected!r}, found {found!r}"[:300])


def error_of(call, *args, **named):
    """The name of the errno that a call fails with, or what it returned."""
    try:
        return call(*args, **named)
    except OSError as error:
        return errno.errorcode[error.errno]


def write(path, text, mode="w"):
    with open(path, mode) as file:
        file.write(text)


def read(path):
    with open(path) as file:
        return file.read()


def as_root(script):
    subprocess.run(["sudo", "-n", sys.executable, "-c", "import os\n" + script], check=True)


def renameat2(old, new, flags):
    if LIBC.renameat2(AT_FDCWD, old.encode(), AT_FDCWD, new.encode(), flags) < 0:
        raise OSError(ctypes.get_errno(), "renameat2")
    return "ok"


# What a file is, besides its bytes.

MODES = {"plain": 0o644, "none": 0o000, "setuid": 0o4755, "setgid": 0o2755, "all": 0o7777, "script": 0o755}
DIRECTORIES = {"sticky": 0o1777, "shared": 0o2775, "closed": 0o700}
OWNERS = {"root": (0, 0), "other": (1234, 5678), "nobody": (65534, 65534), "last": (65535, 65535)}
# Version 2; user:: rw-, user:33 r--, group:: r--, mask:: r--, other:: ---.
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, who)
    for tag, permissions, who in [(1, 6, 2**32 - 1), (2, 4, 33), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 0, 2**32 - 1)]
)
# VFS_CAP_REVISION_2 with the effective bit; CAP_NET_BIND_SERVICE.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
TIMES = {"old": (1_234_567_890_123_456_789, 987_654_321_000_000_001), "new": (4_102_444_800_999_999_999, 1)}
NAMES = [b"n" * 255, bytes([0xFF, 0xFE, 0x80]) + b"\n\t ", b"\xc3\x28" * 127, "日本語".encode(), b"-rf *", b"new\nline"]
SPARSE_SIZE = 1 << 30


def make_metadata():
    os.makedirs(f"{ZOO}/modes")
    for name, mode in MODES.items():
        write(f"{ZOO}/modes/{name}", "x")
        os.chmod(f"{ZOO}/modes/{name}", mode)
    for name, mode in DIRECTORIES.items():
        os.mkdir(f"{ZOO}/modes/{name}")
        os.chmod(f"{ZOO}/modes/{name}", mode)
    os.mkdir(f"{ZOO}/owners")
    for name in OWNERS:
        write(f"{ZOO}/owners/{name}", name)
    as_root("".join(f"os.chown('{ZOO}/owners/{name}', {u}, {g})\n" for name, (u, g) in OWNERS.items()))
    os.mkdir(f"{ZOO}/attributes")
    for name in ["one", "acl", "capable"]:
        write(f"{ZOO}/attributes/{name}", "x")
    os.mkdir(f"{ZOO}/attributes/dir")
    os.link(f"{ZOO}/attributes/one", f"{ZOO}/attributes/two")
    os.symlink("one", f"{ZOO}/attributes/symlink")
    os.setxattr(f"{ZOO}/attributes/one", "user.colour", b"blue\0green")
    os.setxattr(f"{ZOO}/attributes/one", "user.large", b"v" * 3000)
    os.setxattr(f"{ZOO}/attributes/dir", "user.colour", b"red")
    os.setxattr(f"{ZOO}/attributes/acl", "system.posix_acl_access", ACL)
    os.setxattr(f"{ZOO}/attributes/dir", "system.posix_acl_default", ACL)
    shutil.copy("/bin/cat", f"{ZOO}/attributes/capable")
    os.chmod(f"{ZOO}/attributes/capable", 0o755)
    as_root(f"os.setxattr('{ZOO}/attributes/capable', 'security.capability', {CAPABILITY!r})")
    os.mkdir(f"{ZOO}/kinds")
    os.mkfifo(f"{ZOO}/kinds/fifo", 0o640)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{ZOO}/kinds/socket")
    listener.close()
    os.symlink("/no/such/place", f"{ZOO}/kinds/dangling")
    os.symlink("t" * 4000, f"{ZOO}/kinds/long")
    with open(f"{ZOO}/kinds/sparse", "wb") as file:
        file.truncate(SPARSE_SIZE)
        file.seek(SPARSE_SIZE // 2)
        file.write(b"m" * 4096)
    os.mkdir(f"{ZOO}/times")
    for name, (access, change) in TIMES.items():
        write(f"{ZOO}/times/{name}", "x")
        os.utime(f"{ZOO}/times/{name}", ns=(access, change))
    os.mkdir(f"{ZOO}/times/dir")
    os.utime(f"{ZOO}/times/dir", ns=TIMES["old"])
    os.symlink("x", f"{ZOO}/times/symlink")
    os.utime(f"{ZOO}/times/symlink", ns=TIMES["old"], follow_symlinks=False)
    os.mkdir(f"{ZOO}/names")
    for name in NAMES:
        write(os.path.join(f"{ZOO}/names".encode(), name), "x")


def check_metadata():
    for name, mode in (MODES | DIRECTORIES).items():
        expect(f"mode of {name}", oct(mode), oct(stat.S_IMODE(os.stat(f"{ZOO}/modes/{name}").st_mode)))
    for name, owner in OWNERS.items():
        found = os.stat(f"{ZOO}/owners/{name}")
        expect(f"owner of {name}", owner, (found.st_uid, found.st_gid))
    for name in ["one", "two"]:
        path = f"{ZOO}/attributes/{name}"
        expect(f"user.colour of {name}", b"blue\0green", error_of(os.getxattr, path, "user.colour"))
        expect(f"user.large of {name}", b"v" * 3000, error_of(os.getxattr, path, "user.large"))
        expect(f"attributes of {name}", ["user.colour", "user.large"], sorted(os.listxattr(path)))
    expect("user.colour of a directory", b"red", error_of(os.getxattr, f"{ZOO}/attributes/dir", "user.colour"))
    # xattr(7): user attributes are for files and directories only.
    symlink = f"{ZOO}/attributes/symlink"
    expect("user.* on a symlink", "EPERM", error_of(os.setxattr, symlink, "user.x", b"", follow_symlinks=False))
    expect("ACL", ACL, error_of(os.getxattr, f"{ZOO}/attributes/acl", "system.posix_acl_access"))
    expect("mode with ACL", "0o640", oct(stat.S_IMODE(os.stat(f"{ZOO}/attributes/acl").st_mode)))
    write(f"{ZOO}/attributes/dir/child", "x")
    expect("inherited ACL", ACL, error_of(os.getxattr, f"{ZOO}/attributes/dir/child", "system.posix_acl_access"))
    os.unlink(f"{ZOO}/attributes/dir/child")
    capable = f"{ZOO}/attributes/capable"
    expect("file capability", CAPABILITY, error_of(os.getxattr, capable, "security.capability"))
    status = subprocess.run([capable, "/proc/self/status"], capture_output=True, text=True).stdout
    held = [line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")]
    expect("capability that it gives", ["0000000000000400"], held)
    for name, kind in [("fifo", stat.S_ISFIFO), ("socket", stat.S_ISSOCK), ("dangling", stat.S_ISLNK)]:
        expect(name, True, kind(os.lstat(f"{ZOO}/kinds/{name}").st_mode))
    expect("mode of the FIFO", "0o640", oct(stat.S_IMODE(os.lstat(f"{ZOO}/kinds/fifo").st_mode)))
    expect("dangling link", "/no/such/place", os.readlink(f"{ZOO}/kinds/dangling"))
    expect("long link", "t" * 4000, os.readlink(f"{ZOO}/kinds/long"))
    # A FIFO carries bytes, a socket's name can be bound again.
    reader = os.open(f"{ZOO}/kinds/fifo", os.O_RDWR | os.O_NONBLOCK)
    os.write(reader, b"through")
    expect("bytes through the FIFO", b"through", os.read(reader, 100))
    os.close(reader)
    expect("bind a taken name", "EADDRINUSE", error_of(socket.socket(socket.AF_UNIX).bind, f"{ZOO}/kinds/socket"))
    sparse = os.stat(f"{ZOO}/kinds/sparse")
    expect("size of the sparse file", SPARSE_SIZE, sparse.st_size)
    expect("blocks of the sparse file", True, 8 <= sparse.st_blocks <= 128)
    with open(f"{ZOO}/kinds/sparse", "rb") as file:
        data = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        hole = os.lseek(file.fileno(), data, os.SEEK_HOLE)
        expect("data of the sparse file", (SPARSE_SIZE // 2, SPARSE_SIZE // 2 + 4096), (data, hole))
        file.seek(SPARSE_SIZE // 2)
        expect("bytes of the sparse file", b"m" * 4096, file.read(4096))
    for name, (_, change) in list(TIMES.items()) + [("dir", TIMES["old"]), ("symlink", TIMES["old"])]:
        expect(f"time of {name}", change, os.lstat(f"{ZOO}/times/{name}").st_mtime_ns)
    expect("names", sorted(NAMES), sorted(os.listdir(f"{ZOO}/names".encode())))
    long = f"{ZOO}/names/{'n' * 256}"
    expect("a name of 256 bytes", "ENAMETOOLONG", error_of(write, long, "x"))


# Trees that one run makes and later ones work on.


def add_age(state):
    number = state["ages"]
    age = f"{ZOO}/ages/{number}"
    os.makedirs(f"{age}/d/e")
    os.makedirs(f"{age}/links")
    for n in range(10):
        write(f"{age}/d/f{n}", f"{number}:{n}")
    write(f"{age}/links/a", "")
    os.link(f"{age}/links/a", f"{age}/links/b")
    os.link(f"{age}/links/a", f"{age}/d/e/c")
    for n in range(3):
        write(f"{age}/links/x{n}", f"{number}:{n}")
        os.link(f"{age}/links/x{n}", f"{age}/links/y{n}")
    state["ages"] = number + 1
    state["lines"].append(0)


def check_ages(state):
    for number in range(state["ages"]):
        age, what = f"{ZOO}/ages/{number}", f"of run {number}"
        for old, new in [(age, f"{ZOO}/ages/moved"), (f"{age}/d", f"{age}/dx"), (f"{age}/d/e", f"{age}/e"), (f"{age}/d/f0", f"{age}/links/f0")]:
            there = error_of(os.rename, old, new)
            back = error_of(os.rename, new, old)
            expect(f"rename {old} {what}", (None, None), (there, back))
        for n in range(10):
            expect(f"f{n} {what}", f"{number}:{n}", read(f"{age}/d/f{n}"))
        # Each name in turn is the one that is written.
        names = [f"{age}/links/a", f"{age}/links/b", f"{age}/d/e/c"]
        write(names[state["lines"][number] % 3], "line\n", "a")
        state["lines"][number] += 1
        expect(f"a hard link {what}", ["line\n" * state["lines"][number]] * 3, [read(name) for name in names])
        expect(f"its names {what}", {(os.stat(names[0]).st_ino, 3)}, {(s.st_ino, s.st_nlink) for s in map(os.stat, names)})
        # A link between runs.
        os.link(names[0], f"{ZOO}/between")
        expect(f"one more name {what}", 4, os.stat(names[1]).st_nlink)
        os.unlink(f"{ZOO}/between")
    # Exchange of directories from the first and the last run, and back.
    if state["ages"] > 1:
        first, last = f"{ZOO}/ages/0", f"{ZOO}/ages/{state['ages'] - 1}"
        expect("exchange", ("ok", "ok"), (error_of(renameat2, first, last, EXCHANGE), error_of(renameat2, first, last, EXCHANGE)))
        expect("no replacement", "EEXIST", error_of(renameat2, first, last, NOREPLACE))
        expect("rename over a full directory", "ENOTEMPTY", error_of(os.rename, first, last))


def check_programs(state):
    """What people do with such trees."""
    for script in [
        "rm -rf /tmp/o && mkdir /tmp/o && tar cf - -C zoo/ages . | tar xf - -C /tmp/o && diff -r zoo/ages /tmp/o",
        "rm -rf /tmp/o && cp -a zoo/ages /tmp/o && diff -r zoo/ages /tmp/o",
        "rm -rf /tmp/o && rsync -aHAX zoo/ages/ /tmp/o && diff -r zoo/ages /tmp/o",
        "mv zoo/ages zoo/moved && mv zoo/moved zoo/ages",
        "python3 -c 'import shutil; shutil.move(\"zoo/ages/0\", \"zoo/away\"); shutil.move(\"zoo/away\", \"zoo/ages/0\")'",
        "node -e 'for (const [a, b] of [[0, \"x\"], [\"x\", 0]]) require(\"fs\").renameSync(`zoo/ages/${a}`, `zoo/ages/${b}`)'",
        "cd zoo/repo && git mv tree moved && git mv moved tree && git mv tree/1 one && git mv one tree/1 && test -z \"$(git status --porcelain)\"",
        "git mv file1 moved && git mv moved file1 && git status > /dev/null",
        "rm -rf /tmp/o && mkdir /tmp/o && node -e '"
        'require("/usr/local/lib/node_modules/npm/node_modules/tar").c({sync: true, file: "/tmp/o.tar"}, ["zoo/ages", "/usr/sbin"])'
        "' && tar xf /tmp/o.tar -C /tmp/o && diff -r zoo/ages /tmp/o/zoo/ages && diff -r --no-dereference /usr/sbin /tmp/o/usr/sbin",
        "rm -rf /tmp/o /tmp/o.tar",
    ]:
        done = subprocess.run(["bash", "-euc", script], cwd="/vercel/sandbox", capture_output=True, text=True)
        expect(script, (0, ""), (done.returncode, (done.stdout + done.stderr)[-200:]))


# A repository whose stat cache stays valid.


def make_repository():
    subprocess.run(
        "git init -q -b main zoo/repo && cd zoo/repo && mkdir tree && for n in $(seq 300); do echo $n > tree/$n; done"
        " && git config user.name a && git config user.email a@example.test && git add . && git commit -qm one"
        " && sleep 1.1 && git update-index --refresh && cat .git/index > /dev/null",
        shell=True,
        check=True,
        cwd="/vercel/sandbox",
    )


def check_repository():
    # diff-files does not refresh the cache: it names what only looks changed.
    for place in [f"{ZOO}/repo", "/vercel/sandbox"]:
        done = subprocess.run(["git", "diff-files", "--name-only"], cwd=place, capture_output=True, text=True)
        expect(f"git's stat cache in {place}", (0, ""), (done.returncode, done.stdout + done.stderr))


# Files of the image.

IMAGE_DIRECTORIES = ["/usr/share/git-core", "/etc/ssl", "/usr/share/perl5", "/usr/share/gitweb"]
GROWS, REPLACED, REMOVED, REMADE = "/etc/bash.bashrc", "/etc/shells", "/etc/issue.net", "/usr/share/bash-completion"


def make_image_changes(state):
    state["grows"] = len(read(GROWS))
    state["grows_inode"] = os.stat(GROWS).st_ino
    state["moved"] = False
    as_root(
        f"""
import shutil
os.unlink({REMOVED!r}); os.unlink({REPLACED!r}); os.mkdir({REPLACED!r}); open({REPLACED!r} + '/inner', 'w').write('x')
shutil.rmtree({REMADE!r}); os.mkdir({REMADE!r}); open({REMADE!r} + '/mine', 'w').write('x')
"""
    )


def check_image(state):
    as_root(f"open({GROWS!r}, 'a').write('# one\\n')")
    state["grows"] += 6
    expect("a file of the image that grows", state["grows"], os.stat(GROWS).st_size)
    expect("its inode number", state["grows_inode"], os.stat(GROWS).st_ino)
    expect("removed", "ENOENT", error_of(os.stat, REMOVED))
    expect("a file that became a directory", ["inner"], error_of(os.listdir, REPLACED))
    expect("a directory that was made anew", ["mine"], error_of(os.listdir, REMADE))
    # Where they are moved to in one look, they are found in the next.
    for place in IMAGE_DIRECTORIES:
        here, there = (place + ".moved", place) if state["moved"] else (place, place + ".moved")
        expect(f"{here} is a directory", True, os.path.isdir(here))
        count = sum(len(files) for _, _, files in os.walk(here))
        expect(f"files in {here}", state.setdefault("counts", {}).setdefault(place, count), count)
        # Not with mv, which copies where a rename fails.
        script = f"import os; os.rename({here!r}, {there!r})"
        done = subprocess.run(["sudo", "-n", sys.executable, "-c", script], capture_output=True, text=True)
        expect(f"move {here}", (0, ""), (done.returncode, done.stderr))
        expect(f"files in {there}", count, sum(len(files) for _, _, files in os.walk(there)))
    state["moved"] = not state["moved"]


# All files.


def mount_points():
    with open("/proc/self/mounts") as file:
        return {line.split()[1].encode().decode("unicode_escape") for line in file} - {"/"}


def everything():
    """Path and status of everything in the root file system, each name once."""
    elsewhere = mount_points()
    pending = ["/"]
    while pending:
        place = pending.pop()
        try:
            entries = list(os.scandir(place))
        except PermissionError:
            continue
        for entry in entries:
            if entry.path in elsewhere:
                continue
            found = entry.stat(follow_symlinks=False)
            yield entry.path, found
            if stat.S_ISDIR(found.st_mode):
                pending.append(entry.path)


def check_identity(state, copied):
    device = os.stat("/").st_dev
    known, names, inodes = {}, {}, {}
    others = []
    for path, found in everything():
        if found.st_dev != device:
            others.append(path)
        names.setdefault(found.st_ino, []).append((path, found))
        inodes[path] = found.st_ino
    expect("files on other devices than /", [], others[:3])
    doubles = [group for group in names.values() if len(group) > 1]
    wrong = [
        [path for path, _ in group[:3]]
        for group in doubles
        if len(group) > group[0][1].st_nlink or stat.S_ISDIR(group[0][1].st_mode)
    ]
    expect("files that share an inode number", [], wrong[:3])
    # Above 2^63 JavaScript does not tell them apart.
    several = [group[0][0] for number, group in names.items() if number >> 63 and group[0][1].st_nlink > 1]
    several = [path for path in several if stat.S_ISREG(os.lstat(path).st_mode)]
    expect("files of the image with several names", [], several[:3])
    expect("as many files as an image has", True, len(inodes) > 8_000)
    # Moved by the last look itself, or written anew since; a fork's own number.
    loose = (*IMAGE_DIRECTORIES, "/tmp", "/var/tmp", "/var/log", "/home", "/etc/machine-id")
    loose += (f"{ZOO}/calls", f"{ZOO}/repo/.git/index", "/vercel/sandbox/.git/index")
    if not copied and "inodes" in state:
        known = state["inodes"]
        changed = [
            path
            for path, number in known.items()
            if not path.startswith(loose) and inodes.get(path) not in (number, None)
        ]
        expect("files whose inode number changed", [], changed[:3])
        expect("files that stayed", True, len(known.keys() & inodes.keys()) > 8_000)
    state["inodes"] = {path: number for path, number in inodes.items() if path.isprintable()}


# Calls.


def check_calls():
    place = f"{ZOO}/calls"
    shutil.rmtree(place, ignore_errors=True)
    os.mkdir(place)
    write(f"{place}/mapped", "a" * 8192)
    with open(f"{place}/mapped", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[4096:4099] = b"xyz"
        memory.flush()
    expect("bytes written through a mapping", "axyza", read(f"{place}/mapped")[4095:4100])
    nameless = os.open(place, os.O_TMPFILE | os.O_WRONLY, 0o644)
    os.write(nameless, b"named late")
    # os.link never follows.
    LIBC.linkat(AT_FDCWD, f"/proc/self/fd/{nameless}".encode(), AT_FDCWD, f"{place}/late".encode(), SYMLINK_FOLLOW)
    os.close(nameless)
    expect("a file that got its name late", "named late", read(f"{place}/late"))
    file = open(f"{place}/gone", "w+")
    os.unlink(f"{place}/gone")
    file.write("still here")
    file.seek(0)
    expect("a file without a name", ("still here", 0), (file.read(), os.fstat(file.fileno()).st_nlink))
    one, two = open(f"{place}/lock", "w"), open(f"{place}/lock")
    fcntl.flock(one, fcntl.LOCK_EX)
    expect("a lock that is held", "EAGAIN", error_of(fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB))
    expect("open a directory for writing", "EISDIR", error_of(os.open, place, os.O_WRONLY))
    expect("mkdir of what is there", "EEXIST", error_of(os.mkdir, place))
    expect("rmdir of what is full", "ENOTEMPTY", error_of(os.rmdir, place))
    expect("a directory into itself", "EINVAL", error_of(os.rename, place, f"{place}/inner"))
    expect("hard link to a directory", "EPERM", error_of(os.link, place, f"{place}.link"))
    os.posix_fallocate(os.open(f"{place}/room", os.O_CREAT | os.O_WRONLY), 0, 1 << 20)
    expect("allocated room", True, os.stat(f"{place}/room").st_blocks >= 2048)
    os.symlink("x", f"{place}/l")
    expect("open a symlink itself", "ELOOP", error_of(os.open, f"{place}/l", os.O_RDONLY | os.O_NOFOLLOW))
    with open(f"{place}/from", "wb") as a:
        a.write(os.urandom(100_000))
    with open(f"{place}/from", "rb") as a, open(f"{place}/to", "wb") as b:
        expect("copy_file_range", 100_000, os.copy_file_range(a.fileno(), b.fileno(), 100_000))


def main():
    action = sys.argv[1]
    copied = "--copied" in sys.argv
    if action == "make":
        state = {"ages": 0, "lines": []}
        os.mkdir(ZOO)
        make_metadata()
        make_repository()
        make_image_changes(state)
    else:
        state = json.loads(read(STATE))
    if action == "check":
        first = "inodes" not in state
        check_identity(state, copied)
        check_metadata()
        check_ages(state)
        # Before git itself makes the cache valid again.
        if not copied:
            check_repository()
        check_programs(state)
        check_image(state)
        check_calls()
        # None of this may give a number twice. Later checks begin with a look.
        if first:
            check_identity(state, True)
    add_age(state)
    write(STATE, json.dumps(state))
    print(json.dumps({"checks": checks, "bad": bad}))


main()
