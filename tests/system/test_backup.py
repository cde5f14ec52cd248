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
    sandbox, shell = driver.create(), driver.gateway.shell
    driver.wait(sandbox, "Running")
    shell(sandbox, "echo first > /sandbox/kept; echo forgotten > /dev/shm/note")
    driver.snapshot(sandbox, "first")
    shell(sandbox, "echo changed > /sandbox/kept")
    driver.suspend(sandbox)
    driver.kill(signal.SIGTERM)
    archive = tmp_path / "backup.tar"
    pack = [*TAR, "-C", str(state.parent), "-cf", str(archive), state.name]
    subprocess.run(pack, check=True)
    shutil.rmtree(state)
    subprocess.run([*TAR, "-C", str(state.parent), "-xpf", str(archive)], check=True)
    driver.start()
    # Files are known by more than their content: a copy is not what the memory was kept with.
    driver.resume(sandbox)
    driver.wait(sandbox, "Running")
    driver.gateway.wait_hello(sandbox, 2)
    assert shell(sandbox, "ls /dev/shm; cat /sandbox/kept") == "changed\n"
    driver.go_back(sandbox, "first")
    driver.gateway.wait_hello(sandbox, 3)
    assert shell(sandbox, "ls /dev/shm; cat /sandbox/kept") == "first\n"
    assert driver.delete(sandbox)
    driver.kill(signal.SIGTERM)
    shutil.rmtree(state)
