"""Where a storm takes place: a small file system, a registry, a gateway, a driver that dies and is started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from tests.fakes.gateway import Gateway
from tests.fakes.registry import push, registry
from tests.fakes.serve import WORK
from tests.storm.tally import Tally
from tests.system.machines import Driver, DriverEnded, Host
from vmdriver._proto import compute_driver_pb2 as pb

INSTANCE = f"vmdriver-storm{os.getpid()}"
"""Another storm on this host is nobody of ours."""
STOP_GRACE_S = 3
DISK_MIB = 6144
OPTIONS = [
    *("--instance", INSTANCE, "--mem-mib", "160", "--overlay-disk-mib", "512"),
    *("--stop-grace-s", str(STOP_GRACE_S), "--freeze-timeout-s", "5"),
    *("--templates-enabled", "true", "--warm-pool", "1"),
]


class SmallDisk:
    """A file system of its own that can be filled to the last byte and emptied again."""

    def __init__(self, base: Path, mib: int) -> None:
        self._image, self.root, self._mib = base / "disk.img", base / "disk", mib

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """Ext4 on a loop device; a tmpfs where a container has no loop devices."""
        self.root.mkdir(mode=0o711)
        with self._image.open("wb") as file:
            file.truncate(self._mib * 2**20)
        subprocess.run(
            ["mke2fs", "-q", "-t", "ext4", "-m", "0", str(self._image)], check=True
        )
        ext4 = ["mount", "-o", "loop", str(self._image), str(self.root)]
        tmpfs = [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            f"size={self._mib}m,mode=711",
            "storm",
            str(self.root),
        ]
        if subprocess.run(ext4, capture_output=True, check=False).returncode != 0:
            subprocess.run(tmpfs, check=True)
        try:
            self.root.chmod(0o711)
            yield self.root
        finally:
            subprocess.run(["umount", "--lazy", str(self.root)], check=False)

    def fill(self, leave_bytes: int) -> None:
        """Take all space but so much."""
        with (self.root / "ballast").open("ab") as file, contextlib.suppress(OSError):
            size = file.tell()
            free = shutil.disk_usage(self.root).free - leave_bytes
            if free > 0:
                os.posix_fallocate(file.fileno(), size, free)

    def empty(self) -> None:
        (self.root / "ballast").unlink(missing_ok=True)


class Keeper:
    """Keeps one driver process going; faults end it, callers use whichever is there."""

    def __init__(self, driver: Driver, tally: Tally) -> None:
        self.driver, self._tally = driver, tally
        self.generation = 0
        """Grows when a driver is killed, and when the next one answers."""
        self.answers = False
        self._lock = threading.Lock()

    @property
    def state(self) -> Path:
        return self.driver.host.state

    @property
    def stub(self) -> Any:
        return self.driver.stub

    @property
    def admin(self) -> Any:
        return self.driver.admin

    def channel(self) -> grpc.Channel:
        """A channel of one's own; broken connections are shared otherwise."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.insecure_channel(f"unix:{self.driver.socket}", options=options)

    def pid(self) -> int | None:
        process = self.driver.process
        return process.pid if process is not None and process.poll() is None else None

    def start(self, timeout_s: float = 90) -> None:
        """Until a driver answers and has recovered. One that ends by itself is told of."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while not self._started(deadline):
                if time.monotonic() > deadline:
                    raise TimeoutError("no driver answers")
                time.sleep(0.5)

    def _started(self, deadline: float) -> bool:
        begun = time.monotonic()
        try:
            self.driver.start()
            self.driver.stub.ListSandboxes(pb.ListSandboxesRequest(), timeout=60)
        except (grpc.RpcError, DriverEnded, TimeoutError) as error:
            if self.pid() is not None:
                if time.monotonic() < deadline:
                    self.driver.kill()
            elif self._tally.harmed(
                15
            ):  # it may need space, or the program that was killed
                self._tally.refused("start of the driver", "ENDED", str(error)[-90:])
                return False
            self._tally.broken(f"the driver does not start: {error}")
            return False
        self._tally.took("start of the driver", time.monotonic() - begun)
        self.generation += 1
        self.answers = True
        return True

    def end(self, number: int) -> None:
        """Kill it, or ask it to end, which must take no time worth mentioning."""
        with self._lock:
            self.generation += 1
            self.answers = False
            try:
                seconds = self.driver.kill(number)
            except subprocess.TimeoutExpired:
                self._tally.broken(
                    f"the driver does not end within 10 s of signal {number}"
                )
                self.driver.kill(signal.SIGKILL)
                return
        process = self.driver.process
        assert process is not None
        if number == signal.SIGTERM:
            self._tally.took("end of the driver", seconds)
            if process.returncode != 0:
                self._tally.broken(
                    f"told to end, the driver ended with {process.returncode}"
                )


@contextlib.contextmanager
def stage(
    tally: Tally, logs: Path
) -> Iterator[tuple[Keeper, SmallDisk, Gateway, list[str]]]:
    """Everything set up, with two images in the registry; the driver is not started yet."""
    base = Path(tempfile.mkdtemp(prefix="vmdriver-storm-"))
    base.chmod(0o755)
    disk = SmallDisk(base, DISK_MIB)
    gateway = Gateway()
    try:
        with disk.mounted() as root, registry(base / "registry") as address:
            images = [f"{address}/demo:latest", f"{address}/other:latest"]
            _push(base, images)
            state = root / "state"
            state.mkdir(mode=0o711)
            (state / "boot").symlink_to(WORK / "boot")
            host = Host(address, state)
            driver = Driver(host, gateway, base / "run" / "d.sock", OPTIONS)
            driver.log = logs / "driver.log"
            yield Keeper(driver, tally), disk, gateway, images
    finally:
        gateway.close()
        for link in Path("/run/vmdriver").glob("*"):  # libvirt's short way into it
            if link.is_symlink() and link.readlink().is_relative_to(base):
                link.unlink()
        shutil.rmtree(base, ignore_errors=True)


def _push(base: Path, images: list[str]) -> None:
    """The demo image, and one that differs by a label alone: a base disk of its own."""
    push(WORK / "demo-image", "demo", images[0])
    copy = base / "image"
    shutil.copytree(WORK / "demo-image", copy)
    command = [
        "umoci",
        "config",
        "--image",
        f"{copy}:demo",
        "--config.label",
        "storm=1",
    ]
    subprocess.run(command, check=True, capture_output=True)
    push(copy, "demo", images[1])
    shutil.rmtree(copy)
