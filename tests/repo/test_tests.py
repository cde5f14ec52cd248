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
    "tests/contract/test_launcher_watch.py": {"_ORDERLY_END_S"},
    "tests/contract/test_publication.py": {"_publish"},
    "tests/contract/test_slow_probe.py": {"_ask_host"},
    "tests/contract/test_supervisors.py": {"_lay_out"},
    "tests/fakes/composed.py": {"_ask"},
    "tests/unit/test_accelerator.py": {"_AGAIN_S", "_refresh", "_task"},
    "tests/unit/test_edges.py": {"_WAIT_FOR_PREDECESSOR_S"},
}
"""This list may become shorter."""


def private_names(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of what is private to a module or class and is used elsewhere: as an attribute, by
    an import, or replaced by `setattr`.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        match node:
            case ast.Attribute() if ast.unparse(node.value) not in NOT_OURS:
                names = [node.attr]
            case ast.ImportFrom() if (node.module or "").startswith("vmdriver."):
                names = [alias.name for alias in node.names]
            case ast.Call(func=ast.Attribute(attr="setattr"), args=args):
                texts = [a.value for a in args[:2] if isinstance(a, ast.Constant)]
                names = [str(text).rpartition(".")[2] for text in texts]
        for name in names:
            if name.startswith("_") and not name.startswith("__") and name != "_proto":
                yield getattr(node, "lineno", 0), name


@pytest.mark.parametrize("path", TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_it_does_not_reach_deep_into_a_driver(path: Path) -> None:
    """`driver.record("s1")`, not `driver.manager.workers["s1"].record`: how it is made may change."""
    name = str(path.relative_to(ROOT))
    if name in MAY_REACH_DEEP:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            where = f"{name}:{node.lineno}: {ast.unparse(node)}"
            assert node.attr != "workers", f"{where}: ask the fake driver"
    allowed, used = OWN_PARTS.get(name, set()), set()
    for line, private in private_names(path):
        assert private in allowed, f"{name}:{line}: {private} may change"
        used.add(private)
    assert used == allowed, "it is not needed any more: shorten the list"


SCENARIOS = sorted((ROOT / "tests" / "scenario").glob("*.py"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda p: p.name)
def test_a_scenario_needs_no_other_one(path: Path) -> None:
    """What several have in common is in stage.py and lives.py."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = node.module or ""
        assert ".test_" not in module, f"{path.name}:{node.lineno}: from {module}"


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
