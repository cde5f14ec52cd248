"""What happened in a storm, counted, and what was promised and not kept."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Violation:
    """A promise that was not kept."""

    what: str
    sandbox: str = ""


@dataclass
class Tally:
    """Counts of many threads, and the storm's diary."""

    actions: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    longest: dict[str, float] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    diary: list[tuple[float, str, str]] = field(default_factory=list)
    """Seconds since the start, sandbox ("": all), what."""
    begun: float = field(default_factory=time.monotonic)
    verbose: bool = False
    _harm: float = -1e9
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> float:
        return time.monotonic() - self.begun

    def note(self, what: str, sandbox: str = "") -> None:
        with self._lock:
            self.diary.append((self.now(), sandbox, what))
        if self.verbose:
            print(f"[{self.now():7.2f} s] {sandbox:14} {what}", flush=True)

    def harms(self) -> None:
        """The host is at fault from now: any driver or sandbox may fail for it."""
        self._harm = self.now()

    def harmed(self, within_s: float) -> bool:
        """Whether it was so at any time since then."""
        return self.now() - self._harm < within_s

    def count(self, counter: Counter[str], key: str) -> None:
        with self._lock:
            counter[key] += 1

    def refused(self, action: str, code: str, text: str) -> None:
        """Counted by reason: what differs from sandbox to sandbox is left out."""
        text = re.sub(r"storm-\d+", "BOX", text.splitlines()[0] if text else "")
        text = re.sub(r"[0-9a-f]{12,}|\d+", "N", text)[:90]
        self.count(self.refusals, f"{code} {action}: {text}")

    def took(self, what: str, seconds: float) -> None:
        with self._lock:
            self.longest[what] = max(seconds, self.longest.get(what, 0.0))

    def broken(self, what: str, sandbox: str = "") -> None:
        self.note(f"BROKEN PROMISE: {what}", sandbox)
        with self._lock:
            self.violations.append(Violation(what, sandbox))

    def history(self, sandbox: str) -> list[str]:
        """Its own lines, and those of every fault."""
        return [
            f"[{at:7.2f} s] {what}"
            for at, whose, what in list(self.diary)
            if whose in {"", sandbox}
        ]

    def table(self, say: Callable[[str], None] = print) -> None:
        for name in ("actions", "kills", "refusals"):
            counter: Counter[str] = getattr(self, name)
            say(f"{name} ({counter.total()})")
            for key, count in counter.most_common():
                say(f"  {count:5}  {key}")
        say("longest, seconds")
        for key, seconds in sorted(self.longest.items()):
            say(f"  {seconds:7.2f}  {key}")
