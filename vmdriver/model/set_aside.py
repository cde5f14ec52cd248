"""Sandboxes whose record or ledger cannot be read: what they are shown as, and what can be
salvaged of them. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from vmdriver.errors import Refused
from vmdriver.model.condition import Condition, SandboxStatus
from vmdriver.model.plan import Lease
from vmdriver.model.record import SandboxRecord

STATE_UNREADABLE = "StateUnreadable"
"""A reason of our own: for a gateway it is final (contract §2.9), which a delete gets out of."""
WAY_OUT = (
    "repair or restore that file and restart the driver, or delete the sandbox; until then "
    "nothing of it is touched"
)
_LONGEST_NAME = 253


@dataclass(frozen=True)
class Salvage:
    """What is known for certain of a sandbox, whatever else is lost."""

    name: str = ""
    namespace: str = ""
    workspace: str = ""
    lease: Lease | None = None
    uid: int | None = None
    """Of its machine's user."""


@dataclass(frozen=True)
class SetAside:
    """One of them. `record`: where only the ledger cannot be read."""

    id: str
    problem: str
    found_at: datetime
    salvage: Salvage = Salvage()
    record: SandboxRecord | None = None
    instance_id: str = ""
    layers: frozenset[str] = field(default_factory=frozenset)
    """Every root disk layer that it may need."""

    @property
    def name(self) -> str:
        """As far as it is known; else the id."""
        return self.salvage.name or self.id

    @property
    def status(self) -> SandboxStatus:
        """As it is shown."""
        text = f"{self.problem}: {WAY_OUT}"
        condition = Condition("Ready", "False", STATE_UNREADABLE, text, self.found_at)
        return SandboxStatus(
            id=self.id,
            name=self.name,
            namespace=self.salvage.namespace,
            workspace=self.salvage.workspace,
            instance_id=self.instance_id,
            conditions=(condition,),
        )

    def refusal(self) -> Refused:
        """Of everything but a delete."""
        return Refused(
            f"sandbox {self.id}: {self.problem}",
            reason=STATE_UNREADABLE,
            resolution=WAY_OUT,
        )


def salvage_of(record: SandboxRecord) -> Salvage:
    """Of a record that can be read."""
    spec = record.spec
    user = record.plan.user if record.plan else None
    uid = user.uid if user else None
    return Salvage(spec.name, spec.namespace, spec.workspace, record.lease, uid)


def salvage(record: str, ledger: str) -> Salvage:
    """What can be made out in the texts of both files, damaged or not."""
    names = {
        key: next(_names(record, key), "") for key in ("name", "namespace", "workspace")
    }
    return Salvage(**names, lease=_lease(record, ledger), uid=_uid(record, ledger))


def _values(text: str, key: str) -> Iterator[Any]:
    """Every value of that key in a JSON text, whatever the rest is like."""
    decoder = json.JSONDecoder()
    for found in re.finditer(rf'"{key}"\s*:\s*', text):
        try:
            value, _ = decoder.raw_decode(text, found.end())
        except (ValueError, RecursionError):
            continue
        yield value


def _names(record: str, key: str) -> Iterator[str]:
    """The specification's come first: it is written first, and begins with them."""
    begin = record.find('"spec"')
    for value in _values(record[max(begin, 0) :], key):
        if (
            isinstance(value, str)
            and len(value) <= _LONGEST_NAME
            and value.isprintable()
        ):
            yield value


def _noted(ledger: str, key: str) -> Iterator[Any]:
    """Everything that was ever noted of that key."""
    for text in ledger.split("\n"):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, Mapping) and line.get("key") == key and "data" in line:
            yield line["data"]


def _uid(record: str, ledger: str) -> int | None:
    """The ledger's last word, else the record's."""
    candidates = [*_values(record, "user"), *_noted(ledger, "machine-user")]
    for candidate in reversed(candidates):
        text = str(candidate.get("uid")) if isinstance(candidate, Mapping) else ""
        if re.fullmatch(r"[0-9]{4,10}", text):
            return int(text)
    return None


def _lease(record: str, ledger: str) -> Lease | None:
    """The ledger's last word, else the record's."""
    for candidate in reversed([*_values(record, "lease"), *_noted(ledger, "lease")]):
        try:
            return Lease.model_validate(candidate, extra="ignore")
        except ValidationError:
            continue
    return None
