"""Searches files, environments and command lines for texts, given backwards as JSON.
Prints where they were found. With "plant" it puts one into a file first and searches
there, as a control."""

import json
import os
import sys

needles = [text[::-1].encode() for text in json.loads(sys.argv[1])]
root = sys.argv[2]
found = []


def look(path):
    try:
        with open(path, "rb") as f:
            tail = b""
            while chunk := f.read(1 << 20):
                data = tail + chunk
                if any(needle in data for needle in needles):
                    found.append(path)
                    return
                tail = data[-200:]
    except OSError:
        pass


if root == "plant":
    root = "/tmp"
    with open("/tmp/planted", "wb") as f:
        f.write(b"x" * ((1 << 20) - 5) + needles[0])
for place, directories, files in os.walk(root):
    if place == "/":
        directories[:] = [name for name in directories if name not in ("proc", "sys", "dev")]
    for name in files:
        path = os.path.join(place, name)
        if not os.path.islink(path) and os.path.isfile(path):
            look(path)
for process in os.listdir("/proc"):
    if process.isdigit() and process != str(os.getpid()):
        look(f"/proc/{process}/environ")
        look(f"/proc/{process}/cmdline")
if os.path.exists("/tmp/planted"):
    os.remove("/tmp/planted")
print(found)
