"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.repo.measure import Tree

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    p for p in sorted((ROOT / "vmdriver").rglob("*.py")) if "_proto" not in p.parts
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, "a file is one thing, of 400 lines at most"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or 0) - node.lineno + 1
            assert size <= 50, f"{node.name} has {size} lines; 50 at most"


def test_a_class_is_small_with_all_that_it_inherits() -> None:
    """Slicing one into bases makes more files, not less of it."""
    too_large = {
        size.name: f"{size.lines} lines (300 at most), {size.methods} methods (30)"
        for size in Tree(ROOT).classes()
        if size.lines > 300 or size.methods > 30
    }
    assert too_large == {}


def test_inherited_size_is_counted(tmp_path: Path) -> None:
    (tmp_path / "vmdriver").mkdir()
    (tmp_path / "vmdriver" / "ground.py").write_text(
        "class Ground:\n    def a(self):\n        pass\n"
    )
    (tmp_path / "vmdriver" / "top.py").write_text(
        "from vmdriver import ground\nfrom vmdriver.ground import Ground as G\n"
        "class One(G):\n    def b(self): ...\n"
        "class Two(One, ground.Ground): ...\n"
    )
    sizes = {
        c.name.split(".")[-1]: (c.lines, c.methods) for c in Tree(tmp_path).classes()
    }
    assert sizes == {"Ground": (3, 1), "One": (5, 2), "Two": (6, 2)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_public_says_its_contract(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module says what it is"
    for node in tree.body:
        if isinstance(
            node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


PORTS = ROOT / "vmdriver" / "lifecycle" / "ports"


def methods(node: ast.ClassDef) -> dict[str, str | None]:
    """Public methods of a class with their docstrings."""
    return {
        m.name: ast.get_docstring(m)
        for m in node.body
        if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)
        and not m.name.startswith("_")
    }


def port_named(text: str) -> dict[str, str | None]:
    """Methods of the port that a docstring names as lifecycle.ports.FILE.CLASS."""
    named = re.search(r"lifecycle\.ports\.(\w+)\.(\w+)", text)
    if named is None:
        return {}
    for node in ast.parse((PORTS / f"{named[1]}.py").read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == named[2]:
            return methods(node)
    raise AssertionError(f"there is no port {named[0]}")


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if "lifecycle" not in p.parts],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_a_method_says_its_contract_or_its_port_does(path: Path) -> None:
    """What a port says of a method is not said again by those that implement it, whose docstring,
    or whose module's, names the port.
    """
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
            continue
        above = [ast.get_docstring(node) or "", ast.get_docstring(tree) or ""]
        said = port_named("\n".join(above))
        for name, text in methods(node).items():
            # What has a base may have its docstrings from there (inspect.getdoc).
            assert text or said.get(name) or node.bases, f"{node.name}.{name}"
            assert not (text or "").startswith("See ports"), f"{node.name}.{name}"


def test_no_folder_or_file_is_a_drawer() -> None:
    for path in SOURCES:
        assert path.stem not in {"utils", "util", "helpers", "common", "misc"}


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [
        ROOT / name for name in listing.stdout.splitlines() if (ROOT / name).is_file()
    ]


def test_nothing_names_a_machines_own_paths() -> None:
    own = re.compile("/" + r"(work|farm|home)/[a-z]")
    for path in tracked():
        if path.suffix in {".py", ".md", ".toml", ".proto", ".sh", ""}:
            match = own.search(path.read_text(errors="replace"))
            assert match is None, f"{path}: {match}"


def test_the_changelog_and_decisions_are_kept() -> None:
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
    assert re.search(
        r"^## \d{4}-\d{2}-\d{2}", (ROOT / "DECISIONS.md").read_text(), re.MULTILINE
    )


@pytest.mark.parametrize(
    "script",
    [
        *(f"scripts/{n}" for n in ("prepare-host", "demo", "test", "storm", "interop")),
        "scripts/bench",
        "images/build-boot-files",
        "images/build-demo-image",
    ],
)
def test_a_script_finds_what_is_in_sbin(script: str) -> None:
    """After Debian's plain `su`, root has its user's PATH: the demo ended with "useradd: not found"."""
    text = (ROOT / script).read_text()
    beginning = re.split(r"^(?:cd|here=)", text, flags=re.MULTILINE)[0]
    found = subprocess.run(
        ["/bin/sh", "-c", beginning + "\ncommand -v useradd"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.strip().endswith("/sbin/useradd"), found.stderr
