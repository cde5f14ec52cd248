"""The systemd unit that is shipped: machines outlive it, and systemd has nothing to say against it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "packaging" / "vmdriver.service"


def settings(text: str) -> dict[str, str]:
    lines = (line for line in text.splitlines() if "=" in line and line[0] != "#")
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def test_nothing_that_systemd_does_to_the_driver_ends_machines() -> None:
    found = settings(UNIT.read_text())
    assert found["KillMode"] == "process"
    assert found["OOMPolicy"] == "continue"
    assert found["Type"] == "notify"
    assert int(found["WatchdogSec"]) >= 30, "a loaded host is slow"
    assert found["ExecReload"] == '/bin/sh -c "kill -HUP $MAINPID"', "no procps needed"
    assert found["NoNewPrivileges"] == "yes"
    assert found["TasksMax"] == "infinity"
    assert int(found["LimitNOFILE"]) >= 65536
    apart = ("Private", "Protect", "ReadOnly", "Inaccessible", "Bind", "Temporary")
    assert not [key for key in found if key.startswith((*apart, "ProcSubset", "Mount"))]
    assert "Delegate" not in found, "with systemd before 254 it could not start again"


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="asks systemd-analyze"
)
@pytest.mark.parametrize("more", ["", "Delegate=yes"])
def test_systemd_understands_all_of_it(tmp_path: Path, more: str) -> None:
    text = UNIT.read_text()
    program = settings(text)["ExecStart"].split()[0]
    copy = tmp_path / UNIT.name
    text = text.replace(program, "/bin/true")
    copy.write_text(text.replace("\n[Install]", f"\n{more}\n[Install]"))
    command = ["systemd-analyze", "verify", "--man=no", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, said) == (0, [])
