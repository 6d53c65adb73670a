"""Asks a name server one question: server, udp or tcp, name and type in; the response
as JSON out: code, answers, truncated, and why (extended DNS error, RFC 8914)."""

import json
import os
import socket
import struct
import sys

server, transport, name, kind = sys.argv[1:5]
KINDS = {"A": 1, "TXT": 16, "AAAA": 28, "HTTPS": 65}
labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split(".") if l) + b"\0"
opt = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)
question = os.urandom(2) + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 1)
question += labels + struct.pack("!HH", KINDS[kind], 1) + opt

if transport == "udp":
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(8)
    s.connect((server, 53))
    s.send(question)
    reply = s.recv(4096)
else:
    s = socket.create_connection((server, 53), 8)
    s.sendall(struct.pack("!H", len(question)) + question)
    f = s.makefile("rb")
    reply = f.read(struct.unpack("!H", f.read(2))[0])

assert reply[:2] == question[:2]
flags, _, answers, authorities, additional = struct.unpack("!HHHHH", reply[2:12])
at = 12


def skip_name(at):
    while reply[at]:
        if reply[at] >= 0xC0:
            return at + 2
        at += reply[at] + 1
    return at + 1


at = skip_name(at) + 4
found, why = [], None
for i in range(answers + authorities + additional):
    at = skip_name(at)
    rtype, _, _, length = struct.unpack("!HHIH", reply[at : at + 10])
    data = reply[at + 10 : at + 10 + length]
    at += 10 + length
    if rtype == 41:
        while data:
            code, size = struct.unpack("!HH", data[:4])
            if code == 15:
                why = data[6 : 4 + size].decode()
            data = data[4 + size :]
    elif i < answers and rtype == 1:
        found.append(socket.inet_ntoa(data))
    elif i < answers and rtype == 16:
        found.append(data[1:].decode())
    elif i < answers:
        found.append(rtype)
print(json.dumps({"code": flags & 15, "truncated": bool(flags & 0x200), "answers": found, "why": why}))
