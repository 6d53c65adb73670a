"""What a disk does, in seconds, as JSON. Runs inside a sandbox and on the host.

    files.py DIRECTORY work|remove

Removal is a step of its own: ext4 avoids inodes that were freed in the last
minutes and searches long for others, which is not what is measured.
"""

import json
import os
import shutil
import sqlite3
import sys
import time

place, step = sys.argv[1:]
os.makedirs(place, exist_ok=True)
os.chdir(place)
results = {}


def timed(name, work):
    os.sync()
    began = time.monotonic()
    work()
    results[name] = time.monotonic() - began


def small_files():
    for number in range(10_000):
        if number % 100 == 0:
            os.mkdir(f"d{number // 100}")
        with open(f"d{number // 100}/{number}", "wb") as file:
            file.write(b"x" * 3000)


def large_file():
    block = os.urandom(1 << 20)
    with open("large", "wb", buffering=0) as file:
        for _ in range(500):
            file.write(block)
        os.fsync(file.fileno())


def synced_writes():
    with open("synced", "wb", buffering=0) as file:
        for _ in range(300):
            file.write(b"y" * 4096)
            os.fsync(file.fileno())


def commits():
    database = sqlite3.connect("rows.db")
    database.execute("pragma journal_mode = wal")
    database.execute("pragma synchronous = full")
    database.execute("create table rows (a, b)")
    for number in range(300):
        database.execute("insert into rows values (?, ?)", (number, "z" * 100))
        database.commit()
    database.close()


def cached_reads():
    for number in range(10_000):
        with open(f"d{number // 100}/{number}", "rb") as file:
            file.read()


def cached_stats():
    for _ in range(5):
        for number in range(10_000):
            os.stat(f"d{number // 100}/{number}")


def removal():
    for number in range(100):
        shutil.rmtree(f"d{number}")


if step == "work":
    timed("10,000 small files", small_files)
    timed("500 MiB written and synced", large_file)
    timed("300 writes of 4 KiB, each synced", synced_writes)
    timed("300 SQLite commits (WAL)", commits)
    timed("10,000 cached reads", cached_reads)
    timed("50,000 cached stats", cached_stats)
    os.remove("large")
else:
    timed("removal of the small files", removal)
    os.chdir("/")
    shutil.rmtree(place)
print(json.dumps(results))
