"""Sandboxes whose record or ledger cannot be read, as the commands show them. Works while no
driver runs: the files are read, nothing is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vmdriver.errors import StorageError
from vmdriver.lifecycle.engine.ledger import Held, replay
from vmdriver.model.record import SandboxRecord
from vmdriver.model.set_aside import STATE_UNREADABLE, WAY_OUT, Salvage, salvage_of
from vmdriver.storage.layout import Layout, SandboxFiles
from vmdriver.storage.sandboxes.journal import read_lines
from vmdriver.storage.sandboxes.records import is_sandbox, read_record, salvaged


@dataclass(frozen=True)
class State:
    """A sandbox's files, as far as they can be read."""

    id: str
    record: SandboxRecord | None
    held: Mapping[str, Held]
    problems: tuple[str, ...]
    salvage: Salvage


def read_state(files: SandboxFiles) -> State:
    """Both files. Never an error."""
    problems: list[str] = []
    record, held = None, dict[str, Held]()
    found = salvaged(files.root)
    try:
        record = read_record(files.root)
        found = replace(salvage_of(record), lease=record.lease or found.lease)
    except StorageError as error:
        problems.append(error.message)
    try:
        held = replay(read_lines(files.ledger))
    except StorageError as error:
        problems.append(error.message)
    return State(files.root.name, record, held, tuple(problems), found)


def known_sandboxes(layout: Layout) -> list[str]:
    """Their ids; none where there is no state directory."""
    try:
        return sorted(d.name for d in layout.sandboxes.iterdir() if is_sandbox(d))
    except OSError:
        return []


def unread(layout: Layout) -> list[State]:
    """Every sandbox that cannot be read."""
    states = (read_state(layout.sandbox(name)) for name in known_sandboxes(layout))
    return [state for state in states if state.problems]


def as_document(state: State) -> dict[str, Any] | None:
    """For machines. None: it can be read."""
    if not state.problems:
        return None
    lease = state.salvage.lease
    return {
        "reason": STATE_UNREADABLE,
        "problems": list(state.problems),
        "resolution": WAY_OUT,
        "name": state.salvage.name,
        "workspace": state.salvage.workspace,
        "addresses": lease.model_dump() if lease else None,
    }
