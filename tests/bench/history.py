"""What was measured when, and where: a line of JSON for each part of each run."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "bench"
"""Not in git."""
HISTORY = FOLDER / "history.jsonl"
MEASURED = ROOT / "docs" / "measured.json"
"""In git: for each part what the documents say."""


@dataclass(frozen=True)
class Run:
    """One part of one run. Without figures it has failed."""

    run: str
    """Of all parts that were measured together: when they began, in UTC."""
    part: str
    commit: str
    """`+` at its end: with changes that were not committed."""
    machine: dict[str, Any]
    rounds: int
    took_s: float
    figures: dict[str, Any] = field(default_factory=dict)
    failed: str = ""


def commit() -> str:
    """Of this checkout; empty where it is none."""
    try:
        found = _said("git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD")
        changed = _said("git", "-C", str(ROOT), "status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found + ("+" if changed else "")


def machine() -> dict[str, Any]:
    """What figures depend on: nothing that names this machine."""
    cpus = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.+)$", cpus, re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model[1] if model else platform.machine(),
        "memory_gib": round(memory / 2**30),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "accelerator": "tcg",
        "load": round(os.getloadavg()[0], 1),
    }


def _said(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def note(run: Run, path: Path = HISTORY) -> None:
    """Add it at the end; durable."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(run)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def noted(path: Path = HISTORY) -> list[Run]:
    """All of them, oldest first. A line that is cut off is none."""
    return list(_lines(path)) if path.exists() else []


def _lines(path: Path) -> Iterator[Run]:
    for line in path.read_text().splitlines():
        try:
            yield Run(**json.loads(line))
        except (ValueError, TypeError):
            continue


def measured(path: Path = MEASURED) -> dict[str, Run]:
    """Part -> what the documents say of it."""
    if not path.exists():
        return {}
    return {part: Run(**run) for part, run in json.loads(path.read_text()).items()}


def keep(runs: Sequence[Run], path: Path = MEASURED) -> None:
    """Have the documents say these, each of its part; of other parts what they said before."""
    found = measured(path) | {run.part: run for run in runs if run.figures}
    text = {part: asdict(run) for part, run in sorted(found.items())}
    path.write_text(json.dumps(_rounded(text), indent=1, sort_keys=True) + "\n")


def _rounded(value: Any) -> Any:
    """With six digits: the rest is noise that makes the file long."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
