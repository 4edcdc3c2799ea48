"""Traffic and disk checks that run inside a guest. Standard library only: it is sent to the guest over SSH.

receive PORT                 take one connection, read to its end; prints {"bytes", "sha256"}
send HOST PORT BYTES         send that many pseudo-random bytes; prints the same two
probe HOST PORT SECONDS      connect until it works; prints {"open", "seconds"}
sink PORT STATUS             take one numbered stream; keeps STATUS (a file) true: {"records", "broken", "gap_max_s"}
source HOST PORT STATUS      send numbered records, 25 a second, until killed or the connection breaks
write FILE STATUS            append checksummed records with fsync until killed: {"records", "errors", "pauses"}
verify FILE                  read all records back, not from the page cache: {"records", "broken"}
"""

import hashlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable

RECORD = 4096
HEADER = struct.Struct(">Q32s")
STREAM_PAUSE_S = 0.04


def say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def keep(path: str, **fields: object) -> None:
    with open(path + ".new", "w") as file:
        json.dump(fields, file)
    os.replace(path + ".new", path)


def record(number: int, size: int = RECORD) -> bytes:
    """`size` bytes that anyone can check: number, checksum, filler made from the number."""
    filler = hashlib.sha256(str(number).encode()).digest() * (size // 32 + 1)
    filler = filler[: size - HEADER.size]
    return HEADER.pack(number, hashlib.sha256(filler).digest()) + filler


def listen(port: int) -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("0.0.0.0", port))  # noqa: S104  # a tenant's own listener, behind the security group
    server.listen()
    say(listening=port)
    return server.accept()[0]


def receive(port: str) -> None:
    digest, count = hashlib.sha256(), 0
    connection = listen(int(port))
    while data := connection.recv(1 << 16):
        digest.update(data)
        count += len(data)
    say(bytes=count, sha256=digest.hexdigest())


def send(host: str, port: str, size: str) -> None:
    digest, left = hashlib.sha256(), int(size)
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        while left:
            block = os.urandom(min(left, 1 << 16))
            digest.update(block)
            connection.sendall(block)
            left -= len(block)
    say(bytes=int(size), sha256=digest.hexdigest())


def probe(host: str, port: str, seconds: str) -> None:
    start = time.monotonic()
    while (passed := time.monotonic() - start) < float(seconds):
        try:
            socket.create_connection((host, int(port)), timeout=0.25).close()
        except OSError:
            time.sleep(0.02)
            continue
        say(open=True, seconds=round(passed, 3))
        return
    say(open=False, seconds=round(passed, 3))


class Pauses:
    """Pauses of more than a quarter of a second, by the number of the record that ended each."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.list: list[tuple[int, float]] = []

    def over(self, number: int) -> None:
        now = time.monotonic()
        if now - self.last > 0.25:
            self.list.append((number, round(now - self.last, 3)))
        self.last = now


def sink(port: str, status: str) -> None:
    connection, number, broken = listen(int(port)), 0, 0
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    buffer, pauses = b"", Pauses()
    while data := connection.recv(1 << 16):
        pauses.over(number)
        buffer += data
        while len(buffer) >= RECORD:
            broken += buffer[:RECORD] != record(number)
            buffer, number = buffer[RECORD:], number + 1
        keep(status, records=number, broken=broken, pauses=pauses.list, ended=False)
    keep(status, records=number, broken=broken, pauses=pauses.list, ended=True)


def source(host: str, port: str, status: str) -> None:
    number = 0
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.settimeout(None)
    while True:
        connection.sendall(record(number))
        number += 1
        keep(status, records=number)
        time.sleep(STREAM_PAUSE_S)


def write(path: str, status: str) -> None:
    number, errors, pauses = 0, 0, Pauses()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    while True:
        try:
            os.pwrite(descriptor, record(number), number * RECORD)
            os.fsync(descriptor)
        except OSError:
            errors += 1
        pauses.over(number)
        number += 1
        keep(status, records=number, errors=errors, pauses=pauses.list)
        time.sleep(0.02)


def verify(path: str) -> None:
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")
    number = broken = 0
    with open(path, "rb") as file:
        while block := file.read(RECORD):
            if len(block) < RECORD:
                break  # the record that was being written when the writer was ended
            broken += block != record(number)
            number += 1
    say(records=number, broken=broken)


if __name__ == "__main__":
    commands: dict[str, Callable[..., None]] = {
        verb.__name__: verb for verb in (receive, send, probe, sink, source, write, verify)
    }
    with open(f"/run/opendpu-{sys.argv[1]}.pid", "w") as file:
        file.write(str(os.getpid()))
    commands[sys.argv[1]](*sys.argv[2:])
