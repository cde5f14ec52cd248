"""Commands in the guest, through its agent. Blocking: to be called in the libvirt pool."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import libvirt_qemu

from vmdriver.errors import TimedOut

_POLL_S = 0.02


def _ask(machine: Any, command: str, arguments: dict[str, Any], timeout_s: int) -> Any:
    text = json.dumps({"execute": command, "arguments": arguments})
    answer = libvirt_qemu.qemuAgentCommand(machine, text, timeout_s, 0)
    return json.loads(answer)["return"]


def run(machine: Any, command: Sequence[str], timeout_s: float) -> int:
    """Run a program of the initramfs as root; its exit status (-1 if a signal ended it).

    Waits at most about `timeout_s` seconds. TimedOut, or libvirt's own errors.
    """
    deadline = time.monotonic() + timeout_s
    first = {"path": command[0], "arg": list(command[1:])}
    started = _ask(machine, "guest-exec", first, max(1, int(timeout_s)))
    while True:
        left = max(1, int(deadline - time.monotonic()))
        state = _ask(machine, "guest-exec-status", {"pid": started["pid"]}, left)
        if state["exited"]:
            return int(state.get("exitcode", -1))
        if time.monotonic() > deadline:
            raise TimedOut(
                f"{command[0]} in the guest took longer than {timeout_s:g} s"
            )
        time.sleep(_POLL_S)
