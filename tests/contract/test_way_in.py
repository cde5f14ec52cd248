"""QEMU's way to our files, on real folders and mounts, asked as another user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NOBODY = 65534
CHILD = """
import asyncio, json, sys
from pathlib import Path
from vmdriver.errors import ConfigError
from vmdriver.host.users import access
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.storage import way_in
from vmdriver.storage.layout import Layout

async def main(state, place, embedded, uid):
    way_in.PLACE = Path(place)
    layout = Layout(Path(state))
    layout.make()
    try:
        passage = await way_in.open_way_in(layout, Ownership(uid, uid), embedded=embedded)
    except ConfigError as error:
        return {"error": error.text()}
    ours = [str(layout.layers / "file"), str(layout.boot / "current" / "kernel")]
    ours[1] = str(Path(ours[1]).resolve())
    theirs = [passage.theirs(path) for path in ours]
    return {
        "walks": passage.ways == (),
        "back": [passage.ours(path) for path in theirs] == ours,
        "denied_ours": await access.denied(ours, "read", uid, uid),
        "denied_theirs": await access.denied(theirs, "read", uid, uid),
    }

print(json.dumps(asyncio.run(main(*json.loads(sys.argv[1])))))
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A home folder that everybody may pass so far, in one that everybody may."""
    if os.geteuid() != 0:
        pytest.fail("needs root, as the driver does")
    base = Path(tempfile.mkdtemp(prefix="vmdriver-way-"))
    (base / "home" / "state" / "layers").mkdir(parents=True)
    for path in (base, base / "home"):
        path.chmod(0o755)
    (base / "home" / "state" / "layers" / "file").touch()
    kernel = base / "home" / "checkout" / "boot" / "current" / "kernel"
    kernel.parent.mkdir(parents=True)
    kernel.touch()
    (base / "home" / "state" / "boot").symlink_to(kernel.parents[1])
    yield base / "home"
    shutil.rmtree(base)


def opened(home: Path, *, embedded: bool = True) -> dict[str, Any]:
    """What a driver's start on home/state comes to."""
    what = (str(home / "state"), str(home.parent / "place"), embedded, NOBODY)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(what)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


WALKS = {"walks": True, "back": True, "denied_ours": [], "denied_theirs": []}


def test_a_state_directory_that_a_gateway_has_closed_is_opened(home: Path) -> None:
    state = home / "state"
    state.chmod(0o700)
    assert opened(home) == WALKS
    assert state.stat().st_mode & 0o777 == 0o711, "passed, not listed"


def test_a_closed_folder_above_stays_closed_and_qemu_comes_in_through_a_mount(
    home: Path,
) -> None:
    home.chmod(0o700)
    (home / "state").chmod(0o700)
    for _start in range(2):
        found = opened(home)
        assert len(found.pop("denied_ours")) == 2
        assert found == {"walks": False, "back": True, "denied_theirs": []}
    assert home.stat().st_mode & 0o777 == 0o700
    assert str(home.parent / "place") not in Path("/proc/self/mounts").read_text()
    assert list((home.parent / "place" / "state").iterdir()) == [], "ours alone"


def test_boot_files_elsewhere_are_reached_too(home: Path) -> None:
    (home / "checkout").chmod(0o700)
    found = opened(home)
    assert len(found.pop("denied_ours")) == 1
    assert found == {"walks": False, "back": True, "denied_theirs": []}


def test_a_link_to_the_state_directory_is_followed(home: Path) -> None:
    (home / "state").rename(home.parent / "elsewhere")
    (home / "state").symlink_to(home.parent / "elsewhere")
    home.chmod(0o700)
    found = opened(home)
    assert (found["walks"], found["denied_theirs"]) == (False, [])


def test_while_a_machine_runs_that_came_in_through_the_mount_the_next_driver_has_it_too(
    home: Path,
) -> None:
    state = home / "state"
    home.chmod(0o700)
    assert not opened(home)["walks"]
    home.chmod(0o755)
    running = state / "libvirt" / "run" / "qemu" / "machine.xml"
    running.parent.mkdir(parents=True)
    sockets = home.parent / "place" / "state" / "libvirt" / "lib" / "qemu"
    running.write_text(f"<domstatus><monitor path='{sockets}/monitor.sock'/>")
    assert not opened(home)["walks"], "libvirt knows its sockets by that name"
    running.write_text("<domstatus><monitor path='/elsewhere/monitor.sock'/>")
    assert opened(home) == WALKS


@pytest.mark.parametrize("why", ["a daemon's QEMU", "a folder of somebody else's"])
def test_where_there_is_no_way_one_line_names_the_folder(home: Path, why: str) -> None:
    state = home / "state"
    closed = home
    if why == "a daemon's QEMU":
        home.chmod(0o700)
    else:
        closed = state
        state.chmod(0o700)
        os.chown(state, 1234, 1234)
    found = opened(home, embedded=why != "a daemon's QEMU")
    assert found["error"].startswith("state_dir: QEMU's user (65534:65534) cannot")
    assert f"because {closed} is closed to it: chmod o+x {closed}" in found["error"]
    assert closed.stat().st_mode & 0o777 == 0o700, "not ours to open"


@pytest.mark.parametrize("what", ["a file", "a link", "somebody else's folder"])
def test_what_somebody_has_put_at_the_mounts_place_is_named_and_left_alone(
    home: Path, what: str
) -> None:
    home.chmod(0o700)
    place, target = home.parent / "place", home.parent / "target"
    target.mkdir(mode=0o750)
    target.chmod(0o750)
    if what == "a file":
        place.touch(0o600)
    elif what == "a link":
        place.symlink_to(target)
    else:
        place.mkdir(mode=0o750)
        os.chown(place, 1234, 1234)
    before = place.lstat().st_mode
    found = opened(home)
    assert found["error"].startswith(f"{place} is in the way")
    assert found["error"].endswith("remove it")
    assert place.lstat().st_mode == before
    assert target.stat().st_mode & 0o777 == 0o750
