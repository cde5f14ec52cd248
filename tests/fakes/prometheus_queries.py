"""What a dashboard and alert rules ask of Prometheus, read from their files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmdriver.telemetry.catalogue import EVERY

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "dashboards" / "vmdriver.json"
ALERTS = ROOT / "dashboards" / "alerts.yml"
ALERTS_TEST = ROOT / "dashboards" / "alerts-test.yml"
OF_A_TARGET = frozenset({"instance", "job"})
"""Labels that Prometheus gives whatever it scrapes."""
_ALERT = re.compile(
    r"- alert: (?P<name>\w+)\n\s+expr: (?:>-\n)?(?P<expression>.*?)\n\s+(?:for: \w+\n\s+)?labels:.*?\n"
    r"\s+annotations:\n\s+summary: (?P<summary>\"[^\n]*\")\n\s+action: (?P<action>\"[^\n]*\")\n\s+docs: (?P<docs>\S+)\n",
    re.DOTALL,
)
_SERIES = re.compile(
    r"\b(up|(?:vmdriver|process|python|target)_[a-z0-9_]+)\b(?:\{([^}]*)\})?"
)
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


@dataclass(frozen=True)
class Query:
    """`where`: the panel's title, or the alert's name. `legend`: names of labels in it."""

    where: str
    expression: str
    legend: tuple[str, ...] = ()

    def asked(self, **variables: str) -> str:
        """With these values for the dashboard's variables."""
        text = self.expression
        for name, value in variables.items():
            text = text.replace(f"${name}", value)
        assert "$" not in text, f"{self.where}: {text}"
        return text

    def series(self) -> Iterator[tuple[str, set[str]]]:
        """Names, each with the labels that are asked for."""
        for name, matchers in _SERIES.findall(self.expression):
            yield name, set(_MATCHER.findall(matchers))

    def labels(self) -> set[str]:
        """What it groups by, and what its legend shows."""
        groups = _GROUPED.findall(self.expression)
        words = (word.strip() for group in groups for word in group.split(","))
        return {*filter(None, words), *self.legend}


@dataclass(frozen=True)
class Alert:
    """One rule."""

    query: Query
    summary: str
    action: str
    docs: str


def panels() -> list[Query]:
    """Every query of the dashboard's."""
    return [
        Query(
            panel["title"],
            target["expr"],
            tuple(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])),
        )
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel.get("targets", ())
    ]


def alerts() -> list[Alert]:
    """Every rule."""
    return [
        Alert(
            Query(found["name"], found["expression"]),
            json.loads(found["summary"]),
            json.loads(found["action"]),
            found["docs"],
        )
        for found in _ALERT.finditer(ALERTS.read_text())
    ]


def known() -> dict[str, set[str]]:
    """Every series of ours as Prometheus names it, with its labels."""
    found: dict[str, set[str]] = {}
    for shown in EVERY:
        labels = {*shown.labels, *OF_A_TARGET}
        if shown.kind == "histogram":
            for end in ("sum", "count"):
                found[f"{shown.prometheus}_{end}"] = labels
            found[f"{shown.prometheus}_bucket"] = labels | {"le"}
        else:
            found[shown.prometheus] = labels
    return found
