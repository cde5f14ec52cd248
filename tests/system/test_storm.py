"""A short storm; scripts/storm has more of it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.fakes.serve import ROOT

SEED = 9


@pytest.mark.timeout(
    900
)  # a driver that hangs is told of by the storm, with its history
def test_a_short_storm_breaks_no_promise() -> None:
    command = [sys.executable, "-m", "tests.storm"]
    command += ["--seconds", "45", "--seed", str(SEED)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    print(done.stdout[-30000:], done.stderr[-4000:])
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["ok"]
    assert done.returncode == 0
    assert figures["kills"] > 5, "a calm is no storm"
