"""What doctor says of snapshots that are to be written while machines go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmdriver.cli.doctor.hypervisor_findings import live_snapshots


@pytest.mark.parametrize(
    ("switch", "level", "said"),
    [
        ("1\n", "ok", "may use userfaultfd"),
        ("0\n", "warn", "may not use userfaultfd"),
        (None, "warn", "no userfaultfd"),
    ],
)
def test_whether_a_qemu_without_rights_may_do_it_is_said(
    tmp_path: Path, switch: str | None, level: str, said: str
) -> None:
    file = tmp_path / "unprivileged_userfaultfd"
    if switch is not None:
        file.write_text(switch)
    found = live_snapshots(file)
    assert found.level == level
    assert said in found.message
    assert (found.advice == "") == (level == "ok")
    assert not found.blocks
