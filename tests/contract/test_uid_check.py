"""A host on which machines cannot have users of their own is told so at the start, and what is to be done."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmdriver.errors import ConfigError
from vmdriver.model.machine_uids import MachineUids
from vmdriver.storage.layers.uid_check import check_uids
from vmdriver.storage.layout import Layout

UIDS = MachineUids(1_900_000_000, 1_900_000_099)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state")
    layout.make()
    return layout


@pytest.fixture
def without_lists(tmp_path: Path) -> Iterator[Layout]:
    """On a file system that knows no access lists."""
    place = tmp_path / "ramfs"
    place.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", str(place)], check=True)
    layout = Layout(place / "state")
    layout.make()
    yield layout
    subprocess.run(["umount", str(place)], check=True)


def test_an_ordinary_host_will_do_and_nothing_is_left_there(layout: Layout) -> None:
    (layout.layers / ".uids").write_text("left by a killed driver")
    for _ in range(2):
        check_uids(layout, UIDS)
    assert list(layout.layers.iterdir()) == []


def test_numbers_of_somebody_on_this_host_are_refused(layout: Layout) -> None:
    with pytest.raises(ConfigError, match="user root is 0") as refused:
        check_uids(layout, MachineUids(0, 99))
    assert "machine_uids" in refused.value.resolution


def test_a_host_whose_new_user_got_numbers_of_sandboxes_keeps_its_driver(
    layout: Layout,
) -> None:
    (layout.layers / "7").mkdir()
    taken = check_uids(layout, MachineUids(0, 99))
    assert taken is not None
    assert "user root is 0" in taken.message
    assert "such as" in taken.resolution
    assert check_uids(layout, UIDS) is None
    (layout.layers / "7").rmdir()
    with pytest.raises(ConfigError, match="user root is 0"):
        check_uids(layout, MachineUids(0, 99))


def test_a_file_system_without_access_lists_is_refused(without_lists: Layout) -> None:
    with pytest.raises(ConfigError, match="has no access lists") as refused:
        check_uids(without_lists, UIDS)
    assert "state_dir" in refused.value.resolution
    assert list(without_lists.layers.iterdir()) == []


def test_numbers_outside_of_a_containers_map_are_refused(layout: Layout) -> None:
    """In a user namespace in which only root is mapped, as an unprivileged container has it."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from vmdriver.errors import ConfigError\n"
        "from vmdriver.storage.layout import Layout\n"
        "from tests.contract.test_uid_check import UIDS, check_uids\n"
        "try:\n"
        "    check_uids(Layout(Path(sys.argv[1])), UIDS)\n"
        "except ConfigError as error:\n"
        "    print(error.text())\n"
    )
    python = [sys.executable, "-c", program, str(layout.root)]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", *python],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "files cannot belong to them" in done.stdout
    assert "uid_map" in done.stdout
    assert list(layout.layers.iterdir()) == []


def test_a_full_disk_keeps_no_driver_from_its_machines(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "setxattr", full)
    check_uids(layout, UIDS)
