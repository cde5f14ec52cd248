"""A driver process with real machines, and a client of it: for the system tests and the storm."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from tests.fakes import serve
from tests.fakes.gateway import Gateway
from tests.fakes.serve import BIN
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc

INSTANCE = "vmdriver-test" + os.environ.get("PYTEST_XDIST_WORKER", "")
"""Tests that run side by side must not take each other's machines for leftovers."""
_numbers = itertools.count(1)


@dataclass
class Host:
    """What all tests share: images, boot files and a registry. Base disks are made once."""

    registry: str
    state: Path

    @property
    def image(self) -> str:
        return f"{self.registry}/demo:latest"


class DriverEnded(Exception):
    """It ended by itself; with its last lines."""

    def __init__(self, status: int, log: Path) -> None:
        words = log.read_text(errors="replace")[-600:] if log.is_file() else ""
        super().__init__(f"the driver ended with {status}: {words}")


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
        self._wait_for_answer(time.monotonic() + 20)

    def _wait_for_answer(self, deadline: float) -> None:
        """Until it answers. DriverEnded when it ends instead, TimeoutError after the deadline."""
        while True:
            try:
                self.stub.GetCapabilities(
                    pb.GetCapabilitiesRequest(), wait_for_ready=True, timeout=0.5
                )
                return
            except grpc.RpcError as error:
                assert self.process is not None
                if self.process.poll() is not None:
                    raise DriverEnded(self.process.returncode, self.log) from error
                if time.monotonic() > deadline:
                    raise TimeoutError("no driver answers within 20 s") from error

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


def dump(driver: Driver) -> None:
    print(f"--- {driver.log}\n{driver.log.read_text()[-8000:]}")
    for sandbox_id in driver.used:
        directory = driver.host.state / "sandboxes" / sandbox_id
        for name in ("record.json", "ledger.jsonl", "console.log"):
            if (directory / name).exists():
                print(
                    f"--- {sandbox_id}/{name}\n{(directory / name).read_text(errors='replace')[-4000:]}"
                )
