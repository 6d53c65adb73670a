"""Fills the disk with files, each synced before it counts. Runs inside.

    fill.py fill DIR [MIB]   write files of 16 MiB until it fails, or so many;
                             prints the names and digests of those that were
                             acknowledged, and the errno of the failure
    fill.py verify DIR       reads lines of `fill` and prints what is not so
"""

import errno
import hashlib
import os
import sys

SIZE = 16 << 20


def fill(place, most):
    for number in range(most // 16):
        data = os.urandom(SIZE)
        path = f"{place}/{number}"
        try:
            os.makedirs(place, exist_ok=True)
            with open(path, "wb", buffering=0) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
        except OSError as error:
            return errno.errorcode[error.errno]
        print(number, hashlib.sha256(data).hexdigest(), flush=True)
    return "done"


def verify(place):
    for line in sys.stdin:
        name, digest = line.split()
        try:
            with open(f"{place}/{name}", "rb") as file:
                # Not what memory remembers, but what the disk does.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                if hashlib.sha256(file.read()).hexdigest() != digest:
                    print(name, "differs")
        except OSError as error:
            print(name, errno.errorcode[error.errno])


if sys.argv[1] == "fill":
    print(fill(sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1 << 30))
else:
    verify(sys.argv[2])
