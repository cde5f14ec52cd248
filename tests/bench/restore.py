"""Measures suspend, resume, snapshots, forks against plain libvirt and QEMU doing the same, in one run. Started by scripts/bench restore.

Every figure is a median of at least 5 rounds. The two sides take turns on the same files, with the same domain XML.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # libvirt forks in this process

import libvirt_qemu
from google.protobuf import struct_pb2

from tests.bench.driver import (
    INSTANCE,
    PlainLibvirt,
    Process,
    median,
    table,
    wait_reason,
)
from tests.fakes.gateway import Gateway
from tests.fakes.registry import push, registry
from tests.fakes.serve import WORK
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.hypervisor.domain_xml import for_restore
from vmdriver.hypervisor.memory.machine_memory import write_save_image
from vmdriver.hypervisor.wall.sealing import ReadOnlyMapping
from vmdriver.model.plan import LaunchPlan, MachineUser
from vmdriver.service import admin_client

SHAPES = "256:64,1024:64,4096:64,4096:1024"
TOUCH = "import os,time; m=bytearray(os.urandom(1<<20))*{mib}; open('/tmp/touched','w'); time.sleep(1e9)"


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
        return json.loads((self.directory / "record.json").read_text())

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


class Plain:
    """The same machine with the same memory under a libvirt of our own: what QEMU and libvirt need for the same work."""

    def __init__(self, sandbox: Sandbox) -> None:
        files = sandbox.driver.state / "plain-files"
        shutil.rmtree(files, ignore_errors=True)
        files.mkdir()
        files.chmod(0o755)
        own = sandbox.driver.state / "plain" / "etc"
        own.mkdir(parents=True, exist_ok=True)
        shutil.copy(
            sandbox.driver.state / "libvirt" / "etc" / "qemu.conf", own / "qemu.conf"
        )
        self.libvirt = PlainLibvirt(own.parent)
        self.image = files / "image"
        plan = LaunchPlan.model_validate(sandbox.record()["plan"])
        suspended = sandbox.directory / "suspended"
        disks = []
        for disk in plan.disks:
            copy = files / f"{disk.role}.img"
            if disk.role == "seed":
                copy.write_bytes(b"\0" * 2**20)
            else:
                subprocess.run(["cp", "-p", disk.path, copy], check=True)
            copy.chmod(0o666)
            disks.append(disk.model_copy(update={"path": str(copy)}))
        console, memory = files / "console.log", files / "memory"
        console.write_bytes(b"")
        subprocess.run(
            ["cp", "-p", "--sparse=always", suspended / "memory", memory], check=True
        )
        console.chmod(0o666)
        memory.chmod(0o666)
        lease = plan.network.lease.model_copy(update={"tap": "vmdbench"})
        network = plan.network.model_copy(update={"lease": lease, "namespace": None})
        changes = {
            "user": MachineUser(
                uid=65533, gid=65533
            ),  # not the sandbox's: it is busy then
            "wall": (),
            "domain": "bench-plain",
            "domain_uuid": str(uuid.uuid4()),
            "disks": tuple(disks),
            "network": network,
        }
        plan = plan.model_copy(update={**changes, "console": str(console)})
        saved = (suspended / "domain.xml").read_text()
        emulator = shutil.which("qemu-system-x86_64") or ""
        text = for_restore(
            *(saved, plan, "bench", str(memory), ReadOnlyMapping()), emulator=emulator
        )
        write_save_image(self.image, text, (suspended / "state").read_bytes())
        self.domain = self.libvirt.connection.defineXML(text)
        self.restore()
        self.domain.resume()

    def monitor(self, command: str, **arguments: Any) -> Any:
        text = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(libvirt_qemu.qemuMonitorCommand(self.domain, text, 0))[
            "return"
        ]

    def write(self) -> tuple[float, float, int]:
        """Seconds in which a stopped QEMU writes its memory into a file, until that is durable, and the file's size. It
        goes on afterwards.
        """
        self.domain.suspend()
        descriptor = os.open(self.image, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        begun = time.perf_counter()
        self.monitor("migrate-set-parameters", **{"max-bandwidth": 2**40})
        libvirt_qemu.qemuMonitorCommandWithFiles(
            self.domain,
            '{"execute":"getfd","arguments":{"fdname":"f"}}',
            [descriptor],
            0,
        )
        self.monitor("migrate", uri="fd:f")
        while self.monitor("query-migrate")["status"] not in {"completed", "failed"}:
            time.sleep(0.004)
        written = time.perf_counter() - begun
        os.fdatasync(descriptor)  # ours is durable when it says so
        took = time.perf_counter() - begun
        size = os.fstat(descriptor).st_size
        os.close(descriptor)
        self.domain.resume()
        return written, took, size

    def save(self) -> float:
        return timed(lambda: self.domain.save(str(self.image)))

    def restore(self) -> float:
        """libvirt's own restore of its own save file, up to the running machine."""
        took = timed(lambda: self.libvirt.connection.restore(str(self.image)))
        self.domain = self.libvirt.connection.lookupByUUID(self.domain.UUID())
        return took

    def end(self) -> None:
        self.domain.destroy()
        self.domain.undefine()


def shape(
    driver: Process, gateway: Gateway, image: str, ram: int, touched: int, rounds: int
) -> dict[str, float]:
    sandbox = Sandbox(
        driver, gateway, request_of(f"m{ram}-{touched}", image, ram, touched)
    )
    gateway.wait_hello(sandbox.id)
    gateway.shell(
        sandbox.id, "while [ ! -e /tmp/touched ]; do sleep 0.1; done", timeout_s=300
    )
    result: dict[str, list[float]] = defaultdict(list)
    result["still_booted"] = [
        sandbox.snapshot(f"booted{n}") for n in range(rounds + 1)
    ][1:]
    steps: list[dict[str, float]] = []
    stored = 0
    for number in range(rounds + 1):
        suspend_s = sandbox.suspend()
        if number == 0:
            plain = Plain(sandbox)
        stored = sandbox.record()["memory"]["stored_bytes"]
        written_s, write_s, plain_size = plain.write()
        save_s = plain.save()
        restore_s = plain.restore()
        resume_s = sandbox.start()
        if number == 0:
            continue  # caches are filled by the first
        for key, value in (
            ("suspend", suspend_s),
            ("resume", resume_s),
            ("write", write_s),
            ("save", save_s),
            ("restore", restore_s),
            ("size", stored / plain_size),
            ("still", sandbox.snapshot(f"s{number}")),
            ("written", written_s),
        ):
            result[key].append(value)
        steps.append(sandbox.record()["last_restore"])
    plain.end()
    sandbox.delete()
    found = {key: median(values) for key, values in result.items()}
    found["cold"] = sandbox.create_s
    found["stored_mib"] = stored / 2**20
    found["steps"] = {k: median([s[k] for s in steps]) for k in steps[0]}  # type: ignore[assignment]
    return found


def show(shapes: dict[str, dict[str, Any]]) -> None:
    rows = []
    for name, v in shapes.items():
        rows.append(
            (
                name,
                f"suspend {v['suspend']:.2f} s = {v['suspend'] / v['write']:.2f} x QEMU's write, {v['suspend'] / v['save']:.2f} x virsh save; "
                f"resume {v['resume']:.2f} s = {v['resume'] / v['cold']:.2f} x cold boot, {v['resume'] / v['restore']:.2f} x virsh restore; "
                f"snapshot stands still {v['still_booted']:.2f} s = {v['still_booted'] / v['written']:.2f} x QEMU's write, "
                f"after a resume {v['still']:.2f} s = {v['still'] / v['written']:.2f} x; "
                f"stored {v['stored_mib']:.0f} MiB = {v['size']:.2f} x QEMU's file",
            )
        )
    table("RAM / touched by the workload (goals: 1.2, -, 0.15, 1.2, 1.1)", rows)
    first = next(iter(shapes.values()))["steps"]
    total = sum(first.values())
    print("\nWhere a resume's time goes")
    for step, seconds in first.items():
        print(
            f"  {step.ljust(20)} {seconds * 1e3:7.0f} ms  {'#' * round(60 * seconds / total)}"
        )


def show_forks(found: dict[str, float]) -> None:
    cold = found["cold_s"]
    table(
        "A new sandbox, CreateSandbox -> supervisor started (512 MiB)",
        [
            ("cold", f"{cold:.2f} s"),
            (
                "from a template",
                f"{found['fork_s']:.2f} s = {found['fork_s'] / cold:.2f} (goal 0.12)",
            ),
            (
                "from the warm pool",
                f"{found['warm_s']:.2f} s = {found['warm_s'] / cold:.2f} (goal 0.03)",
            ),
            (
                "8 forks at once",
                f"{found['eight_s']:.2f} s = {found['eight_s'] / found['fork_s']:.2f} x one (goal 2)",
            ),
            (
                "PSS of an idle fork",
                f"{found['fork_pss']:.0f} MiB = {found['fork_pss'] / found['cold_pss']:.2f} of a cold one's (goal 0.2)",
            ),
        ],
    )


def wait_template(driver: Process, waiting: int) -> None:
    deadline = time.monotonic() + 120
    while not any(
        t["waiting"] >= waiting
        for t in admin_client.list_templates(driver.state / "run" / "admin.sock")
    ):
        if time.monotonic() > deadline:
            raise RuntimeError("no template")
        time.sleep(0.1)


def forks(state: Path, gateway: Gateway, address: str, rounds: int) -> dict[str, float]:
    image, found = f"{address}/demo:1", {}
    off = ("--templates-enabled", "false")
    with Process(state, gateway, address, *off) as driver:
        times, memory = [], []
        for number in range(rounds + 1):
            sandbox = Sandbox(
                driver, gateway, request_of(f"cold{number}", image, 512, 0)
            )
            gateway.wait_hello(sandbox.id)
            times.append(sandbox.create_s)
            memory.append(sandbox.pss_mib())
            sandbox.delete()
        found["cold_s"], found["cold_pss"] = median(times[1:]), median(memory)
    with Process(state, gateway, address, "--templates-enabled", "true") as driver:
        first = Sandbox(driver, gateway, request_of("first", image, 512, 0))
        wait_template(driver, 0)
        first.delete()
        times = []
        for number in range(rounds + 1):
            sandbox = Sandbox(
                driver, gateway, request_of(f"fork{number}", image, 512, 0)
            )
            times.append(sandbox.create_s)
            sandbox.delete()
        found["fork_s"] = median(times[1:])
        found["eight_s"] = median(
            [eight(driver, gateway, image, n, found) for n in range(rounds)]
        )
    with Process(
        state, gateway, address, "--templates-enabled", "true", "--warm-pool", "1"
    ) as driver:
        times = []
        for number in range(rounds + 1):
            wait_template(driver, 1)
            time.sleep(0.5)
            sandbox = Sandbox(
                driver, gateway, request_of(f"warm{number}", image, 512, 0)
            )
            times.append(sandbox.create_s)
            sandbox.delete()
        found["warm_s"] = median(times[1:])
    return found


def eight(
    driver: Process, gateway: Gateway, image: str, number: int, found: dict[str, float]
) -> float:
    messages = [request_of(f"eight{number}-{n}", image, 512, 0) for n in range(8)]
    begun = time.perf_counter()
    for message in messages:
        driver.stub.CreateSandbox(pb.CreateSandboxRequest(sandbox=message))
    for message in messages:
        wait_reason(driver.stub, message.id, "Running")
    took = time.perf_counter() - begun
    sandboxes = [Sandbox.__new__(Sandbox) for _ in messages]
    for sandbox, message in zip(sandboxes, messages, strict=True):
        sandbox.driver, sandbox.stub, sandbox.gateway, sandbox.id = (
            driver,
            driver.stub,
            gateway,
            message.id,
        )
        gateway.wait_hello(sandbox.id)
    found["fork_pss"] = median([sandbox.pss_mib() for sandbox in sandboxes])
    for sandbox in sandboxes:
        sandbox.delete()
    return took


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-forks", action="store_true")
    parser.add_argument("--shapes", default=SHAPES, help="RAM:TOUCHED,... in MiB")
    arguments = parser.parse_args()
    rounds = max(5, arguments.rounds)
    shapes_wanted = [tuple(map(int, s.split(":"))) for s in arguments.shapes.split(",")]
    gateway, figures = Gateway(), {}
    state = Path(tempfile.mkdtemp(prefix="vmdriver-bench-"))
    state.chmod(0o755)
    (state / "boot").symlink_to(WORK / "boot")
    subprocess.run(["ip", "tuntap", "add", "vmdbench", "mode", "tap"], check=True)
    subprocess.run(["ip", "link", "set", "vmdbench", "up"], check=True)
    try:
        with registry(state / "registry") as address:
            push(WORK / "demo-image", "demo", f"{address}/demo:1")
            if not arguments.no_forks:
                figures["forks"] = forks(state, gateway, address, rounds)
                show_forks(figures["forks"])
            with Process(
                state, gateway, address, "--templates-enabled", "false"
            ) as driver:
                shapes = {
                    f"{ram} / {touched} MiB": shape(
                        driver, gateway, f"{address}/demo:1", ram, touched, rounds
                    )
                    for ram, touched in shapes_wanted
                }
            figures["shapes"] = shapes
            show(shapes)
    finally:
        subprocess.run(["ip", "link", "del", "vmdbench"], check=False)
        gateway.close()
        shutil.rmtree(state, ignore_errors=True)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    assert INSTANCE
    sys.exit(main())
