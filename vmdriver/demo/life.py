"""What a gateway does with one sandbox, from create to delete, and how long each step takes."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import grpc

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.demo.gateway import Gateway
from vmdriver.service import admin_client

_BEGUN = time.monotonic()
SANDBOX = "demo-0001"
_DELETE_S = 120.0
_LONGEST_MESSAGE = 100


def say(text: str) -> None:
    """A line, with the time since the begin; in one piece, since several threads have something
    to say.
    """
    line = f"[{time.monotonic() - _BEGUN:7.2f} s] {text}\n"
    print(line, end="", flush=True)


def shortened(message: str) -> str:
    """As much of it as a line has room for; that something is left out is seen."""
    if len(message) <= _LONGEST_MESSAGE:
        return message
    return message[: _LONGEST_MESSAGE - 1] + "…"


class Watcher:
    """Prints what the driver streams, and lets the demo wait for it."""

    def __init__(self, stub: Any) -> None:
        self.conditions: list[str] = []
        self.events: dict[str, float] = {}
        self.deleted = False
        self.changed = threading.Condition()
        threading.Thread(target=self._read, args=(stub,), daemon=True).start()

    def _read(self, stub: Any) -> None:
        try:
            for event in stub.WatchSandboxes(pb.WatchSandboxesRequest()):
                with self.changed:
                    self._note(event)
                    self.changed.notify_all()
        except grpc.RpcError:
            return

    def _note(self, event: pb.WatchSandboxesEvent) -> None:
        kind = event.WhichOneof("payload")
        if kind == "platform_event":
            inner = event.platform_event.event
            say(f"  event     {inner.reason}: {shortened(inner.message)}")
            self.events.setdefault(inner.reason, time.monotonic())
        elif kind == "sandbox":
            condition = event.sandbox.sandbox.status.conditions[0]
            text = f"{condition.type}={condition.status}/{condition.reason}"
            if not self.conditions or self.conditions[-1] != text:
                say(f"  condition {text}")
            self.conditions.append(text)
        else:
            say("  deleted")
            self.deleted = True

    def wait(self, text: str, timeout_s: float = 180) -> None:
        """Until that is its condition. RuntimeError where it fails instead, TimeoutError."""

        def there() -> bool:
            if any("Failed" in c or "Crashed" in c for c in self.conditions[-1:]):
                raise RuntimeError(f"the sandbox failed: {self.conditions[-1]}")
            return bool(self.conditions) and self.conditions[-1] == text

        with self.changed:
            if not self.changed.wait_for(there, timeout_s):
                raise TimeoutError(f"no {text} within {timeout_s} s")


def request(image: str) -> pb.DriverSandbox:
    """As a gateway asks for one."""
    template = pb.DriverSandboxTemplate(image=image)
    spec = pb.DriverSandboxSpec(
        template=template,
        sandbox_token="a-demo-token",  # noqa: S106 - nobody asks for it
        command=["/bin/sleep", "infinity"],
        environment={"DEMO": "yes"},
    )
    return pb.DriverSandbox(id=SANDBOX, name="demo", workspace="default", spec=spec)


def keep_memory(gateway: Gateway, admin: Path, figures: dict[str, Any]) -> None:
    """Suspend and resume, as an operator would."""

    def tell(_reason: str, _message: str, _warning: bool) -> None:
        """Whoever watches has it from the driver, too."""

    gateway.shell(SANDBOX, "echo in-memory > /dev/shm/proof")
    say("wrote /dev/shm/proof, which is in the guest's memory alone")
    begun = time.monotonic()
    admin_client.suspend(admin, SANDBOX, tell)
    figures["suspend_s"] = time.monotonic() - begun
    begun = time.monotonic()
    admin_client.resume(admin, SANDBOX, False, tell)
    figures["resume_s"] = time.monotonic() - begun
    proof = gateway.shell(SANDBOX, "cat /dev/shm/proof").strip()
    if proof != "in-memory":
        raise RuntimeError(f"the memory was lost: {proof!r}")
    say("the machine went on where it was")


def delete(stub: Any) -> bool:
    """Its machine, and all that is held for it; whether there was one. grpc.RpcError."""
    wanted = pb.DeleteSandboxRequest(sandbox_id=SANDBOX)
    return bool(stub.DeleteSandbox(wanted, timeout=_DELETE_S).deleted)


def life(stub: Any, gateway: Gateway, image: str, admin: Path) -> dict[str, Any]:
    """Create, use, stop, start, delete; returns the figures."""
    figures: dict[str, Any] = {}
    capabilities = stub.GetCapabilities(
        pb.GetCapabilitiesRequest(), wait_for_ready=True, timeout=30
    )
    say(f"GetCapabilities: {capabilities.driver_name} {capabilities.driver_version}")
    delete(stub)  # of a demo that was killed
    sandbox = request(image)
    stub.ValidateSandboxCreate(pb.ValidateSandboxCreateRequest(sandbox=sandbox))
    say("ValidateSandboxCreate: accepted")
    watcher = Watcher(stub)
    begun = time.monotonic()
    stub.CreateSandbox(pb.CreateSandboxRequest(sandbox=sandbox))
    say("CreateSandbox: accepted")
    watcher.wait("Ready=True/Running")
    figures["image_s"] = watcher.events["Pulled"] - begun
    figures["create_to_running_s"] = time.monotonic() - begun
    gateway.wait_hello(SANDBOX)
    figures["create_to_callback_s"] = time.monotonic() - begun
    say("the guest's supervisor has called back")
    gateway.shell(SANDBOX, "echo written-before-stop > /sandbox/proof")
    say("wrote /sandbox/proof in the guest, without sync")

    begun = time.monotonic()
    stub.StopSandbox(pb.StopSandboxRequest(sandbox_id=SANDBOX))
    figures["stop_s"] = time.monotonic() - begun
    say("StopSandbox: the machine is down")
    begun = time.monotonic()
    stub.StartSandbox(pb.StartSandboxRequest(sandbox_id=SANDBOX))
    gateway.wait_hello(SANDBOX, 2)
    figures["start_to_callback_s"] = time.monotonic() - begun
    proof = gateway.shell(SANDBOX, "cat /sandbox/proof").strip()
    if proof != "written-before-stop":
        raise RuntimeError(f"the file was lost: {proof!r}")
    say("StartSandbox: called back again, and the file is there")
    keep_memory(gateway, admin, figures)
    begun = time.monotonic()
    deleted = delete(stub)
    figures["delete_s"] = time.monotonic() - begun
    if not deleted:
        raise RuntimeError("DeleteSandbox answered deleted=false")
    say("DeleteSandbox: gone")
    return figures
