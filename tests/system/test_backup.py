"""A state directory that is put away with tar and brought back, as docs/operating.md says."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.system.machines import Driver
from tests.system.stage import WITHOUT_TEMPLATES, lend_images

TAR = ("tar", "--acls", "--xattrs", "--sparse", "--numeric-owner")


def test_a_backup_has_disks_and_snapshots_and_memory_gives_way_to_a_boot(
    new_driver: Callable[..., Driver], shared: Driver, tmp_path: Path
) -> None:
    state = Path("/tmp") / f"vmdriver-backup-{tmp_path.name}"
    state.mkdir(mode=0o711)
    (state / "boot").symlink_to(shared.host.state / "boot")
    lend_images(shared.host.state, state)
    driver = new_driver(*WITHOUT_TEMPLATES, state=state)
    stopped, asleep = driver.create(), driver.create()
    for sandbox in (stopped, asleep):
        driver.wait(sandbox, "Running")
        driver.gateway.shell(sandbox, f"echo {sandbox} > /sandbox/kept")
    driver.gateway.shell(asleep, "echo forgotten > /dev/shm/note")
    driver.snapshot(stopped, "first")
    driver.gateway.shell(stopped, "echo changed > /sandbox/kept; sync")
    driver.stop(stopped)
    driver.suspend(asleep)
    driver.kill(signal.SIGTERM)
    archive = tmp_path / "backup.tar"
    pack = [*TAR, "-C", str(state.parent), "-cf", str(archive), state.name]
    subprocess.run(pack, check=True)
    shutil.rmtree(state)
    subprocess.run([*TAR, "-C", str(state.parent), "-xpf", str(archive)], check=True)
    driver.start()
    # Files are known by more than their content: a copy is not what the memory was kept with.
    driver.resume(asleep)
    driver.wait(asleep, "Running")
    driver.gateway.wait_hello(asleep, 2)
    assert driver.gateway.shell(asleep, "ls /dev/shm") == ""
    assert driver.gateway.shell(asleep, "cat /sandbox/kept") == f"{asleep}\n"
    driver.start_sandbox(stopped)
    driver.gateway.wait_hello(stopped, 2)
    assert driver.gateway.shell(stopped, "cat /sandbox/kept") == "changed\n"
    driver.go_back(stopped, "first")
    assert driver.gateway.shell(stopped, "cat /sandbox/kept") == f"{stopped}\n"
    for sandbox in (stopped, asleep):
        assert driver.delete(sandbox)
    driver.kill(signal.SIGTERM)
    shutil.rmtree(state)
