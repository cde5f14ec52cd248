"""Real machines. The ladder: host (registry, image cache) -> driver (a process) -> a sandbox that runs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes import serve
from tests.fakes.gateway import Gateway
from tests.fakes.leftovers import leftovers
from tests.fakes.registry import push, registry
from tests.fakes.serve import BIN, WORK
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc

INSTANCE = "vmdriver-test"
_numbers = itertools.count(1)


@dataclass
class Host:
    """What all tests share: images, boot files and a registry. Base disks are made once."""

    registry: str
    state: Path

    @property
    def image(self) -> str:
        return f"{self.registry}/demo:latest"


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    if os.geteuid() != 0:
        pytest.fail("the system tier needs root")
    base = Path(tempfile.mkdtemp(prefix="vmdriver-test-"))
    base.chmod(
        0o755
    )  # QEMU's user must get through, which pytest's own directories do not allow
    state = base / "state with space"
    state.mkdir()
    (state / "boot").symlink_to(WORK / "boot")
    with registry(base / "registry") as address:
        push(WORK / "demo-image", "demo", f"{address}/demo:latest")
        yield Host(address, state)
    for link in Path("/run/vmdriver").glob("*"):  # libvirt's short way into it
        if link.is_symlink() and link.readlink().is_relative_to(base):
            link.unlink()
    shutil.rmtree(base)


@dataclass
class Driver:
    """A driver process and a client of it."""

    host: Host
    gateway: Gateway
    socket: Path
    options: list[str]
    command: list[str] = field(default_factory=lambda: list(serve.SERVE))
    process: subprocess.Popen[bytes] | None = None
    channel: grpc.Channel | None = None
    log: Path = Path("/dev/null")
    used: list[str] = field(default_factory=list)

    def arguments(self) -> list[str]:
        more = ["--accelerator", "tcg", "--overlay-disk-mib", "1024"]
        more += ["--templates-enabled", "false", *self.options]
        where = (self.host.state, self.socket, INSTANCE)
        return serve.arguments(*where, self.gateway.url, self.host.registry, *more)

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*self.command, *self.arguments()], stdout=output, stderr=output
            )
        # Channels to one address share their connections, broken ones too, unless told not to.
        self.channel = grpc.insecure_channel(
            f"unix:{self.socket}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.stub = pb_grpc.ComputeDriverStub(self.channel)
        self.stub.GetCapabilities(
            pb.GetCapabilitiesRequest(), wait_for_ready=True, timeout=20
        )

    def kill(self, number: int = signal.SIGKILL) -> float:
        """End the process; seconds until it had ended."""
        assert self.process is not None
        begun = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(10)
        if self.channel is not None:
            self.channel.close()
        return time.monotonic() - begun

    def restart(self, number: int = signal.SIGKILL) -> None:
        self.kill(number)
        self.start()

    def create(self, wait: bool = True, name: str = "box", **spec: Any) -> str:
        sandbox_id = f"test-{os.getpid()}-{next(_numbers)}"
        spec.setdefault("command", ["/bin/sleep", "infinity"])
        spec.setdefault("template", pb.DriverSandboxTemplate(image=self.host.image))
        sandbox = pb.DriverSandbox(
            id=sandbox_id, name=name, spec=pb.DriverSandboxSpec(**spec)
        )
        self.used.append(sandbox_id)
        self.stub.CreateSandbox(pb.CreateSandboxRequest(sandbox=sandbox), timeout=20)
        if wait:
            self.gateway.wait_hello(sandbox_id)
        return sandbox_id

    def condition(self, sandbox_id: str) -> tuple[str, str, str]:
        found = self.stub.GetSandbox(
            pb.GetSandboxRequest(sandbox_id=sandbox_id), timeout=20
        ).sandbox
        first = found.status.conditions[0]
        return f"{first.type}={first.status}", first.reason, first.message

    def wait(self, sandbox_id: str, reason: str, timeout_s: float = 60) -> str:
        deadline = time.monotonic() + timeout_s
        while (now := self.condition(sandbox_id))[1] != reason:
            assert time.monotonic() < deadline, f"{sandbox_id} is {now}, not {reason}"
            time.sleep(0.05)
        return now[2]

    def stop(self, sandbox_id: str) -> None:
        self.stub.StopSandbox(pb.StopSandboxRequest(sandbox_id=sandbox_id), timeout=60)

    def start_sandbox(self, sandbox_id: str) -> None:
        self.stub.StartSandbox(
            pb.StartSandboxRequest(sandbox_id=sandbox_id), timeout=20
        )

    def delete(self, sandbox_id: str) -> bool:
        return self.stub.DeleteSandbox(
            pb.DeleteSandboxRequest(sandbox_id=sandbox_id), timeout=60
        ).deleted

    def cli(self, *arguments: str) -> Any:
        done = subprocess.run(
            [str(BIN / "vmdriver"), *arguments, "--json", *self.arguments()],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in {0, 1}, done.stderr
        return json.loads(done.stdout)

    def cli_plain(self, *arguments: str) -> None:
        """A command that says nothing when all is well."""
        self.operate(*arguments)

    def operate(self, *arguments: str, fails: bool = False) -> list[dict[str, Any]]:
        """An operator's command that tells events, one JSON object a line; its error's text if it fails."""
        done = subprocess.run(
            [str(BIN / "vmdriver"), *arguments, "--json", *self.arguments()],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        events = [json.loads(line) for line in done.stdout.splitlines()]
        return [*events, {"error": done.stderr}] if fails else events

    def machine_pid(self, sandbox_id: str) -> int:
        return int(self.cli("inspect", sandbox_id)["machine"]["pid"])


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.close()


@pytest.fixture
def new_driver(
    host: Host,
    gateway: Gateway,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Callable[..., Driver]]:
    """Makes drivers; at the end everything of theirs must be gone, and what failed is shown."""
    made: list[Driver] = []

    def make(*options: str, **more: Any) -> Driver:
        directory = tmp_path_factory.mktemp("d")
        driver = Driver(
            replace(host, state=more.pop("state", host.state)),
            more.pop("gateway", gateway),
            directory / "run" / "d.sock",
            list(options),
            **more,
        )
        driver.log = directory / "driver.log"
        made.append(driver)
        driver.start()
        return driver

    yield make
    report = getattr(request.node, "report", None)
    if report is not None and report.failed:
        for driver in made:
            _dump(driver)
    for driver in made:
        if not driver.host.state.exists():
            continue  # the test has ended it, with a state of its own
        if driver.process is not None and driver.process.poll() is not None:
            driver.start()
        for sandbox_id in driver.used:
            driver.delete(sandbox_id)
        assert driver.kill(signal.SIGTERM) < 3
        assert leftovers(INSTANCE, host.state) == []
        shutil.rmtree(driver.socket.parent.parent)


@pytest.hookimpl(tryfirst=True, hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.when == "call":
        item.report = report  # type: ignore[attr-defined]


def _dump(driver: Driver) -> None:
    print(f"--- {driver.log}\n{driver.log.read_text()[-8000:]}")
    for sandbox_id in driver.used:
        directory = driver.host.state / "sandboxes" / sandbox_id
        for name in ("record.json", "ledger.jsonl", "console.log"):
            if (directory / name).exists():
                print(
                    f"--- {sandbox_id}/{name}\n{(directory / name).read_text(errors='replace')[-4000:]}"
                )


@pytest.fixture
def driver(new_driver: Callable[..., Driver]) -> Driver:
    return new_driver()
