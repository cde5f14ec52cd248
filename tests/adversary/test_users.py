"""A machine's user: whatever runs as it has what is that machine's, and no more."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.adversary.inside import everything_below, in_machine, openable, two_running
from tests.system.machines import Driver

SIGNAL = """
import json, os, sys
found = []
for pid in json.load(sys.stdin):
    try:
        os.kill(pid, 0)
    except OSError:
        continue
    found.append(pid)
print(json.dumps(found))
"""


def user_of(pid: int) -> tuple[int, int]:
    status = Path(f"/proc/{pid}/status").read_text()
    (uid,) = re.findall(r"^Uid:\s+(\d+)\t\1\t\1\t\1$", status, re.M)
    (gid,) = re.findall(r"^Gid:\s+(\d+)\t\1\t\1\t\1$", status, re.M)
    return int(uid), int(gid)


def files_of(driver: Driver, sandbox: str) -> list[Path]:
    uid, _ = user_of(driver.machine_pid(sandbox))
    layers = driver.host.state / "layers" / str(uid)
    return everything_below(driver.directory(sandbox), layers)


def as_user(uid: int, gid: int, path: Path) -> str:
    """What code with that user, and nothing else of the machine's, can do with a file."""
    test = 'test -r "$1" && printf r; test -w "$1" && printf w; true'
    ids = [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    command = ["setpriv", *ids, "sh", "-c", test, "sh", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_two_machines_have_two_users_and_neither_opens_what_is_the_others(
    driver: Driver,
) -> None:
    first, second = two_running(driver)
    users = {s: user_of(driver.machine_pid(s)) for s in (first, second)}
    assert users[first][0] != users[second][0]
    for sandbox, other in ((first, second), (second, first)):
        mine, theirs = files_of(driver, sandbox), files_of(driver, other)
        assert {p.suffix for p in theirs} >= {".qcow2", ".img", ".log"}
        for path in theirs:
            assert as_user(*users[sandbox], path) == "", path
        assert openable(driver.machine_pid(sandbox), theirs) == {}
        rights = {p.name: as_user(*users[sandbox], p) for p in mine if p.is_file()}
        can = {name: found for name, found in rights.items() if found}
        (layer,) = [name for name in can if name.endswith(".qcow2")]
        assert can == {
            layer: "rw",
            "status.img": "rw",
            "console.log": "rw",
            "seed.img": "r",
        }
    nobody = [p for s in (first, second) for p in files_of(driver, s)]
    assert not [path for path in nobody if as_user(65534, 65534, path)]


def test_shared_disks_are_read_by_machines_and_by_nobody_else(driver: Driver) -> None:
    driver.wait_for_template()
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    user = user_of(driver.machine_pid(sandbox))
    state = driver.host.state
    shared = [
        *(state / "images" / "disks").glob("*.ext4"),
        *(state / "layers").glob("template-*.qcow2"),
        *(state / "templates").glob("*/memory"),
        *(state / "supervisors").glob("*.img"),
    ]
    assert {path.suffix for path in shared} == {".ext4", ".qcow2", "", ".img"}
    for path in shared:
        assert as_user(*user, path) == "r", path
        assert as_user(65534, 65534, path) == "", path


def test_no_process_of_another_user_can_be_signalled_or_looked_into(
    driver: Driver,
) -> None:
    first, second = two_running(driver)
    pid, other = driver.machine_pid(first), driver.machine_pid(second)
    assert in_machine(pid, SIGNAL, [1, other, driver.process.pid]) == []
    secrets = [Path(f"/proc/{other}/{name}") for name in ("mem", "environ", "maps")]
    assert openable(pid, secrets) == {}


def test_root_finds_no_link_of_a_machines_where_libvirt_works(driver: Driver) -> None:
    """Its sockets and keys lie in folders that the machine cannot change."""
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    uid, gid = user_of(driver.machine_pid(sandbox))
    libvirt = driver.host.state / "libvirt"
    folders = [path for path in everything_below(libvirt) if path.is_dir()]
    assert any(path.name.startswith("domain-") for path in folders)
    for folder in folders:
        assert folder.lstat().st_uid != uid, folder
        assert "w" not in as_user(uid, gid, folder), folder


def test_a_number_is_not_used_again_by_the_next_machine(driver: Driver) -> None:
    first = driver.create()
    driver.wait(first, "Running")
    uid, _ = user_of(driver.machine_pid(first))
    assert driver.delete(first)
    state = str(driver.host.state)
    left = subprocess.run(
        ["find", state, "-uid", str(uid)], capture_output=True, text=True, check=False
    )
    assert left.stdout == ""
    second = driver.create()
    driver.wait(second, "Running")
    assert user_of(driver.machine_pid(second))[0] != uid
