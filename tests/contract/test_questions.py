"""What libvirt asks about a CPU before a machine runs, and machines for which it does not: with real ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from tests.contract.conftest import qemu_owner
from tests.contract.test_hypervisor import (  # noqa: F401 - fixtures, too
    MARK,
    owner_of,
    plan,
    tap,
)
from vmdriver.host.threads import Threads
from vmdriver.hypervisor import domain_xml
from vmdriver.hypervisor.abilities import Abilities
from vmdriver.hypervisor.machines import Machines
from vmdriver.hypervisor.memory.machine_memory import DomainMemory
from vmdriver.hypervisor.questions import verdict
from vmdriver.hypervisor.questions.trial import QuestionsTrial, Spared, nothing_spared
from vmdriver.hypervisor.wall.box import BOX_PARTS
from vmdriver.hypervisor.wall.boxes import Boxes
from vmdriver.lifecycle.ports.memory import SavedMachine
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import LaunchPlan

pytestmark = pytest.mark.parametrize("hypervisor", ["QEMU"], indirect=True)
_ELEMENT = "{http://libvirt.org/schemas/domain/qemu/1.0}capabilities"


def trial(hypervisor: Any, embedded_root: Path, results: Path) -> QuestionsTrial:
    """In the box that machines have."""
    return QuestionsTrial(
        connection=hypervisor.connection,
        abilities=Abilities(hypervisor.connection, qemu_owner()),
        boxes=Boxes(embedded_root, parts=BOX_PARTS),
        name=f"test-questions-{os.getpid()}",
        owner=qemu_owner(),
        results=results,
    )


async def begun(hypervisor: Any, name: str) -> int:
    """How many machines of that name libvirt has begun: the lines of its log."""
    root = Path(hypervisor.connection.uri.partition("root=")[2])
    log = root / "log" / "qemu" / f"{name}.log"
    return log.read_text().count("starting up libvirt version") if log.exists() else 0


async def names(hypervisor: Any) -> list[str]:
    def listed(connection: Any) -> list[str]:
        return [machine.name() for machine in connection.listAllDomains()]

    found: list[str] = await hypervisor.connection.call("list", listed)
    return found


async def test_it_is_tried_once_for_each_libvirt_and_qemu(
    hypervisor: Any, embedded_root: Path, tmp_path: Path
) -> None:
    results = tmp_path / "questions.json"
    first = trial(hypervisor, embedded_root, results)
    assert await first.spared("qemu"), verdict.load(results)
    assert await begun(hypervisor, first.name) == 2, "with, and without"
    assert first.name not in await names(hypervisor), "nothing is left of it"
    assert not list((embedded_root / "boxes").glob(f"{first.name}*"))
    assert await trial(hypervisor, embedded_root, results).spared("qemu")
    assert await begun(hypervisor, first.name) == 2, "the next driver knows it"
    kept = verdict.load(results)["qemu"]
    of_before = kept.model_copy(update={"about": "libvirt 8.0.0"})
    verdict.store(results, "qemu", of_before)
    assert await trial(hypervisor, embedded_root, results).spared("qemu")
    assert await begun(hypervisor, first.name) == 4, "libvirt is another one by now"
    assert verdict.load(results)["qemu"] == kept


async def test_a_machine_says_the_same_of_itself_and_a_lie_is_noticed(
    hypervisor: Any,
    embedded_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a machine that is another one without the questions, libvirt or QEMU says so."""
    results = tmp_path / "questions.json"
    other = domain_xml.render_still

    def with_less(*arguments: Any, asked: bool) -> str:
        text = other(*arguments, asked=asked)
        cpu = '<cpu mode="maximum"><feature name="avx2" policy="disable" /></cpu>'
        return text if asked else text.replace('<cpu mode="maximum" />', cpu)

    monkeypatch.setattr("vmdriver.hypervisor.questions.trial.render_still", with_less)
    assert not await trial(hypervisor, embedded_root, results).spared("qemu")
    assert "its CPU differs in 7.0:EBX" in verdict.load(results)["qemu"].reason


async def test_where_libvirt_refuses_machines_begin_in_its_ordinary_way(
    hypervisor: Any,
    embedded_root: Path,
    tmp_path: Path,
    plan: LaunchPlan,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = tmp_path / "questions.json"
    monkeypatch.setattr(domain_xml, "UNASKED", "no-such-capability")
    found = trial(hypervisor, embedded_root, results)
    assert not await found.spared("qemu")
    kept = verdict.load(results)["qemu"]
    assert "invalid qemu namespace capability 'no-such-capability'" in kept.reason
    machines = machines_of(hypervisor, embedded_root, found.spared)
    await machines.start(plan, MARK)
    assert await machines.observe(plan.domain) is DomainState.RUNNING
    assert not await is_unasked(hypervisor, plan.domain)
    await machines.destroy(plan.domain)


def machines_of(hypervisor: Any, root: Path, spared: Spared) -> Machines:
    abilities = Abilities(hypervisor.connection, qemu_owner())
    return Machines(
        hypervisor.connection, "test", abilities, boxes=Boxes(root), spared=spared
    )


async def is_unasked(hypervisor: Any, domain: str) -> bool:
    def look(connection: Any) -> str:
        return str(connection.lookupByName(domain).XMLDesc())

    root = Xml.fromstring(await hypervisor.connection.call("look", look))
    return root.find(_ELEMENT) is not None


async def everything_spared(_kind: str) -> bool:
    return True


@pytest.mark.parametrize("before", [everything_spared, nothing_spared])
@pytest.mark.parametrize("after", [everything_spared, nothing_spared])
async def test_memory_of_one_way_comes_back_in_the_other(
    hypervisor: Any,
    embedded_root: Path,
    folder: Path,
    plan: LaunchPlan,  # noqa: F811 - the fixture
    before: Spared,
    after: Spared,
) -> None:
    def both(spared: Spared) -> tuple[Machines, DomainMemory]:
        machines = machines_of(hypervisor, embedded_root, spared)
        memory = DomainMemory(
            hypervisor.connection,
            Threads("contract", 2),
            hypervisor.sealing,
            emulator=machines.emulator,
            spared=spared,
        )
        return machines, memory

    machines, memory = both(before)
    await machines.start(plan, MARK)
    assert await is_unasked(hypervisor, plan.domain) is (before is everything_spared)
    await memory.pause(plan.domain)
    path, owner = folder / "memory", owner_of(plan)
    path.touch()
    captured = await memory.capture(plan.domain, str(path), plan.memory_mib)
    assert 'mode="maximum"' in captured.cpu
    await machines.destroy(plan.domain)
    os.chown(path, owner.uid, owner.gid)
    machines, memory = both(after)
    saved = SavedMachine(captured.state, captured.domain_xml, str(path))
    await memory.load(plan, MARK, saved, str(folder / "scratch"))
    assert await is_unasked(hypervisor, plan.domain) is (after is everything_spared)
    await memory.go_on(plan.domain)
    assert await machines.observe(plan.domain) is DomainState.RUNNING
    await machines.destroy(plan.domain)
