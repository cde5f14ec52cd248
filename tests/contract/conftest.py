"""Ports, each on its fake and on the real thing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.serve import WORK
from tests.fakes.world import World
from vmdriver.host import facts
from vmdriver.host.lanes import Lanes
from vmdriver.hypervisor.abilities import Abilities
from vmdriver.hypervisor.connection import Connection, start_event_loop
from vmdriver.hypervisor.embedded import embed_uri, write_embedded_configuration
from vmdriver.hypervisor.machines import Machines
from vmdriver.hypervisor.wall.boxes import Boxes
from vmdriver.hypervisor.wall.sealing import Sealing
from vmdriver.lifecycle.ports.host import Ownership

TEST_NODE = """<node><cpu><mhz>1000</mhz><model>i686</model><active>2</active><nodes>1</nodes><sockets>1</sockets>
<cores>2</cores><threads>1</threads></cpu><memory>8000000</memory></node>"""


def qemu_owner() -> Ownership:
    ids, group = facts.user_ids("libvirt-qemu"), facts.group_id("kvm")
    assert ids is not None
    assert group is not None
    return Ownership(ids[0], group)


@pytest.fixture(scope="session")
def embedded_root() -> Iterator[Path]:
    """One for all: a process opens one embedded root in its life. Short, for libvirt's sockets."""
    root = Path(tempfile.mkdtemp(prefix="vmdc"))
    root.chmod(0o755)
    write_embedded_configuration(root, "libvirt-qemu", "kvm")
    yield root
    shutil.rmtree(root)


class Lasting(Connection):
    """One that is not closed: libvirt registers the embedded driver at each open, and a process may do that some twenty
    times (9.0: "Too many drivers, cannot register QEMU").
    """

    def __init__(self, uri: str, lanes: Lanes, opened: Any) -> None:
        super().__init__(uri, lanes)
        self._opened = opened

    def _open(self) -> Any:
        if self._connection is None:
            self._connection = self._opened
            if self._hints is not None:
                self._subscribe(self._connection, self._hints)
        return self._connection

    def close(self) -> None:
        self._connection = None


@pytest.fixture(scope="session")
def embedded(embedded_root: Path) -> Iterator[Any]:
    """libvirt's own connection to its driver there."""
    start_event_loop()
    connection = libvirt.open(embed_uri(embedded_root))
    yield connection
    connection.close()


@pytest.fixture(scope="session")
def boot_files(embedded_root: Path) -> Path:
    """Kernel and initramfs where QEMU's user can read them: the checkout may be below /root."""
    return Path(shutil.copytree(WORK / "boot" / "current", embedded_root / "boot"))


@pytest.fixture
def folder(embedded_root: Path) -> Path:
    """Where QEMU's user can reach a test's files: another pytest that begins closes the folders of `tmp_path`."""
    found = Path(tempfile.mkdtemp(dir=embedded_root))
    found.chmod(0o755)
    return found


@pytest.fixture(params=["fake", "libvirt test driver", "QEMU"])
async def hypervisor(
    request: pytest.FixtureRequest, tmp_path: Path, embedded_root: Path
) -> AsyncIterator[object]:
    """The port, which of them it is (`name`), and what is below it: a `world` or a `connection`."""
    if request.param == "fake":
        world = World()
        fake = FakeHypervisor(world, "test")
        fake.name, fake.world = "fake", world  # type: ignore[attr-defined]
        yield fake
        return
    lanes = Lanes("contract")
    if request.param == "libvirt test driver":
        node = tmp_path / "node.xml"
        node.write_text(TEST_NODE)
        connection = Connection(
            f"test://{node}", lanes
        )  # a private file: test:///default is shared in the process
    else:
        opened = request.getfixturevalue("embedded")
        connection = Lasting(embed_uri(embedded_root), lanes, opened)
    owner = qemu_owner() if os.geteuid() == 0 else Ownership(0, 0)
    boxes = Boxes(embedded_root)
    machines = Machines(connection, "test", Abilities(connection, owner), boxes=boxes)
    machines.name = request.param  # type: ignore[attr-defined]
    machines.connection = connection  # type: ignore[attr-defined]
    machines.sealing = Sealing(embedded_root)  # type: ignore[attr-defined]
    await machines.sealing.prepare()  # type: ignore[attr-defined]
    yield machines
    for found in await machines.marked():
        await machines.destroy(found.name)
    connection.close()
