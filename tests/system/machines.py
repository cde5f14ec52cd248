"""A driver process with real machines, and a client of it: for the system tests and the storm."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from tests.fakes import serve
from tests.fakes.eager import EAGER
from tests.fakes.gateway import Gateway
from tests.fakes.serve import BIN
from tests.fakes.waiting import until
from vmdriver._proto import admin_pb2 as admin
from vmdriver._proto import admin_pb2_grpc as admin_grpc
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.cli.main import main
from vmdriver.host import console_file
from vmdriver.model.ids import domain_name

INSTANCE = "vmdriver-test" + os.environ.get("PYTEST_XDIST_WORKER", "")
"""Tests that run side by side must not take each other's machines for leftovers."""
_numbers = itertools.count(1)
_one_at_a_time = threading.Lock()
"""Standard output is the process's."""


@dataclass(frozen=True)
class Host:
    """What tests share: a registry, and a state directory with boot files, prepared images and templates of booted guests."""

    registry: str
    state: Path
    instance: str = INSTANCE

    @property
    def image(self) -> str:
        return f"{self.registry}/demo:latest"


def in_background(call: Callable[[], object]) -> threading.Thread:
    """Whoever asks may lose its driver: what it is told then does not matter."""

    def quietly() -> None:
        with contextlib.suppress(grpc.RpcError, ValueError, AssertionError):
            call()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    return thread


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
    channels: list[grpc.Channel] = field(default_factory=list)
    log: Path = Path("/dev/null")
    used: list[str] = field(default_factory=list)

    def arguments(self) -> list[str]:
        more = ["--accelerator", "tcg", "--overlay-disk-mib", "1024", *self.options]
        where = (self.host.state, self.socket, self.host.instance)
        return serve.arguments(*where, self.gateway.url, self.host.registry, *more)

    def start(self) -> None:
        """Begin it and wait until it answers."""
        self.begin()
        self._wait_for_answer(time.monotonic() + 20)

    def begin(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*self.command, *self.arguments()], stdout=output, stderr=output
            )
        own = self.host.state / "run" / "admin.sock"
        self.channels = [
            grpc.insecure_channel(f"unix:{path}", options=EAGER)
            for path in (self.socket, own)
        ]
        self.stub = pb_grpc.ComputeDriverStub(self.channels[0])
        self.admin = admin_grpc.AdminStub(self.channels[1])

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

    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self, number: int = signal.SIGKILL) -> float:
        """End the process; seconds until it had ended."""
        assert self.process is not None
        begun = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(10)
        for channel in self.channels:
            channel.close()
        return time.monotonic() - begun

    def restart(self, number: int = signal.SIGKILL) -> None:
        self.kill(number)
        self.start()

    def create(self, wait: bool = True, name: str = "box", **spec: Any) -> str:
        sandbox_id = f"test-{os.getpid()}-{next(_numbers)}"
        spec.setdefault("command", ["/bin/sleep", "infinity"])
        spec.setdefault("template", pb.DriverSandboxTemplate(image=self.host.image))
        sandbox = pb.DriverSandbox(
            id=sandbox_id,
            name=name,
            workspace=spec.pop("workspace", ""),
            spec=pb.DriverSandboxSpec(**spec),
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

    def suspend(self, sandbox_id: str) -> list[str]:
        """What an operator's command asks for; the reasons that it is told."""
        return _told(self.admin.Suspend(admin.SuspendRequest(sandbox=sandbox_id)))

    def resume(self, sandbox_id: str, *, cold: bool = False) -> list[str]:
        request = admin.ResumeRequest(sandbox=sandbox_id, cold=cold)
        return _told(self.admin.Resume(request))

    def snapshot(self, sandbox_id: str, name: str) -> list[str]:
        request = admin.CreateSnapshotRequest(sandbox=sandbox_id, name=name)
        return _told(self.admin.CreateSnapshot(request))

    def go_back(self, sandbox_id: str, name: str) -> list[str]:
        request = admin.RestoreSnapshotRequest(sandbox=sandbox_id, name=name)
        return _told(self.admin.RestoreSnapshot(request))

    def snapshots(self, sandbox_id: str) -> list[str]:
        request = admin.ListSnapshotsRequest(sandbox=sandbox_id)
        return [found.name for found in self.admin.ListSnapshots(request).snapshots]

    def templates(self) -> list[Any]:
        return list(
            self.admin.ListTemplates(admin.ListTemplatesRequest(), timeout=20).templates
        )

    def layers(self) -> set[str]:
        """Disk layers that there are, of sandboxes and of templates."""
        return {path.name for path in (self.host.state / "layers").rglob("*.qcow2")}

    def wait_for_template(self, timeout_s: float = 90) -> None:
        """Until there is one for sandboxes as `create` asks for them."""
        until(self.templates, lambda: self.log.read_text()[-3000:], timeout_s, 0.2)

    def cli(self, *arguments: str) -> Any:
        """The document that a command prints; its process is started, as an operator's is."""
        done = subprocess.run(
            [str(BIN / "vmdriver"), *arguments, "--json", *self.arguments()],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in {0, 1, 3}, done.stderr
        return json.loads(done.stdout)

    def _here(self, *arguments: str) -> tuple[int, str, str]:
        """Status, output and errors of a command, without half a second of a process's start."""
        output, errors = io.StringIO(), io.StringIO()
        with (
            _one_at_a_time,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            status = main([*arguments, "--json", *self.arguments()])
        return status, output.getvalue(), errors.getvalue()

    def inspect(self, sandbox_id: str) -> Any:
        """What `vmdriver inspect` prints."""
        status, output, errors = self._here("inspect", sandbox_id)
        assert status == 0, errors
        return json.loads(output)

    def plan(self, sandbox_id: str) -> Any:
        return self.record(sandbox_id)["plan"]

    def record(self, sandbox_id: str) -> Any:
        path = self.directory(sandbox_id) / "record.json"
        return json.loads(path.read_text())

    def directory(self, sandbox_id: str) -> Path:
        """Where its files are."""
        return self.host.state / "sandboxes" / sandbox_id

    def operate(self, *arguments: str, fails: bool = False) -> list[dict[str, Any]]:
        """An operator's command that tells events, one JSON object a line; its error's text if it fails."""
        status, output, errors = self._here(*arguments)
        assert (status != 0) == fails, output + errors
        events = [json.loads(line) for line in output.splitlines()]
        return [*events, {"error": errors}] if fails else events

    def machine_pid(self, sandbox_id: str) -> int:
        return int(self.inspect(sandbox_id)["machine"]["pid"])


def qemus_of(driver: Driver, sandbox_id: str) -> list[int]:
    """Processes of its machine. One of the others may end while it is looked at."""
    domain = domain_name(driver.host.instance, sandbox_id).encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program, *arguments = (process / "cmdline").read_bytes().split(b"\0")
            named = any(a.startswith(b"guest=" + domain + b",") for a in arguments)
            if b"qemu-system" in program and named:
                found.append(int(process.name))
    return found


def is_asked(driver: Driver, sandbox: str, intent: str) -> bool:
    """Whether the driver has it on disk: a call that never reached it promises nothing."""
    record = driver.directory(sandbox) / "record.json"
    return not record.exists() or f'"intent":"{intent}"' in record.read_text()


def _told(events: Iterable[Any]) -> list[str]:
    return [event.reason for event in events]


def dump(driver: Driver) -> None:
    print(f"--- {driver.log}\n{driver.log.read_text()[-8000:]}")
    for sandbox_id in driver.used:
        directory = driver.host.state / "sandboxes" / sandbox_id
        for name in ("record.json", "ledger.jsonl"):
            if (directory / name).exists():
                text = (directory / name).read_text(errors="replace")
                print(f"--- {sandbox_id}/{name}\n{text[-4000:]}")
        # It begins with a hole of gigabytes, which nobody reads whole for each of many.
        console = console_file.tail(directory / "console.log", 4000)
        print(f"--- {sandbox_id}/console.log\n{console}")
