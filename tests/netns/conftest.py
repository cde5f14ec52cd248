"""A host of its own for each test: a fresh network namespace, and namespaces around it for guests and servers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

CLONE_NEWNET = 0x40000000
QUICK = sys.executable, "-I", "-S"
"""For programs that need nothing of what is installed: half the time of a start."""
_libc = ctypes.CDLL(None, use_errno=True)


def run(
    *command: str, check: bool = True, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=check, capture_output=True, text=True, **options
    )


STRICT = """\
table ip strict {
chain forwarding {
type filter hook forward priority 0; policy drop;
}
}
"""
"""A table of somebody else that forwards nothing."""
SERVER = """
import socket, sys, threading
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((sys.argv[1], int(sys.argv[2]))); s.listen(); print("up", flush=True)
while True:
    c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()
"""
CLIENT = """
import socket, sys
try:
    c = socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.7, (sys.argv[3], 0) if len(sys.argv) > 3 else None)
    print(c.recv(99).decode())
except OSError as e:
    print("no", e)
"""
REFUSED = """
import errno, socket, sys, time
kind = socket.SOCK_DGRAM if sys.argv[3] == "udp" else socket.SOCK_STREAM
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, kind); s.settimeout(20); begun = time.monotonic()
try:
    s.connect((sys.argv[1], int(sys.argv[2]))); s.send(b"x"); s.recv(1); what = "answered"
except OSError as e:
    what = errno.errorcode.get(e.errno, "timed out")
print(what, time.monotonic() - begun)
"""


class Closable(Protocol):
    def close(self) -> None: ...


@dataclass
class Net:
    """The host is this thread's own namespace."""

    prefix: str
    spaces: list[str] = field(default_factory=list)
    servers: list[subprocess.Popen[str]] = field(default_factory=list)
    wires: list[Closable] = field(default_factory=list)

    def space(self, name: str) -> str:
        full = f"{self.prefix}-{name}"
        run("ip", "netns", "add", full)
        self.spaces.append(full)
        run("ip", "-n", full, "link", "set", "lo", "up")
        return full

    def link(self, name: str, here: str, space: str, address: str, peer: str) -> None:
        """A veth from the host (`here`, with `address`) to eth0 in a namespace (`peer`)."""
        run(
            "ip",
            "link",
            "add",
            here,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            space,
        )
        run("ip", "addr", "add", address, "dev", here)
        run("ip", "link", "set", here, "up")
        run("ip", "-n", space, "addr", "add", peer, "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        run("ip", "-n", space, "route", "add", "default", "via", address.split("/")[0])

    def link_ipv6(self, here: str, space: str, address: str, peer: str) -> None:
        """The same with IPv6 alone, each of a /64."""
        both = ("type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "link", "add", here, *both)
        for where, name, own in (([], here, address), (["-n", space], "eth0", peer)):
            run("ip", *where, "addr", "add", f"{own}/64", "dev", name, "nodad")
            run("ip", *where, "link", "set", name, "up")
        run("ip", "-n", space, "-6", "route", "add", "default", "via", address)

    def serve(self, address: str, port: int, space: str | None = None) -> None:
        inside = ["ip", "netns", "exec", space] if space else []
        server = subprocess.Popen(
            [*inside, *QUICK, "-c", SERVER, address, str(port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        self.servers.append(server)

    def dial(
        self, space: str | None, address: str, port: int, source: str | None = None
    ) -> str | None:
        """What the server saw as our address, or None when it could not be reached."""
        inside = ["ip", "netns", "exec", space] if space else []
        done = run(
            *inside,
            *QUICK,
            "-c",
            CLIENT,
            address,
            str(port),
            *([source] if source else []),
        )
        answer = done.stdout.strip()
        return None if answer.startswith("no") else answer

    def refusal(
        self, space: str, address: str, port: int, kind: str = "tcp"
    ) -> tuple[str, float]:
        """The error's name ("answered", "timed out" when there is none), and after how many
        seconds.
        """
        command = [*QUICK, "-c", REFUSED, address, str(port), kind]
        done = run("ip", "netns", "exec", space, *command)
        name, seconds = done.stdout.rsplit(maxsplit=1)
        return name, float(seconds)

    def close(self) -> None:
        for server in self.servers:
            server.terminate()
            server.wait()
            if server.stdout:
                server.stdout.close()
        for wire in self.wires:
            wire.close()
        for space in self.spaces:
            run("ip", "netns", "del", space)


@pytest.fixture
def net() -> Iterator[Net]:
    if os.geteuid() != 0:
        pytest.fail("the netns tier needs root")
    with open("/proc/thread-self/ns/net") as original:
        if _libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        net = Net(f"vmdt{os.getpid()}")
        try:
            run("ip", "link", "set", "lo", "up")
            yield net
        finally:
            with contextlib.suppress(Exception):
                net.close()
            _libc.setns(original.fileno(), CLONE_NEWNET)
