"""scripts/interop without the programs that it needs, and what it says of what it did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.serve import ROOT
from tests.interop.report import Report

SCRIPT = str(ROOT / "scripts" / "interop")


def interop(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, timeout=60
    )


def test_without_the_programs_it_says_which_are_missing_and_ends_with_2(
    tmp_path: Path,
) -> None:
    no_program = tmp_path / "cli"
    no_program.write_text("")
    done = interop("--gateway", sys.executable, "--cli", str(no_program))
    assert done.returncode == 2
    assert f"missing: --cli: {no_program} is no program" in done.stderr
    assert "missing: --supervisor: no program was named" in done.stderr
    assert "--gateway" not in done.stderr
    assert done.stdout == "", "it began with nothing"


def nothing() -> None:
    pass


def fails() -> None:
    raise RuntimeError("no")


def test_the_line_holds_the_seconds_of_each_step_of_each_way(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = Report()
    assert not report.ok, "nothing was done"
    for way in ("operated", "launched"):
        assert report.run(way, [("up", nothing), ("create", nothing)])
    found = json.loads(report.line())
    assert (found["ok"], found["leftovers"]) == (True, 0)
    assert list(found["steps"]["launched"]) == ["up", "create"]
    assert all(seconds >= 0 for seconds in found["steps"]["operated"].values())
    report.leftovers.append("operated: tap x")
    assert not report.ok
    assert json.loads(report.line())["leftovers"] == 1
    assert "up" in capsys.readouterr().out, "one sees how far it is"


def test_a_step_that_fails_ends_its_way_and_the_others_go_on() -> None:
    report = Report()
    steps = [("up", nothing), ("create", fails), ("exec", nothing)]
    assert not report.run("operated", steps)
    assert report.run("launched", [("up", nothing)])
    found = json.loads(report.line())
    assert found["ok"] is False
    assert found["steps"]["operated"]["up"] is not None
    assert found["steps"]["operated"]["create"] is None
    assert found["steps"]["operated"]["exec"] is None
    assert found["failed"] == {"operated": "create: RuntimeError: no"}
    assert "not done" in report.table()
