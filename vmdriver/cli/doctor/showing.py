"""What `vmdriver doctor` has found, shown. Needs none of the driver's parts."""

from __future__ import annotations

from typing import Any

from vmdriver.cli.doctor.finding import Finding
from vmdriver.cli.doctor.next_steps import Outcome, next_steps, outcome
from vmdriver.cli.terminal import (
    BAD,
    GOOD,
    HEAD,
    Styled,
    indented,
    leveled,
    print_json,
    say,
)
from vmdriver.host.packages import way_to_module


def not_loaded(error: ImportError) -> list[Finding]:
    """Where nothing can be examined: a part of the driver itself is missing."""
    text = f"it cannot be loaded: {error}"
    return [Finding("driver", "fail", text, way_to_module(error))]


def shown(findings: list[Finding], *, as_json: bool) -> int:
    """To whoever asked; what the command ends with."""
    if as_json:
        print_json(as_document(findings))
    else:
        _print(findings)
    return outcome(findings).status


def as_document(findings: list[Finding]) -> dict[str, Any]:
    """For machines."""
    return {
        "ok": not any(finding.level == "fail" for finding in findings),
        "outcome": outcome(findings).value,
        "findings": [vars(finding) for finding in findings],
        "next": [vars(step) for step in next_steps(findings)],
    }


def _print(findings: list[Finding]) -> None:
    for finding in findings:
        level = leveled(finding.level)
        say(level, f"  {finding.check}: {indented(finding.message)}")
        if finding.advice:
            say(f"      -> {indented(finding.advice)}")
    came_to = outcome(findings)
    style = GOOD if came_to is Outcome.FINE else HEAD
    say("\n", Styled(f"{came_to.text}{'.' if came_to is Outcome.FINE else ':'}", style))
    for number, step in enumerate(next_steps(findings), 1):
        say(f"{number:3}. ", Styled(step.do, BAD if step.blocks else HEAD))
        say(f"     {'needed' if step.blocks else 'for'}: {indented(step.why)}")
