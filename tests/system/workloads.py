"""Sandboxes whose programs would notice if anything went wrong with time, memory or disk."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from google.protobuf import struct_pb2

from tests.fakes.waiting import until
from vmdriver._proto import compute_driver_pb2 as pb

if TYPE_CHECKING:
    from tests.system.machines import Driver

CHAIN = """
import hashlib, os, time
h, n = "start", 0
out = open("/sandbox/chain", "a")
while True:
    n += 1
    h = hashlib.sha256(f"{h} {n}".encode()).hexdigest()
    out.write(f"{n} {h} {time.time():.3f} {time.monotonic():.3f}\\n")
    out.flush()
    if n % 10 == 0:
        os.fsync(out.fileno())
    time.sleep(0.02)
"""
"""A hash chain in memory, each link written to the disk with both clocks."""


def command(program: str) -> list[str]:
    return ["/usr/bin/python3", "-c", program]


def running(driver: Driver, config: dict[str, Any], **spec: Any) -> str:
    """A sandbox with such a `driver_config`."""
    fields = struct_pb2.Struct()
    fields.update(config)
    template = pb.DriverSandboxTemplate(image=driver.host.image, driver_config=fields)
    sandbox = driver.create(template=template, **spec)
    driver.wait(sandbox, "Running")
    return sandbox


def suspending(driver: Driver, **spec: Any) -> str:
    """A running sandbox whose stop is a suspension."""
    return running(driver, {"on_stop": "suspend"}, **spec)


def marked(driver: Driver) -> str:
    """The same with a chain, and with a note in its memory and one on its disk."""
    sandbox = suspending(driver, command=command(CHAIN))
    driver.gateway.shell(
        sandbox,
        "echo kept > /dev/shm/note; echo disk > /sandbox/note; sync;"
        "while [ ! -s /sandbox/chain ]; do sleep 0.1; done",
    )
    return sandbox


def chain_of(driver: Driver, sandbox: str) -> list[tuple[int, float, float]]:
    """As `check_chain` has it."""
    return check_chain(driver.gateway.shell(sandbox, "cat /sandbox/chain"))


def check_whole(driver: Driver, sandbox: str) -> None:
    """Nothing of the memory was lost."""
    driver.wait(sandbox, "Running")
    assert driver.gateway.shell(sandbox, "cat /dev/shm/note") == "kept\n"
    chain_of(driver, sandbox)
    check_thawed(driver, sandbox)


def check_thawed(driver: Driver, sandbox: str) -> None:
    """A driver that has just begun is at it."""

    def held() -> list[Any]:
        entries = driver.inspect(sandbox)["ledger"]
        return [entry for entry in entries if entry["scope"] == "capture"]

    until(lambda: not held(), "something is still held still", 10)


def check_chain(text: str) -> list[tuple[int, float, float]]:
    """Every link follows from the one before: disk and memory agree, and no moment was lived twice. Returns number, wall
    clock and monotonic clock of each.
    """
    h, found = "start", []
    for number, line in enumerate(text.splitlines(), 1):
        n, digest, wall, steady = line.split()
        h = hashlib.sha256(f"{h} {number}".encode()).hexdigest()
        assert int(n) == number, f"link {number} is called {n}"
        assert digest == h, f"the chain is broken at {number}"
        found.append((number, float(wall), float(steady)))
    assert found == sorted(found, key=lambda link: link[2]), (
        "the steady clock went back"
    )
    assert found == sorted(found, key=lambda link: link[1]), "the wall clock went back"
    return found


HOLDER = """
import json, os, socket, sys, time
s = socket.create_connection(("host.openshell.internal", int(sys.argv[1])))
s.sendall(b"POST /hold HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 2\\r\\nX-Sandbox-Id: " + sys.argv[2].encode() + b"\\r\\n\\r\\n{}")
try:
    got = repr(s.recv(1))
except OSError as error:
    got = repr(error)
open("/tmp/held", "w").write(f"{time.monotonic():.3f} {got}")
"""
"""Holds a connection to the gateway and writes down when and how it ended."""


STORM = """
import hashlib, os, time, uuid
h, n = uuid.uuid4().hex, 0
os.makedirs("/sandbox/files", exist_ok=True)
out = open("/sandbox/chain", "a")
out.write(f"\\nstart {h}\\n")
while True:
    n += 1
    h = hashlib.sha256(f"{h} {n}".encode()).hexdigest()
    out.write(f"{n} {h}\\n")
    out.flush()
    if n % 10 == 0:
        os.fsync(out.fileno())
    time.sleep(0.1)
"""
"""As CHAIN, for machines that are killed: each boot begins a chain of its own."""


def check_chains(text: str) -> list[int]:
    """Every chain is unbroken; its last link may be torn, by a power cut. Returns their lengths."""
    lengths, h, torn = [], "", False
    for line in text.splitlines():
        first, _, digest = line.partition(" ")
        if first == "start":
            lengths.append(0)
            h, torn = digest, False
        elif line:
            assert lengths, f"a link before any start: {line!r}"
            assert not torn, f"links go on after a broken one: {line!r}"
            h = hashlib.sha256(f"{h} {lengths[-1] + 1}".encode()).hexdigest()
            torn = line != f"{lengths[-1] + 1} {h}"
            lengths[-1] += not torn
    return lengths


HARD = """
import mmap, os, time
pages, block = mmap.mmap(-1, 4096 * 4096), mmap.mmap(-1, 4096)
disk = os.open("/sandbox/count", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
def torn(what):
    with open("/dev/shm/torn", "w") as file:
        file.write(what)
    time.sleep(10**6)
n = 0
for page in range(4096):
    pages[page * 4096:page * 4096 + 20] = b"%020d" % n
while True:
    block[:20] = b"%020d" % n
    os.pwritev(disk, [block], 0)
    with open("/dev/shm/next", "w") as file:
        file.write(str(n))
    os.replace("/dev/shm/next", "/dev/shm/told")
    for page in range(4096):
        at = page * 4096
        if pages[at:at + 20] != b"%020d" % n:
            torn(f"page {page} at {n}: {pages[at:at + 20]!r}")
        pages[at:at + 20] = b"%020d" % (n + 1)
    os.preadv(disk, [block], 0)
    if int(block[:20]) != n:
        torn(f"the disk at {n}: {block[:20]!r}")
    n += 1
"""
"""Writes 16 MiB of memory round and round, and a count to the disk, past every cache; says when one of them is not of the
moment that its program is at.
"""
