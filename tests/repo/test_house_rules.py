"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    p for p in sorted((ROOT / "vmdriver").rglob("*.py")) if "_proto" not in p.parts
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, "a file has 300 lines, 400 at most"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = node.end_lineno - node.lineno + 1
            assert size <= 60, f"{node.name} has {size} lines; 40 are meant, 60 at most"
        if isinstance(node, ast.ClassDef):
            size = node.end_lineno - node.lineno + 1
            assert size <= 260, f"class {node.name} has {size} lines; 200 are meant"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_public_says_its_contract(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module says what it is"
    for node in tree.body:
        if isinstance(
            node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


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
