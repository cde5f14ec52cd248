"""What there is to compare with: an embedded libvirt of this process's own, without a driver."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # libvirt forks in this process

import libvirt
import libvirt_qemu

from tests.bench.sandbox import Sandbox, timed
from vmdriver.host import reaper
from vmdriver.hypervisor.connection import start_event_loop
from vmdriver.hypervisor.domain_xml import for_restore
from vmdriver.hypervisor.embedded import embed_uri
from vmdriver.hypervisor.memory.machine_memory import write_save_image
from vmdriver.hypervisor.wall.sealing import ReadOnlyMapping
from vmdriver.model.plan import Disk, LaunchPlan, MachineUser


@contextlib.contextmanager
def tap() -> Iterator[None]:
    """The one that plain machines have."""
    subprocess.run(["ip", "tuntap", "add", "vmdbench", "mode", "tap"], check=True)
    try:
        subprocess.run(["ip", "link", "set", "vmdbench", "up"], check=True)
        yield
    finally:
        subprocess.run(["ip", "link", "del", "vmdbench"], check=False)


@cache
def reap_beside() -> None:
    """Once in a process: reap QEMUs that have ended, as the driver does: where PID 1 does not, libvirt looks for 40 s whether one is gone. In
    a thread, since this one is in libvirt meanwhile; it is woken by the handler in C (signal.set_wakeup_fd).
    """
    reaper.inherit()
    ended, told = os.pipe()
    os.set_blocking(told, False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    reaps = reaper.Reaper()

    def reap() -> None:
        while os.read(ended, 4096):
            reaps.reap()

    threading.Thread(target=reap, name="reaper", daemon=True).start()


class PlainLibvirt:
    """An embedded libvirt of this process's own: what `virsh start` asks for, without virsh's own start."""

    def __init__(self, root: Path) -> None:
        start_event_loop()
        reap_beside()
        self.connection = libvirt.open(embed_uri(root))

    def start(self, xml: Path, status: Path) -> float:
        """Seconds from virDomainCreate until the same guest says the same thing. Defining is not counted."""
        status.write_bytes(b"\0" * 65536)
        domain = self.connection.defineXML(xml.read_text())
        begun = time.perf_counter()
        domain.create()
        while not status.read_bytes().startswith(b"phase=started"):
            if time.perf_counter() - begun > 60:
                raise RuntimeError("the plain machine did not start")
            time.sleep(0.005)
        took = time.perf_counter() - begun
        domain.destroy()
        domain.undefine()
        return took


def plain_domain(state: Path, sandbox_id: str) -> tuple[Path, Path]:
    """The driver's own domain XML under another name, on copies of its files and a tap of its own."""
    domain = json.loads((state / "sandboxes" / sandbox_id / "record.json").read_text())[
        "plan"
    ]["domain"]
    text = (state / "libvirt" / "etc" / "qemu" / f"{domain}.xml").read_text()
    text = text[text.index("<domain") :]
    files = state / "plain-files"
    files.mkdir(exist_ok=True)
    source = state / "sandboxes" / sandbox_id
    for name in ("seed.img", "status.img", "console.log"):
        if (source / name).exists():  # the seed is gone while the machine is down
            subprocess.run(["cp", "-p", source / name, files / name], check=True)
    layer = json.loads((source / "record.json").read_text())["layers"][-1]
    subprocess.run(["cp", "-p", layer, files / "root.qcow2"], check=True)
    text = text.replace(layer, str(files / "root.qcow2"))
    text = text.replace(str(source), str(files)).replace(domain, "bench-plain")
    text = re.sub(r"<uuid>[^<]*</uuid>", "", text)
    text = re.sub(r"target dev='vmd\w+'", "target dev='vmdbench'", text)
    # What libvirt is told to leave out is ours, too.
    text = re.sub(r"(?s)<qemu:capabilities>.*?</qemu:capabilities>", "", text)
    # Outside of every part of the wall but the user: QEMU itself, in this namespace.
    text = re.sub(
        r"<emulator>[^<]*</emulator>",
        f"<emulator>{shutil.which('qemu-system-' + os.uname().machine)}</emulator>",
        text,
    )
    xml = state / "plain.xml"
    xml.write_text(text)
    configuration = state / "plain" / "etc"
    configuration.mkdir(parents=True, exist_ok=True)
    shutil.copy(state / "libvirt" / "etc" / "qemu.conf", configuration / "qemu.conf")
    return xml, files / "status.img"


def _one_layer(disk: Disk, copy: Path) -> Disk:
    """All layers above the image in one: they lie in a folder that is their machine's user's alone."""
    convert = ["qemu-img", "convert", "--force-share", "-O", "qcow2"]
    convert += ["-B", disk.backing[-1], "-F", "raw"]
    subprocess.run([*convert, disk.path, str(copy)], check=True)
    return disk.model_copy(update={"backing": disk.backing[-1:]})


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
            elif disk.backing:
                disk = _one_layer(disk, copy)
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
        assert plan.user is not None
        changes = {
            # Not the sandbox's, which is busy then. What machines share is their group's to read.
            "user": MachineUser(uid=65533, gid=plan.user.gid),
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
