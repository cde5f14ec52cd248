"""QEMU's own commands, through libvirt's monitor passthrough (QEMU's docs/interop, QMP)."""

from __future__ import annotations

import json
import logging
from typing import Any

import libvirt_qemu

from vmdriver.errors import HypervisorError

_log = logging.getLogger(__name__)


def ask(machine: Any, command: str, **arguments: Any) -> Any:
    """The answer. HypervisorError with QEMU's words; libvirt's errors as they are."""
    text = json.dumps({"execute": command, "arguments": arguments})
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(machine, text, 0))
    if "error" in answer:
        raise HypervisorError(
            f"QEMU refused {command}: {answer['error'].get('desc', '')}"
        )
    return answer["return"]


def tried(machine: Any, command: str, **arguments: Any) -> None:
    """The same where QEMU may refuse."""
    try:
        ask(machine, command, **arguments)
    except HypervisorError as error:
        _log.info("%s", error.message)
