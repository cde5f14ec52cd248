"""Folders of the host on real machines: what a guest's root can do there, and what it cannot."""

from __future__ import annotations

import os
import pwd
import signal
from pathlib import Path

import pytest

from tests.fakes.waiting import until
from tests.system.machines import Driver
from tests.system.workloads import running
from vmdriver.errors import Refused
from vmdriver.folders.reader import VARIABLE, find_program

WRITER = "daemon"
MODELS, OUT = "/data/models", "/data/out"


def readers() -> dict[int, str]:
    """Processes that read folders or hold their boxes, and what each is called."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "environ").read_bytes().split(b"\0")
            program = (process / "comm").read_text().strip()
        except OSError:
            continue
        if any(word.startswith(f"{VARIABLE}=".encode()) for word in words):
            found[int(process.name)] = program
    return found


def test_a_guests_root_has_its_folders_and_nothing_else_of_the_host(
    booting: Driver, tmp_path: Path
) -> None:
    try:
        find_program()
    except Refused as error:
        pytest.skip(error.message)
    home = Path(os.path.realpath(tmp_path))
    models, out = home / "models", home / "out"
    (models / "llama").mkdir(parents=True)
    (models / "llama" / "weights").write_text("weights\n")
    (models / "llama" / "closed").write_text("secret\n")
    (models / "llama" / "closed").chmod(0o600)
    (models / "away").symlink_to("/etc")
    out.mkdir()
    writer = pwd.getpwnam(WRITER)
    os.chown(out, writer.pw_uid, writer.pw_gid)
    driver, shell = booting, booting.gateway.shell
    driver.options += ["--host-mounts", f"{models},{out}={WRITER}"]
    driver.restart(signal.SIGTERM)
    asked = [
        {"path": str(models / "llama"), "mount": MODELS},
        {"path": str(out), "mount": OUT, "read_only": False},
    ]
    sandbox = running(driver, {"host_mounts": asked})

    def says(command: str) -> str:
        return str(shell(sandbox, f"({command}) 2>&1 || true"))

    mounts = says("cat /proc/mounts")
    for place, how in ((MODELS, "ro"), (OUT, "rw")):
        (line,) = (x for x in mounts.splitlines() if f" {place} virtiofs " in x)
        assert {how, "nosuid", "nodev"} <= set(line.split()[3].split(","))
    assert says(f"cat {MODELS}/weights") == "weights\n"
    assert says("id -u") == "0\n"
    assert "denied" in says(f"cat {MODELS}/closed")
    assert "Read-only" in says(f"mount -o remount,rw {MODELS}; touch {MODELS}/x")
    # What a guest writes is one user's of the host, whoever wrote it in there.
    says(f"echo root > {OUT}/one; mkdir {OUT}/d; ln -s /etc/passwd {OUT}/link")
    says(f"cat /bin/ls > {OUT}/program; chmod 6755 {OUT}/program")
    for name in ("one", "d", "link", "program"):
        found = (out / name).lstat()
        assert (found.st_uid, found.st_gid) == (writer.pw_uid, writer.pw_gid), name
        assert found.st_mode & 0o6000 == 0, name
    assert "Invalid" in says(f"chown 0:0 {OUT}/one")
    assert says(f"stat -c '%U %a' {OUT}/one {OUT}/d") == "sandbox 644\nsandbox 755\n"
    (out / "from-host").write_text("host\n")
    assert says(f"cat {OUT}/from-host") == "host\n"
    # The machine and its readers outlive the driver, and end together.
    before = readers()
    assert sorted(before.values()) == sorted([*("bwrap",) * 4, *("virtiofsd",) * 2])
    driver.restart()
    assert says(f"cat {MODELS}/weights") == "weights\n"
    assert readers() == before
    error = driver.operate("suspend", sandbox, fails=True)[-1]["error"]
    assert "folder of the host" in error
    # One that ends is told; the machine goes on, and can be stopped.
    (first, *_) = (pid for pid, name in readers().items() if name == "virtiofsd")
    os.kill(first, signal.SIGKILL)
    told = f"what read the host's folder {home}"
    until(
        lambda: told in driver.condition(sandbox)[2],
        lambda: driver.condition(sandbox),
        60,
    )
    assert driver.condition(sandbox)[1] == "Running"
    assert says("echo goes on") == "goes on\n"
    driver.stop(sandbox)
    assert readers() == {}
    assert driver.delete(sandbox)
