"""A driver process on a state directory, and records for it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import grpc

from tests.fakes import serve
from tests.fakes.driver import spec
from tests.fakes.eager import EAGER
from tests.fakes.gateway import Gateway
from tests.fakes.world import World
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.record import SandboxRecord, utc_now

INSTANCE = "vmdriver-bench"
"""By its name each driver takes up what the one before it has left."""


def stopped_records(count: int) -> World:
    world = World()
    for number in range(count):
        now = utc_now()
        record = SandboxRecord(
            spec=spec(f"r{number:04}"),
            intent=Intent.STOPPED,
            phase=Phase.STOPPED,
            created_at=now,
            changed_at=now,
        )
        world.records[record.id] = record.model_dump_json()
    return world


def write_records(state: Path, count: int) -> None:
    for sandbox_id, text in stopped_records(count).records.items():
        directory = state / "sandboxes" / sandbox_id
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "record.json").write_text(text)


class Process:
    """vmdriver serve on a state directory."""

    def __init__(
        self, state: Path, gateway: Gateway, registry_address: str, *options: str
    ) -> None:
        self.state, self.socket = state, Path(tempfile.mkdtemp()) / "run" / "d.sock"
        where = (state, self.socket, INSTANCE, gateway.url, registry_address)
        more = (
            "--accelerator",
            "tcg",
            "--max-sandboxes",
            "2000",
            "--log-level",
            "debug",
            *(options or ("--templates-enabled", "false")),
        )
        self.command = [*serve.SERVE, *serve.arguments(*where, *more)]
        self.log = self.state / "bench.log"

    def __enter__(self) -> Process:
        begun = time.perf_counter()
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(self.command, stdout=output, stderr=output)
        self.channel = grpc.insecure_channel(f"unix:{self.socket}", EAGER)
        self.stub = pb_grpc.ComputeDriverStub(self.channel)
        self.stub.ListSandboxes(
            pb.ListSandboxesRequest(), wait_for_ready=True, timeout=60
        )
        self.start_s = time.perf_counter() - begun
        return self

    def rss_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.socket.parent.parent, ignore_errors=True)
