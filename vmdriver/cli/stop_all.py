"""vmdriver stop-all: no machine is left running, as before the driver is removed from a host."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from vmdriver.cli.terminal import indented
from vmdriver.config import Loaded
from vmdriver.errors import DriverError, StorageError, Unavailable
from vmdriver.host import process
from vmdriver.hypervisor.embedded import embed_uri
from vmdriver.hypervisor.qemu_process import run_directory
from vmdriver.lifecycle.engine.ledger import Scope, replay
from vmdriver.service.client import list_sandboxes, stop_sandbox
from vmdriver.storage.layout import Layout
from vmdriver.storage.sandboxes.journal import read_lines

_OUTLIVE_MACHINES = {Scope.PERSISTENT, Scope.ATTACHED}
"""What a sandbox without a machine has, too: its files, and volumes while its memory is kept."""
_AT_ONCE = 4
_BEGIN_S = 60.0
_END_S = 20.0


def stop_all(loaded: Loaded) -> int:
    """Stop every sandbox through the driver that runs. Where none does, and machines do or have
    left something, one is begun for that, with the same settings. 1: some could not be stopped, and
    are named.
    """
    path = loaded.config.gateway.bind_socket
    try:
        sandboxes = list_sandboxes(path)
    except Unavailable:
        if not _machines(loaded) and not held(loaded.config.driver.state_dir):
            return 0
        with _driver(loaded) as own:
            return _stop(own, list_sandboxes(own))
    return _stop(path, sandboxes)


def _stop(path: Path, sandboxes: list[dict[str, str]]) -> int:
    def one(sandbox: dict[str, str]) -> str:
        try:
            stop_sandbox(path, sandbox["id"])
        except DriverError as error:
            return f"{sandbox['id']}: {indented(error.text())}"
        return ""

    with ThreadPoolExecutor(_AT_ONCE) as several:
        problems = [text for text in several.map(one, sandboxes) if text]
    for text in problems:
        print(f"not stopped: {text}", file=sys.stderr)
    return 1 if problems else 0


def _machines(loaded: Loaded) -> bool:
    """Whether QEMUs of the embedded libvirt run; a daemon's are in ledgers."""
    if loaded.config.driver.connection != "embed":
        return False
    root = Layout(loaded.config.driver.state_dir).libvirt
    pids = []
    for file in run_directory(embed_uri(root)).glob("*.pid"):
        try:
            pids.append(int(file.read_text()))
        except (OSError, ValueError):
            continue
    return any(Path(f"/proc/{pid}").exists() for pid in pids)


def held(state_dir: Path) -> bool:
    """Whether a ledger there says that something on the host is to be given back: where a machine
    has ended while no driver ran, its network is still there. What cannot be read may say so.
    """
    for path in Layout(state_dir).sandboxes.glob("*/ledger.jsonl"):
        try:
            entries = replay(read_lines(path)).values()
        except StorageError:
            return True
        if any(entry.scope not in _OUTLIVE_MACHINES for entry in entries):
            return True
    return False


@contextmanager
def _driver(loaded: Loaded) -> Iterator[Path]:
    """For the same state directory, with a socket of its own and no templates."""
    with tempfile.TemporaryDirectory(prefix="vmdriver-", dir="/run") as folder:
        socket = Path(folder) / "own" / "d.sock"
        words, log = own_driver(loaded, socket), Path(folder) / "log"
        program = process.begin(words, log=log, environment=loaded.environment)
        try:
            _wait(socket, log, program)
            yield socket
        finally:
            program.tell(signal.SIGTERM)
            program.wait(_END_S)


def own_driver(loaded: Loaded, socket: Path) -> list[str]:
    """Its command line: the settings of our file and flags, and what is its own. What our
    environment says it is given as its own environment, which nobody else can read.
    """
    words = [sys.executable, "-P", "-m", "vmdriver", "serve"]
    words += ["--config", str(loaded.file.absolute())] if loaded.file else []
    flags = loaded.flags.items()
    words += [f"--{key.replace('_', '-')}={text}" for key, text in flags]
    driver = loaded.config.driver
    words += [
        "--state-dir",
        str(driver.state_dir.absolute()),
        "--instance",
        driver.instance,
    ]
    # Nobody else may ask it for anything: not over TLS either.
    words += ["--bind-socket", str(socket), "--bind-tls", ""]
    return [*words, "--templates-enabled", "false"]


def _wait(socket: Path, log: Path, program: process.Helper) -> None:
    """Until it answers, after a look at all sandboxes. Unavailable, with its last words, where it
    ends instead or takes too long.
    """
    end = time.monotonic() + _BEGIN_S
    while True:
        runs = program.runs()  # before it is asked: it may answer and end
        try:
            list_sandboxes(socket)
        except Unavailable:
            if not runs or time.monotonic() > end:
                last = log.read_text(errors="replace")[-400:]
                text = "a driver for that could not be begun"
                raise Unavailable(text, detail=last) from None
            time.sleep(0.2)
        else:
            return
