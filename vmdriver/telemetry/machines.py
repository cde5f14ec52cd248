"""What machines use, with a bounded number of series: the busiest ones, and all together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from vmdriver.model.usage import Usage
from vmdriver.telemetry.seen import Value
from vmdriver.telemetry.shown import Shown

TOP = 20
"""Machines that have series of their own."""


@dataclass(frozen=True)
class Whose:
    """A sandbox, and the machine that it has now."""

    sandbox: str
    workspace: str


_GROWING = ("cpu_s", "read", "written", "received", "sent")
_SHOWN = {
    "cpu_s": ("cpu.time", "s", "CPU time of QEMU"),
    "memory": ("memory", "By", "host memory; what is shared is divided"),
    "read": ("disk.read", "By", "that QEMU read from disk, kept memory included"),
    "written": ("disk.written", "By", "that QEMU wrote to disk, kept memory included"),
    "received": ("network.received", "By", "that came to the guest"),
    "sent": ("network.sent", "By", "that the guest sent"),
}
_PEOPLES = {"own", "shared"}
"""For a screen: `memory` is what can be added up."""
_ABOUT = {"run", "begun_s"}
assert set(_SHOWN) == {f.name for f in fields(Usage)} - _ABOUT - _PEOPLES  # noqa: S101


def _shown(field: str, group: str, whose: str, labels: tuple[str, ...]) -> Shown:
    name, unit, text = _SHOWN[field]
    kind = "counter" if field in _GROWING else "gauge"
    return Shown(f"vmdriver.{group}.{name}", unit, f"{text}, {whose}", kind, labels)  # type: ignore[arg-type]


_LABELS = ("sandbox", "workspace")
ONE = {
    field: _shown(field, "machine", f"of each of the {TOP} busiest machines", _LABELS)
    for field in _SHOWN
}
ALL = {
    field: _shown(field, "machines", "of all machines together", ()) for field in _SHOWN
}


class Usages:
    """Sums that only grow, of machines that come and go. `since_s`: seconds since the host's boot,
    when this driver began. What a machine had used before is no growth: after a restart a counter
    begins at nothing, and who watches takes all that it says for what was used since.
    """

    def __init__(self, since_s: float = 0.0) -> None:
        self._since_s = since_s
        self._last: Mapping[Whose, Usage] = {}
        self._before: Mapping[Whose, Usage] = {}
        """One look earlier: who is missed once is not counted from nothing again."""
        self._totals = dict.fromkeys(_GROWING, 0.0)
        self._values: list[Value] = []

    def note(self, now: Mapping[Whose, Usage]) -> list[Value]:
        """Values of this look. What a machine used between the last look and its end is lost.
        The mapping of the call before again is no look of its own: who is busiest stays so.
        """
        if now is not self._last:
            self._values = self._noted(now)
            self._before, self._last = self._last, now
        return self._values

    def _noted(self, now: Mapping[Whose, Usage]) -> list[Value]:
        grown = {whose: self._grown(whose, use) for whose, use in now.items()}
        for grown_by in grown.values():
            for field, amount in grown_by.items():
                self._totals[field] += amount

        def busy(whose: Whose) -> tuple[float, float, str]:
            return -grown[whose]["cpu_s"], -now[whose].cpu_s, whose.sandbox

        memory = sum(use.memory for use in now.values())
        return [
            *(Value(ALL[field], total, {}) for field, total in self._totals.items()),
            Value(ALL["memory"], memory, {}),
            *(
                value
                for whose in sorted(now, key=busy)[:TOP]
                for value in _of_one(whose, now[whose])
            ),
        ]

    def _grown(self, whose: Whose, use: Usage) -> dict[str, float]:
        before = self._last.get(whose) or self._before.get(whose)
        if before is None and use.begun_s < self._since_s:
            before = use
        if before is None or before.run != use.run:
            before = Usage(use.run)
        return {
            field: max(0, getattr(use, field) - getattr(before, field))
            for field in _GROWING
        }


def _of_one(whose: Whose, use: Usage) -> list[Value]:
    attributes = {"sandbox": whose.sandbox, "workspace": whose.workspace}
    return [Value(ONE[field], getattr(use, field), attributes) for field in _SHOWN]
