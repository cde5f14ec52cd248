"""What is to be done about what `vmdriver doctor` has found, in order, and how it ends. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from vmdriver.cli.doctor.finding import Finding


class Outcome(Enum):
    """All findings in one word. `status`: what the command ends with; 2 is everybody's "it could
    not be asked".
    """

    FINE = "fine"
    BLOCKED = "blocked"
    WORKS = "works"

    @property
    def status(self) -> int:
        """Of the process."""
        return _STATUS[self]

    @property
    def text(self) -> str:
        """For people."""
        return _TEXT[self]


_STATUS = {Outcome.FINE: 0, Outcome.BLOCKED: 1, Outcome.WORKS: 3}
_TEXT = {
    Outcome.FINE: "nothing is to be done: machines can be started",
    Outcome.BLOCKED: "machines cannot be started before the first of these are done",
    Outcome.WORKS: "machines can be started; these are to be looked at",
}


@dataclass(frozen=True)
class Step:
    """One thing to do. `checks`: what it mends."""

    do: str
    why: str
    checks: tuple[str, ...]
    blocks: bool


def outcome(findings: Sequence[Finding]) -> Outcome:
    """Of all of them."""
    if any(finding.blocks for finding in findings):
        return Outcome.BLOCKED
    if any(finding.level != "ok" for finding in findings):
        return Outcome.WORKS
    return Outcome.FINE


def next_steps(findings: Sequence[Finding]) -> list[Step]:
    """First what keeps machines from starting, then what else is broken, then what is wise; each
    in the order in which it was found: what comes later may only be wrong for what comes before.
    What one advice mends is one step, where the first of it is.
    """
    wrong = [finding for finding in findings if finding.level != "ok"]
    ordered = sorted(wrong, key=_rank)
    steps: dict[str, list[Finding]] = {}
    for finding in ordered:
        steps.setdefault(_what(finding), []).append(finding)
    return [
        Step(
            do=do,
            why="; ".join(dict.fromkeys(f"{f.check}: {f.message}" for f in mended)),
            checks=tuple(f.check for f in mended),
            blocks=mended[0].blocks,
        )
        for do, mended in steps.items()
    ]


def _rank(finding: Finding) -> int:
    if finding.blocks:
        return 0
    return 1 if finding.level == "fail" else 2


def _what(finding: Finding) -> str:
    return finding.advice or f"mend what the check of {finding.check} says"
