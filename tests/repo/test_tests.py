"""Rules of the tests: what they may know of the driver's inside."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmdriver.lifecycle.ports.worlds import Ports

ROOT = Path(__file__).resolve().parents[2]
TESTS = [
    *(p for p in sorted((ROOT / "tests").rglob("*.py")) if "fixtures" not in p.parts),
    *sorted((ROOT / "scripts").glob("bench*.py")),
]
MAY_REACH_DEEP = {
    f"tests/fakes/{name}.py" for name in ("driver", "inside", "disk_driver")
}
"""Where a test asks for what it must know of a driver; each question once."""
NOT_OURS = {"os", "sys", "ctypes", "asyncio", "self", "cls", "super()"}
OWN_PARTS = {
    # Tests of one part that look into it, or take hold of what it does.
    "tests/contract/test_dirty_state.py": {"_in_the_way"},
    "tests/contract/test_hostile_images.py": {"_cache", "_policy"},
    "tests/contract/test_hypervisor.py": {
        *{"_world", "_connection", "_hand_over", "_migrate"}
    },
    "tests/contract/test_images.py": {"_cache"},
    "tests/contract/test_killed_builders.py": {"_ENVIRONMENT"},
    "tests/contract/test_publication.py": {"_publish"},
    "tests/contract/test_slow_probe.py": {"_ask_host"},
    "tests/contract/test_supervisors.py": {"_lay_out"},
    "tests/fakes/composed.py": {"_ask"},
    "tests/fakes/gateway.py": {"_answer"},
    "tests/netns/test_host_network.py": {"_ENVIRONMENT"},
    "tests/unit/test_accelerator.py": {"_refresh", "_task"},
    "tests/unit/test_wire.py": {"_encode_condition"},
}
"""This list may become shorter."""


def attributes(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, what it is taken from, and its name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield node.lineno, ast.unparse(node.value), node.attr


@pytest.mark.parametrize("path", TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_it_does_not_reach_deep_into_a_driver(path: Path) -> None:
    """`driver.record("s1")`, not `driver.manager.workers["s1"].record`: how it is made may change."""
    name = str(path.relative_to(ROOT))
    if name in MAY_REACH_DEEP:
        return
    allowed = OWN_PARTS.get(name, set())
    used = set()
    for line, of, attribute in attributes(path):
        where = f"{name}:{line}: {of}.{attribute}"
        assert attribute != "workers", f"{where}: ask the fake driver"
        private = attribute.startswith("_") and not attribute.startswith("__")
        if private and of not in NOT_OURS:
            assert attribute in allowed, f"{where}: what is private may change"
            used.add(attribute)
    assert used == allowed, "it is not needed any more: shorten the list"


FAKES = sorted((ROOT / "tests" / "fakes").glob("*.py"))
MOST_LINES = 300


@pytest.mark.parametrize("path", FAKES, ids=lambda p: p.name)
def test_a_fake_is_small_and_alone_in_a_file_of_its_name(path: Path) -> None:
    """FakeMemoryStore, which stands for the port MemoryStore, is in memory_store.py."""
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES, "what makes it two things?"
    for name in fakes_in(text):
        words = re.sub(r"(?<!^)(?=[A-Z])", "_", name.removeprefix("Fake"))
        assert path.stem == words.lower(), f"{name} belongs into {words.lower()}.py"


@pytest.mark.parametrize("path", TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_fake_is_among_the_fakes(path: Path) -> None:
    """Where it is typed as strictly as what it stands for, and where the next one looks for it."""
    if path not in FAKES:
        assert fakes_in(path.read_text()) == []


def fakes_in(text: str) -> list[str]:
    classes = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef))
    return [node.name for node in classes if node.name.startswith("Fake")]


def test_every_port_of_the_core_has_its_fake() -> None:
    """Which `Ports` takes: so the type checker says whether it is one."""
    ports = {field.name for field in dataclasses.fields(Ports)}
    assert ports <= {path.stem for path in FAKES}
