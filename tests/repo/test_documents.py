"""What documents say of files is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HISTORY = {"CHANGELOG.md", "DECISIONS.md"}
"""Say how things were."""
DOCUMENTS = [
    *(path.name for path in ROOT.glob("*.md") if path.name not in HISTORY),
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
_QUOTED = re.compile(r"`([\w.-]+(?:/[\w.-]+)*/?)`")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


PLACES = (ROOT, ROOT / "vmdriver", ROOT / "vmdriver" / "lifecycle")
FOLDERS = {"lifecycle", *(path.name for path in ROOT.iterdir() if path.is_dir())}
MODULES = {
    path.name
    for folder in ("vmdriver", "tests", "scripts")
    for path in (ROOT / folder).rglob("*.py")
}


def is_there(name: str) -> bool:
    """A path from the root, from vmdriver/ or from lifecycle/, or the bare name of a module."""
    return name in MODULES or any((place / name).exists() for place in PLACES)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_names_exist(document: str) -> None:
    quoted = _QUOTED.findall((ROOT / document).read_text())
    named = [
        name
        for name in quoted
        if name.endswith((".py", ".md")) or name.split("/")[0] in FOLDERS
    ]
    assert [name for name in named if not is_there(name)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    path = ROOT / document
    links = [link for link in _LINK.findall(path.read_text()) if "//" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_first_pages_are_short_and_found() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") < 200
    for document, most in ("docs/architecture.md", 150), ("CONTRIBUTING.md", 60):
        assert (ROOT / document).read_text().count("\n") <= most
        assert f"({document})" in readme
