"""A sandbox as the machinery for extensions needs it, on whichever driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vmdriver.lifecycle.engine.ledger import Ledger
from vmdriver.lifecycle.extending.hooks import SandboxView
from vmdriver.model.record import Change, ExtensionState, SandboxRecord
from vmdriver.model.runs import RestoreKind


@dataclass(frozen=True)
class Activation:
    """Who takes part; decided once, at create, and stored."""

    active: tuple[str, ...] = ()
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By extension: what the request says to it, as it was given."""


@dataclass(frozen=True)
class Subject:
    """`ledger` is None where there is none yet."""

    sandbox: SandboxView
    activation: Activation
    ledger: Ledger | None = None
    trace: Mapping[str, str] = field(default_factory=dict)
    restore: RestoreKind | None = None
    changes: tuple[Change, ...] = ()
    """What phases changed at create, for every launch of a machine."""
    accepted: bool = True
    """False: the create is not answered yet."""


def view_of(known: Any) -> SandboxView:
    """What extensions may see of a specification, or of whatever else has these fields."""
    return SandboxView(**{f.name: getattr(known, f.name) for f in fields(SandboxView)})


def subject_of(
    record: SandboxRecord,
    ledger: Ledger | None = None,
    trace: Mapping[str, str] | None = None,
) -> Subject:
    """A sandbox of the VM driver."""
    state = record.extensions
    return Subject(
        view_of(record.spec),
        Activation(state.active, state.parameters),
        ledger,
        trace or {},
        RestoreKind(state.returned) if state.returned else None,
        state.changes,
        state.accepted,
    )


def new_run(record: SandboxRecord, kind: RestoreKind | None) -> ExtensionState:
    """What is stored of the extensions when a run of the VM driver begins."""
    return record.extensions.model_copy(
        update={"ready_told": False, "returned": kind.value if kind else ""}
    )
