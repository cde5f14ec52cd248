"""Programs that run where an attacker who left the guest would be: in a machine's QEMU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.system.machines import Driver

ENTER = Path(__file__).with_name("enter.py")
PYTHON = "/usr/bin/python3"
"""The host's own, which a QEMU can see; not the tests'."""


def in_machine(pid: int, program: str, argument: object = None) -> Any:
    """Run Python code with the rights of that QEMU (tests/adversary/enter.py says which these are). It finds `argument` as
    JSON on its standard input; the JSON that it prints is returned. AssertionError if it fails.
    """
    done = subprocess.run(
        [sys.executable, str(ENTER), str(pid), PYTHON, "-Ic", program],
        input=json.dumps(argument),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


OPEN_FILES = """
import errno, json, os, socket, stat, sys
def opened(path, flags):
    try:
        os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY))
    except OSError as error:
        # A socket that could be connected to is as good as open; a FIFO that nobody reads could be written.
        return error.errno == errno.ENXIO and (not stat.S_ISSOCK(os.stat(path).st_mode) or connects(path))
    return True
def connects(path):
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(path)
    except OSError:
        return False
    return True
found = {}
for path in json.load(sys.stdin):
    rights = [word for word, flags in (("r", os.O_RDONLY), ("w", os.O_WRONLY)) if opened(path, flags)]
    if rights:
        found[path] = "".join(rights)
print(json.dumps(found))
"""


def openable(pid: int, paths: Iterable[Path]) -> dict[Path, str]:
    """Which of these that QEMU could read ("r"), write ("w") or connect to (both)."""
    found = in_machine(pid, OPEN_FILES, [str(path) for path in paths])
    return {Path(path): rights for path, rights in found.items()}


def everything_below(*folders: Path) -> list[Path]:
    """Files, sockets, FIFOs and folders; not links, which are of no more use than what they lead to."""
    return [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if not path.is_symlink()
    ]


def two_running(driver: Driver) -> tuple[str, str]:
    """Two sandboxes of the same workspace, as like as two can be."""
    first, second = driver.create(name="first"), driver.create(name="second")
    for sandbox in (first, second):
        driver.wait(sandbox, "Running")
    return first, second


def addresses_of_the_host() -> list[str]:
    """IPv4, of all its interfaces."""
    command = ["ip", "-json", "-4", "address"]
    links = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return [a["local"] for link in links for a in link["addr_info"]]
