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

from vmdriver.host.confined import netns

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


NAMING = """
import sys
from pathlib import Path
from vmdriver.host.confined import netns
from vmdriver.storage import way_in
from vmdriver.storage.layout import Layout

way_in.PLACE = Path(sys.argv[1])
way_in._mount(way_in._folders(Layout(Path(sys.argv[2])))[:1])
named = sys.argv[3]
print(netns.is_there(f"{named}-before"), flush=True)
sys.stdin.readline()
import threading
maker = threading.Thread(target=lambda: netns.give_name(netns.make(), named))
maker.start()
maker.join()
print(netns.is_there(named), flush=True)
sys.stdin.readline()
netns.forget(named)
print(netns.is_there(f"{named}-before"), flush=True)
"""


def test_names_of_network_namespaces_are_everybodys_all_the_same(home: Path) -> None:
    """What a driver with mounts of its own names, its other commands and `ip netns` find; what they
    remove is gone there.
    """
    name = f"vmdway{os.getpid()}"
    subprocess.run(["ip", "netns", "add", f"{name}-before"], check=True)
    words = [str(home.parent / "place"), str(home / "state"), name]
    child = subprocess.Popen(
        [sys.executable, "-c", NAMING, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "True\n"
        print(file=child.stdin, flush=True)
        assert child.stdout.readline() == "True\n"
        assert netns.is_there(name)
        subprocess.run(["ip", "netns", "exec", name, "true"], check=True)
        subprocess.run(["ip", "netns", "del", f"{name}-before"], check=True)
        print(file=child.stdin, flush=True)
        assert child.stdout.readline() == "False\n"
        assert not netns.path(name).exists()
        assert child.wait(10) == 0
        assert str(home.parent / "place") not in Path("/proc/self/mounts").read_text()
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
        for left in (name, f"{name}-before"):
            netns.forget(left)


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
