"""What came of it: seconds for each step, one table, one JSON line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Report:
    """Steps by way; a way ends with its first step that fails."""

    steps: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Seconds; None: it failed, or was not come to."""
    failed: dict[str, str] = field(default_factory=dict)
    leftovers: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything ran, and nothing is left."""
        ran = [seconds for way in self.steps.values() for seconds in way.values()]
        return bool(ran) and None not in ran and not self.failed and not self.leftovers

    def run(self, way: str, steps: list[tuple[str, Callable[[], None]]]) -> bool:
        """Each step in its order. False: one failed, and those after it were not come to."""
        taken = self.steps.setdefault(way, {name: None for name, _ in steps})
        for name, step in steps:
            begun = time.monotonic()
            try:
                step()
            except Exception as error:
                self.failed[way] = f"{name}: {type(error).__name__}: {error}"
                print(f"{way:10} {name:18} FAILED\n{error}", flush=True)
                return False
            taken[name] = round(time.monotonic() - begun, 2)
            print(f"{way:10} {name:18} {taken[name]:8.2f} s", flush=True)
        return True

    def table(self) -> str:
        """A line a step, a column a way."""
        names = list(dict.fromkeys(name for way in self.steps.values() for name in way))
        head = f"{'step':18}" + "".join(f"{way:>16}" for way in self.steps)
        rows = [
            f"{name:18}"
            + "".join(f"{_shown(way, name):>16}" for way in self.steps.values())
            for name in names
        ]
        return "\n".join([head, *rows])

    def line(self) -> str:
        """The JSON line."""
        found = {
            "ok": self.ok,
            "steps": self.steps,
            "leftovers": len(self.leftovers),
        }
        return json.dumps(found | ({"failed": self.failed} if self.failed else {}))


def _shown(way: dict[str, float | None], name: str) -> str:
    if name not in way:
        return "-"
    seconds = way[name]
    return "not done" if seconds is None else f"{seconds:.2f} s"
