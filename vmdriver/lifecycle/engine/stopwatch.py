"""Times the steps of what is under way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from vmdriver.host.log_context import being_at
from vmdriver.model.timing import TimedStep

Timed = Callable[[str], AbstractContextManager[None]]
"""Entered for a step, with its name."""


class Stopwatch:
    """Counts from `since` (monotonic seconds), or from now. Steps may be inside each other."""

    def __init__(self, since: float | None = None) -> None:
        self._begun = time.monotonic() if since is None else since
        self._spans: list[tuple[str, float, float]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count what happens inside as that step, which the log names."""
        begun = time.monotonic()
        try:
            with being_at(step=name):
                yield
        finally:
            self._spans.append((name, begun, time.monotonic()))

    def passed(self, name: str) -> None:
        """All of the time until now was that step."""
        self._spans.append((name, self._begun, time.monotonic()))

    def since(self, earlier: str, name: str) -> None:
        """From the end of the last step called `earlier` until now it was the step `name`."""
        ends = [end for step, _, end in self._spans if step == earlier]
        if ends:
            self._spans.append((name, ends[-1], time.monotonic()))

    def between(self, first: str, last: str) -> float:
        """Seconds from the first begin of the one step to the last end of the other; 0 without."""
        begun = [begin for step, begin, _ in self._spans if step == first]
        ended = [end for step, _, end in self._spans if step == last]
        return max(ended) - min(begun) if begun and ended else 0.0

    @property
    def steps(self) -> dict[str, float]:
        """Seconds of the named steps, in order of their ends; those of one name together, and what
        they have in common once.
        """
        sums = {name: 0.0 for name, _, _ in self._spans}
        until: dict[str, float] = {}
        for name, begun, ended in sorted(self._spans, key=lambda span: span[1]):
            counted = max(begun, until.get(name, begun))
            sums[name] += max(0.0, ended - counted)
            until[name] = max(ended, counted)
        return sums

    def timed(self) -> tuple[TimedStep, ...]:
        """Each by itself, in the order in which they began."""

        def ms(moment: float) -> float:
            return round((moment - self._begun) * 1e3, 1)

        spans = sorted(self._spans, key=lambda span: (span[1], -span[2]))
        return tuple(
            TimedStep(name=name, begun_ms=ms(begun), ended_ms=ms(ended))
            for name, begun, ended in spans
        )

    def text(self) -> str:
        """From the first step's begin to the last one's end, and the steps, on one line."""
        steps = self.steps
        parts = ", ".join(f"{n} {s * 1e3:.0f} ms" for n, s in steps.items())
        whole = 0.0
        if self._spans:
            begun = min(begun for _, begun, _ in self._spans)
            whole = max(ended for _, _, ended in self._spans) - begun
        return f"{whole:.2f} s ({parts})"
