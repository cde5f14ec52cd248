"""QEMU's own commands, through libvirt's monitor passthrough (QEMU's docs/interop, QMP)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import libvirt_qemu

from vmdriver.errors import HypervisorError

_log = logging.getLogger(__name__)
_MOST_CHARACTERS = 2**16
_LONG = {"query-block": 2**22, "query-named-block-nodes": 2**22}
"""Of a disk of 200 layers, some 400 KB. libvirt takes up to 10 MiB of an answer, which can be three
million objects: all of this process would stand still while they are made.
"""


def ask(machine: Any, command: str, **arguments: Any) -> Any:
    """The answer. HypervisorError with QEMU's words; libvirt's errors as they are."""
    text = json.dumps({"execute": command, "arguments": arguments})
    said = libvirt_qemu.qemuMonitorCommand(machine, text, 0)
    if len(said) > _LONG.get(command, _MOST_CHARACTERS):
        raise HypervisorError(f"QEMU's answer to {command} is too long")
    with reading(command):
        answer = json.loads(said)
    if isinstance(answer, dict) and "return" in answer:
        return answer["return"]
    refusal = answer.get("error") if isinstance(answer, dict) else None
    words = refusal.get("desc", "") if isinstance(refusal, dict) else ""
    raise HypervisorError(f"QEMU refused {command}: {words}")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Inside, QEMU's answers are taken apart. HypervisorError where they have another shape: who
    has taken it over says what he likes.
    """
    try:
        yield
    except (
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        RecursionError,
    ) as error:
        raise HypervisorError(f"QEMU's answer to {what} makes no sense") from error


def tried(machine: Any, command: str, **arguments: Any) -> None:
    """The same where QEMU may refuse."""
    try:
        ask(machine, command, **arguments)
    except HypervisorError as error:
        _log.info("%s", error.message)
