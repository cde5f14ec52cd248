"""What is left of the host for code that escaped into a QEMU: its box."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.adversary.inside import in_machine, two_running
from tests.system.machines import Driver

MAKES = """
import json, os, sys
made = []
for folder in json.load(sys.stdin):
    try:
        os.close(os.open(os.path.join(folder, "made"), os.O_WRONLY | os.O_CREAT))
        made.append(folder)
    except OSError:
        pass
print(json.dumps(made))
"""
NEW_NAMESPACE = """
import ctypes, json
print(json.dumps(ctypes.CDLL(None).unshare(0x10000000)))
"""
EXPECTED = [
    r"/dev/(null|zero|urandom)",
    r"/etc/ld\.so\.cache",
    r"/user-namespaces",
    r"/run/vmd-qemu/[0-9a-f]+\.so",
    r".*/lib/qemu/domain-\d+-[^/]+/master-key\.aes",
    r".*/boot/[^/]+/(kernel|initramfs)",
    r".*/images/disks/[^/]+\.ext4",
    r".*/supervisors/[^/]+\.img",
]


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.strip() for name, _, rest in (x.partition(":") for x in lines)}


def hard_limit(pid: int, name: str) -> str:
    text = Path(f"/proc/{pid}/limits").read_text()
    found = re.search(rf"^{name} +(\w+) +(\w+)", text, re.MULTILINE)
    assert found is not None
    return found[2]


def everything(pid: int, *but: str) -> list[str]:
    """All files that there are for it, its folders listed or not, as root sees them there."""
    root, found = f"/proc/{pid}/root", []
    for folder, folders, files in os.walk(f"{root}/"):
        inside = folder.removeprefix(root)
        folders[:] = [f for f in folders if os.path.join(inside, f) not in but]
        found += [os.path.join(inside, f) for f in files]
    return found


def test_a_qemu_sees_its_own_files_and_three_devices(driver: Driver) -> None:
    first, second = two_running(driver)
    pid, plan = driver.machine_pid(first), driver.plan(first)
    assert {"box", "seccomp", "limits"} <= set(driver.plan(second)["wall"])
    own = [re.escape(d["path"]) for d in plan["disks"]]
    own += [re.escape(path) for d in plan["disks"] for path in d["backing"]]
    own += [".*/templates/[^/]+/memory", ".*/read-only-memory-[0-9a-f]+.so"]
    seen = everything(pid, "/usr", str(Path(plan["disks"][0]["path"]).parent))
    assert len(seen) > 8
    allowed = re.compile("|".join(EXPECTED + own))
    assert [path for path in seen if not allowed.fullmatch(path)] == []
    assert second not in "".join(seen)


def test_a_qemu_can_make_no_file_and_no_user_namespace(driver: Driver) -> None:
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    pid = driver.machine_pid(sandbox)
    state = driver.host.state
    folders = ["/", "/dev", "/etc", "/tmp", "/run", "/usr", str(state)]
    folders += [str(state / n) for n in ("layers", "sandboxes", "libvirt", "images")]
    folders.append(str(driver.directory(sandbox)))
    assert in_machine(pid, MAKES, folders) == []
    assert in_machine(pid, NEW_NAMESPACE) == -1


def test_a_qemu_has_no_rights_and_is_limited(driver: Driver) -> None:
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    pid = driver.machine_pid(sandbox)
    found = status(pid)
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(found[capabilities], 16) == 0
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    filtered = arguments[arguments.index(b"-sandbox") + 1].split(b",")
    assert set(filtered) >= {
        *(b"on", b"obsolete=deny", b"elevateprivileges=deny", b"spawn=deny"),
        b"resourcecontrol=deny",
    }
    assert hard_limit(pid, "Max core file size") == "0"
    assert hard_limit(pid, "Max open files") == "1024"
    for limited in ("Max file size", "Max address space"):
        assert int(hard_limit(pid, limited)) < 2**35
    ours = {
        name: Path(f"/proc/{pid}/ns/{name}").readlink()
        == Path(f"/proc/self/ns/{name}").readlink()
        for name in ("user", "mnt", "ipc", "uts", "cgroup")
    }
    assert not any(ours.values()), ours


def test_machines_are_ended_before_the_driver_and_outlive_it(driver: Driver) -> None:
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    pid = driver.machine_pid(sandbox)
    assert driver.process is not None

    def score(process: int) -> int:
        return int(Path(f"/proc/{process}/oom_score_adj").read_text())

    assert score(pid) > score(driver.process.pid)
    driver.restart()
    assert Path(f"/proc/{pid}/root").exists()
    assert driver.machine_pid(sandbox) == pid
    driver.wait(sandbox, "Running")


def test_commands_show_the_parts_and_change_nothing(driver: Driver) -> None:
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    program = driver.host.state / "libvirt" / "boxed-qemu"
    before = program.stat()
    checks = {f["check"]: f["level"] for f in driver.cli("doctor")["findings"]}
    listed = next(row for row in driver.cli("ls") if row["id"] == sandbox)
    for part in ("box", "seccomp", "limits"):
        assert checks[f"wall: {part}"] == "ok"
        assert part in listed["wall"]
    assert listed["wall"] == driver.inspect(sandbox)["record"]["plan"]["wall"]
    assert program.stat() == before
