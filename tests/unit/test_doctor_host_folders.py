"""What doctor says of folders of the host that sandboxes may have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vmdriver.cli.doctor.finding import Finding
from vmdriver.cli.doctor.folder_findings import folder_findings
from vmdriver.config import config_of
from vmdriver.config.views import settings_from
from vmdriver.errors import Refused
from vmdriver.folders.host_folders import VirtiofsFolders
from vmdriver.folders.reader import Program
from vmdriver.lifecycle.launch.host_mounts import HostMounts
from vmdriver.model.plan import MachineUser

ACCOUNTS = {"games": (5, 60), "toor": (0, 0)}


def program() -> Program:
    return Program("/usr/libexec/virtiofsd")


def missing() -> Program:
    raise Refused("virtiofsd is missing", resolution="apt-get install virtiofsd")


class Folders(VirtiofsFolders):
    """Its program works where it is found."""

    async def try_one(self) -> str:
        return self._find().path


async def said(
    tmp_path: Path, *folders: dict[str, Any], find: Any = program
) -> dict[str, Finding]:
    """By what they are about."""
    told = {"state_dir": str(tmp_path / "state"), "host_mounts": list(folders)}
    user = MachineUser(uid=300000, gid=300000)
    there = Folders(tmp_path / "sandboxes", "test", user, find)
    settings = settings_from(config_of(told))
    mounts = HostMounts(host=there, settings=settings, account=ACCOUNTS.get)
    return {found.check: found async for found in folder_findings(there, mounts)}


async def test_without_any_nothing_is_tried(tmp_path: Path) -> None:
    (found,) = (await said(tmp_path, find=missing)).values()
    assert (found.level, found.blocks) == ("ok", False)


async def test_each_is_told_with_what_may_be_done_and_as_whom(tmp_path: Path) -> None:
    one, other = (tmp_path / name for name in ("models", "results"))
    one.mkdir()
    other.mkdir()
    writes = {"path": str(other), "read_only": False, "user": "games"}
    found = await said(tmp_path, {"path": str(one)}, writes)
    assert {finding.level for finding in found.values()} == {"ok"}
    assert "virtiofsd answers" in found["host folders"].message
    read, written = (found[f"host folder {path}"].message for path in (one, other))
    assert read == "may be read as each machine's own user"
    assert written == "may be read and written as games"


async def test_where_its_program_is_missing_its_folders_are_looked_at_all_the_same(
    tmp_path: Path,
) -> None:
    found = await said(tmp_path, {"path": str(tmp_path / "gone")}, find=missing)
    assert [finding.level for finding in found.values()] == ["fail", "fail"]
    assert found["host folders"].advice == "apt-get install virtiofsd"
    assert not any(finding.blocks for finding in found.values()), "others have machines"


@pytest.mark.parametrize(
    ("user", "why"), [("nobody-yet", "is no user of this host"), ("toor", "is root")]
)
async def test_a_user_as_whom_no_sandbox_gets_it_is_told(
    tmp_path: Path, user: str, why: str
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    found = await said(tmp_path, {"path": str(folder), "user": user})
    finding = found[f"host folder {folder}"]
    assert (finding.level, finding.blocks) == ("fail", False)
    assert finding.message == f"host_mounts: {user!r} {why}"
    assert finding.advice
