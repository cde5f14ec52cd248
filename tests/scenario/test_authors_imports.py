"""What authors import: one module, and for one release more the places of 0.1.0."""

from __future__ import annotations

import importlib
import logging
import re
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vmdriver.extension as stable
from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from vmdriver.extensions.loader import load_extensions
from vmdriver.lifecycle.extending.moved import FOR_AUTHORS
from vmdriver.lifecycle.extending.participants import Registered

ROOT = Path(__file__).resolve().parents[2]
OLD = {
    "vmdriver.lifecycle.hooks": (
        *("Reason", "RestoreKind", "Everywhere", "OnRequest", "SandboxView"),
        *("HookContext", "PlanDraft", "EnvironmentDraft", "LifecycleExtension"),
        *("LaunchPlan", "Resources", "Refused"),
    ),
    "vmdriver.lifecycle.phases.api": (
        *("Phase", "Until", "Hold", "Context", "Call", "Extension"),
        *("Everywhere", "OnRequest", "SandboxView", "RestoreKind"),
    ),
    "vmdriver.lifecycle.phases.mutation": (
        *("Draft", "MutationPoint", "REQUEST_POINTS", "PLAN_POINTS", "Phase"),
    ),
}
MACHINERY = {
    "vmdriver.lifecycle.hooks": ("HOOKS", "hooks_of"),
    "vmdriver.lifecycle.phases.api": ("ENDING", "SET_UP", "HOLDING", "phases_of"),
    "vmdriver.lifecycle.phases.mutation": ("IMMUTABLE",),
}
SEAT = '''
from vmdriver.lifecycle.hooks import LifecycleExtension, OnRequest

taken = []


async def take(seat):
    taken.append(seat)


async def give_back(seat):
    if seat in taken:
        taken.remove(seat)


class Seat(LifecycleExtension):
    """Gives a sandbox a licence seat while its machine runs."""

    name = "seat"
    activation = OnRequest("seat")  # label openshell.io/extension.seat: "yes"

    async def configure_launch(self, context, draft):
        draft.set_environment("SEAT_SERVER", context.config["server"])

    async def before_launch(self, context, plan, environment):
        seat = f"seat-{plan.domain}"
        await context.save({"seat": seat})  # durable before it is taken
        await take(seat)

    async def after_launch_failed(self, context, reason):
        await give_back(
            context.saved.get("seat")
        )  # also after SIGKILL of the driver; idempotent
'''
"""As README of 0.1.0 (29bd4dd) has it, with a world for its seats."""
LICENCE = """
from __future__ import annotations

from vmdriver.errors import Exhausted
from vmdriver.lifecycle.phases.api import Context, Extension, Hold, Phase, Until
from vmdriver.lifecycle.phases.mutation import Draft


class licences:
    taken = set()

    @classmethod
    async def take(cls, owner):
        if cls.taken:
            return None
        cls.taken.add(owner)
        return "seat-1"

    @classmethod
    async def give_back(cls, owner):
        cls.taken.discard(owner)


class Licence(Extension):
    name = "licence"
    required = frozenset({Phase.BEFORE_CREATE})

    async def before_create(self, context: Context, draft: Draft) -> None:
        await context.hold("seat", context.sandbox.id, until=Until.DELETE)
        seat = await licences.take(context.sandbox.id)  # then the deed
        if seat is None:
            raise Exhausted("no licence is free")  # RESOURCE_EXHAUSTED, with this text
        draft.set_environment("LICENCE", seat)

    async def undo(self, context: Context, hold: Hold) -> None:
        await licences.give_back(hold.name)  # may never have been taken: fine
"""
"""As docs/extensions.md of 0.1.0 has it, with a world for its seats."""


@pytest.mark.parametrize(
    ("old", "name"), [(old, name) for old, names in OLD.items() for name in names]
)
def test_an_old_place_gives_the_same_object_and_names_the_new_one(
    old: str, name: str
) -> None:
    now = "CallPoint" if name == "Phase" else name
    wanted = re.escape(f"from vmdriver.extension import {now}")
    namespace: dict[str, Any] = {}
    with pytest.warns(DeprecationWarning, match=f"{wanted}$") as seen:
        exec(f"from {old} import {name}", namespace)
    assert namespace[name] is getattr(stable, now)
    assert {w.filename for w in seen} == {"<string>"}, "it names whoever imports"


@pytest.mark.parametrize(
    ("old", "name"), [(old, name) for old, names in MACHINERY.items() for name in names]
)
def test_an_old_place_still_has_what_was_never_meant_for_authors(
    old: str, name: str
) -> None:
    with pytest.warns(DeprecationWarning, match="not for authors"):
        assert getattr(importlib.import_module(old), name) is not None


@pytest.mark.parametrize("old", OLD)
def test_everything_of_an_old_place_can_be_imported_at_once(old: str) -> None:
    namespace: dict[str, Any] = {}
    with pytest.warns(DeprecationWarning, match="next release"):
        exec(f"from {old} import *", namespace)
    for name in OLD[old]:
        now = "CallPoint" if name == "Phase" else name
        assert namespace[name] is getattr(stable, now)


def test_an_old_place_can_be_imported_as_a_module() -> None:
    namespace: dict[str, Any] = {}
    exec("from vmdriver.lifecycle.phases import api, mutation", namespace)
    with pytest.warns(DeprecationWarning, match=r"vmdriver\.extension import Until"):
        assert namespace["api"].Until is stable.Until


@pytest.mark.parametrize("old", OLD)
def test_an_old_place_has_nothing_that_it_never_had(old: str) -> None:
    module = importlib.import_module(old)
    for name in ("no_such", "_shown", "API_VERSION"):
        assert not hasattr(module, name)


def test_what_an_author_imports_is_listed_and_versioned() -> None:
    assert set(stable.__all__) >= FOR_AUTHORS
    assert all(hasattr(stable, name) for name in stable.__all__)
    assert re.fullmatch(r"\d+\.\d+", stable.API_VERSION)


def test_authors_are_told_to_import_one_module_only() -> None:
    told = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    told += [ROOT / "vmdriver/cli/new_extension.py"]
    told += (ROOT / "vmdriver/extensions").glob("*.py")
    for path in told:
        found = re.findall(r"^from (vmdriver\.lifecycle\S*)", path.read_text(), re.M)
        shipped = path.name != "loader.py"
        assert not (found and shipped), f"{path.name} imports {found}"


@pytest.fixture
def of_0_1_0() -> Iterator[types.ModuleType]:
    """Both examples of 0.1.0's pages, imported as a module of somebody else's."""
    module = types.ModuleType("somebody_elses")
    sys.modules[module.__name__] = module  # as annotations are looked up
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        exec(compile(SEAT, "seat.py", "exec"), module.__dict__)
        exec(compile(LICENCE, "licence.py", "exec"), module.__dict__)
    texts = [str(w.message) for w in seen if w.category is DeprecationWarning]
    assert len(texts) == 8, texts
    yield module
    del sys.modules[module.__name__]


async def test_extensions_that_were_written_for_0_1_0_load_and_run(
    of_0_1_0: types.ModuleType,
) -> None:
    world = World()
    tables = {"seat": {"server": "seats.example:7000"}}
    made = [of_0_1_0.Seat(), of_0_1_0.Licence()]
    driver = FakeDriver(world, extensions=made, extension_configs=tables)
    await driver.manager.recover()
    labels = {"openshell.io/extension.seat": "yes"}
    await driver.manager.create(spec(labels=labels), None)
    await driver.settled()
    environment = world.seeds["s1"][0]
    assert environment["SEAT_SERVER"] == "seats.example:7000"
    assert environment["LICENCE"] == "seat-1"
    assert len(of_0_1_0.taken) == 1
    assert of_0_1_0.licences.taken == {"s1"}

    await driver.kill()
    made = [of_0_1_0.Seat(), of_0_1_0.Licence()]
    driver = FakeDriver(world, extensions=made, extension_configs=tables)
    await driver.manager.recover()
    await driver.manager.delete("s1", "")
    assert of_0_1_0.taken == []
    assert of_0_1_0.licences.taken == set()
    await driver.close()


def test_an_operator_is_told_of_an_installed_extension_that_imports_from_an_old_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "old_licence.py").write_text(LICENCE)
    facts = tmp_path / "old_licence-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: old-licence\n")
    entry = "[vmdriver.extensions]\nlicence = old_licence:Licence\n"
    (facts / "entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(str(tmp_path))
    (loaded,) = load_extensions(["licence"], Registered)
    assert loaded.name == "licence"
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "from vmdriver.extension import CallPoint" in "\n".join(told)
    assert all(
        text.startswith("extension licence: vmdriver.lifecycle.") for text in told
    )
