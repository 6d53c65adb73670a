"""Tries to reach places: a list of [kind, host, port] as JSON in, a list of
[outcome, milliseconds] as JSON out. The outcome is "ok" or the name of an errno."""

import errno
import json
import socket
import sys
import time


def attempt(kind, host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if kind == "tcp":
        with socket.socket(family, socket.SOCK_STREAM) as s:
            s.settimeout(4)
            s.connect((host, port))
            return "ok"
    if kind == "udp":
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.settimeout(2)
            s.connect((host, port))
            s.send(b"x" * 64)
            time.sleep(0.1)
            # What came back of it is told by the next call.
            s.send(b"x")
            return "sent"
    if kind == "ping":
        with socket.socket(family, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as s:
            s.settimeout(2)
            s.connect((host, 0))
            s.send(b"\x08\x00\x00\x00\x00\x01\x00\x01")
            s.recv(100)
            return "ok"
    raise ValueError(kind)


def outcome(kind, host, port):
    began = time.monotonic()
    try:
        said = attempt(kind, host, port)
    except socket.timeout:
        said = "timeout"
    except OSError as error:
        said = errno.errorcode.get(error.errno, str(error))
    return [said, round((time.monotonic() - began) * 1000)]


print(json.dumps([outcome(*place) for place in json.loads(sys.argv[1])]))
