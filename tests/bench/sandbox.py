"""A sandbox of a real driver's, as a gateway has it."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

from google.protobuf import struct_pb2

from tests.bench.process import Process
from tests.fakes.gateway import Gateway
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.service import admin_client

TOUCH = "import os,time; m=bytearray(os.urandom(1<<20))*{mib}; open('/tmp/touched','w'); time.sleep(1e9)"


def request(number: int, image: str) -> pb.DriverSandbox:
    template = pb.DriverSandboxTemplate(image=image)
    spec_ = pb.DriverSandboxSpec(template=template, command=["/bin/sleep", "infinity"])
    return pb.DriverSandbox(
        id=f"bench-{os.getpid()}-{number}", name="bench", spec=spec_
    )


def wait_reason(stub: Any, sandbox_id: str, reason: str) -> None:
    """As a gateway does: by watching. Whoever asked every few milliseconds took half of the CPU time that the driver
    took for a fork, and as much for himself.
    """
    watch = stub.WatchSandboxes(pb.WatchSandboxesRequest())
    try:
        for event in watch:
            found = event.sandbox.sandbox
            if found.id != sandbox_id:
                continue
            said = found.status.conditions[0]
            if said.reason == reason:
                return
            if "Failed" in said.reason:
                raise RuntimeError(said.message)
    finally:
        watch.cancel()
    raise RuntimeError(f"the watch ended before {sandbox_id} was {reason}")


def request_of(
    name: str, image: str, memory_mib: int, touched_mib: int
) -> pb.DriverSandbox:
    config = struct_pb2.Struct()
    config.update({"on_stop": "suspend"})
    resources = pb.DriverResourceRequirements(memory_limit=f"{memory_mib}Mi")
    template = pb.DriverSandboxTemplate(
        image=image, driver_config=config, resources=resources
    )
    command = (
        ["/usr/bin/python3", "-c", TOUCH.format(mib=touched_mib)]
        if touched_mib
        else ["/bin/sleep", "infinity"]
    )
    spec = pb.DriverSandboxSpec(template=template, command=command)
    return pb.DriverSandbox(id=f"bench-{os.getpid()}-{name}", name=name, spec=spec)


def timed(call: Any) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


class Sandbox:
    def __init__(
        self, driver: Process, gateway: Gateway, message: pb.DriverSandbox
    ) -> None:
        self.driver, self.stub, self.gateway, self.id = (
            driver,
            driver.stub,
            gateway,
            message.id,
        )
        self.create_s = timed(lambda: self._create(message))

    def _create(self, message: pb.DriverSandbox) -> None:
        self.stub.CreateSandbox(pb.CreateSandboxRequest(sandbox=message))
        wait_reason(self.stub, self.id, "Running")

    @property
    def directory(self) -> Path:
        return self.driver.state / "sandboxes" / self.id

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "record.json").read_text())
        return found

    def suspend(self) -> float:
        return timed(
            lambda: self.stub.StopSandbox(pb.StopSandboxRequest(sandbox_id=self.id))
        )

    def start(self) -> float:
        def up() -> None:
            self.stub.StartSandbox(pb.StartSandboxRequest(sandbox_id=self.id))
            wait_reason(self.stub, self.id, "Running")

        return timed(up)

    def snapshot(self, name: str) -> float:
        """Seconds for which the workload stood still, in the driver's words. The snapshot is removed again."""
        said: list[str] = []
        socket = self.driver.state / "run" / "admin.sock"
        admin_client.create_snapshot(
            socket, self.id, name, False, lambda _r, message, _w: said.append(message)
        )
        admin_client.delete_snapshot(socket, self.id, name)
        found = re.search(r"stood still for ([\d.]+) s", "\n".join(said))
        assert found is not None, said
        return float(found[1])

    def delete(self) -> None:
        self.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id=self.id))

    def pid(self) -> int:
        domain = self.record()["plan"]["domain"]
        return int(
            (
                self.driver.state / "libvirt" / "run" / "qemu" / f"{domain}.pid"
            ).read_text()
        )

    def pss_mib(self) -> float:
        text = Path(f"/proc/{self.pid()}/smaps_rollup").read_text()
        return int(re.search(r"Pss:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


def wait_template(driver: Process, waiting: int) -> None:
    """Until there is one, and as many machines wait on it."""
    deadline = time.monotonic() + 300  # it boots, and others may use this host too
    while not any(
        t["waiting"] >= waiting
        for t in admin_client.list_templates(driver.state / "run" / "admin.sock")
    ):
        if time.monotonic() > deadline:
            lines = driver.log.read_text().splitlines()
            said = [line for line in lines if "template" in line or "warm pool" in line]
            raise RuntimeError("\n".join(["no template:", *said[-5:]]))
        time.sleep(0.1)
