"""Drives one sandbox through its life, as a gateway would. Started by scripts/demo."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import grpc  # noqa: E402

from tests.fakes import serve  # noqa: E402
from tests.fakes.gateway import Gateway  # noqa: E402
from tests.fakes.leftovers import leftovers  # noqa: E402
from tests.fakes.registry import push, registry  # noqa: E402
from tests.fakes.serve import WORK  # noqa: E402
from vmdriver._proto import compute_driver_pb2 as pb  # noqa: E402
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc  # noqa: E402
from vmdriver.hypervisor.kvm import outcome as kvm_outcome  # noqa: E402
from vmdriver.service import admin_client  # noqa: E402

BEGUN = time.monotonic()
SANDBOX = "demo-0001"
INSTANCE = "vmdriver-demo"
LAST_LINES = 15
"""Of its log, shown when the driver has died."""


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGUN:7.2f} s] {text}", flush=True)


def build() -> None:
    for script, target in (
        ("build-boot-files", "boot"),
        ("build-demo-image", "demo-image"),
    ):
        say(f"images/{script} ...")
        subprocess.run([str(ROOT / "images" / script), str(WORK / target)], check=True)


class DriverDied(RuntimeError):
    """The driver has ended while the demo needed it."""


@contextmanager
def noticed(process: subprocess.Popen[bytes], log: Path) -> Iterator[None]:
    """Whatever the main thread waits for, it is told at once when the process ends."""
    over = threading.Event()

    def tell(_number: int, _frame: object) -> None:
        if over.is_set():
            return
        over.set()
        last = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        said = "\n".join(f"    {line}" for line in last)
        raise DriverDied(
            f"the driver has ended with status {process.returncode}; its last lines:\n{said}"
        )

    def watch() -> None:
        process.wait()
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, tell)  # for good: it may come late
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def driver(state: Path, registry_address: str, gateway: Gateway) -> Iterator[Path]:
    """vmdriver serve; yields its socket. A short path: Unix sockets may have 107 bytes.
    DriverDied where the driver does not live as long as it is needed.
    """
    socket = Path(f"/run/vmdriver-demo-{INSTANCE}/driver.sock")
    where = (state, socket, INSTANCE, gateway.url, registry_address)
    command = [*serve.SERVE, *serve.arguments(*where)]
    log = state.parent / "demo-driver.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    say(f"vmdriver serve is started; its log is {log}")
    try:
        with noticed(process, log):
            yield socket
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        shutil.rmtree(socket.parent, ignore_errors=True)


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
            say(f"  event     {inner.reason}: {inner.message[:110]}")
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
        def there() -> bool:
            if any("Failed" in c or "Crashed" in c for c in self.conditions[-1:]):
                raise RuntimeError(f"the sandbox failed: {self.conditions[-1]}")
            return bool(self.conditions) and self.conditions[-1] == text

        with self.changed:
            if not self.changed.wait_for(there, timeout_s):
                raise TimeoutError(f"no {text} within {timeout_s} s")


def request(image: str) -> pb.DriverSandbox:
    template = pb.DriverSandboxTemplate(image=image)
    spec = pb.DriverSandboxSpec(
        template=template,
        sandbox_token="a-demo-token",
        command=["/bin/sleep", "infinity"],
        environment={"DEMO": "yes"},
    )
    return pb.DriverSandbox(id=SANDBOX, name="demo", workspace="default", spec=spec)


def keep_memory(gateway: Gateway, admin: Path, figures: dict[str, Any]) -> None:
    """Suspend and resume, as an operator would."""

    def tell(reason: str, message: str, _warning: bool) -> None:
        say(f"  {reason}: {message}")

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


def life(stub: Any, gateway: Gateway, image: str, admin: Path) -> dict[str, Any]:
    """Create, use, stop, start, delete; returns the figures."""
    figures: dict[str, Any] = {}
    capabilities = stub.GetCapabilities(
        pb.GetCapabilitiesRequest(), wait_for_ready=True, timeout=30
    )
    say(f"GetCapabilities: {capabilities.driver_name} {capabilities.driver_version}")
    stub.DeleteSandbox(
        pb.DeleteSandboxRequest(sandbox_id=SANDBOX)
    )  # of a demo that was interrupted
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
    answer = stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id=SANDBOX))
    figures["delete_s"] = time.monotonic() - begun
    if not answer.deleted:
        raise RuntimeError("DeleteSandbox answered deleted=false")
    say("DeleteSandbox: gone")
    return figures


def main() -> int:
    build()
    state = WORK / "demo-state"
    state.mkdir(parents=True, exist_ok=True)
    boot = state / "boot"
    if not boot.is_symlink():
        boot.symlink_to(WORK / "boot")
    gateway = Gateway()
    figures: dict[str, Any] = {"ok": False}
    try:
        with (
            registry(WORK / "registry") as address,
            driver(state, address, gateway) as socket,
        ):
            image = f"{address}/demo:latest"
            push(WORK / "demo-image", "demo", image)
            say(f"pushed the demo image to a registry on {address}")
            with grpc.insecure_channel(f"unix:{socket}") as channel:
                admin = state / "run" / "admin.sock"
                stub = pb_grpc.ComputeDriverStub(channel)
                measured = life(stub, gateway, image, admin)
        left = leftovers(INSTANCE, state)
        for item in left:
            say(f"left over: {item}")
        known = kvm_outcome.load(state / "accelerator.json")
        accelerator = "kvm" if known is not None and known.works else "tcg"
        figures = {"ok": not left, "accelerator": accelerator}
        figures |= {key: round(value, 3) for key, value in measured.items()} | {
            "leftovers": len(left)
        }
    except (
        RuntimeError,
        TimeoutError,
        grpc.RpcError,
        subprocess.SubprocessError,
    ) as error:
        say(f"failed: {error}")
        figures["error"] = str(error)
    finally:
        gateway.close()
    print(json.dumps(figures), flush=True)
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
