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
_TO_A_HEADING = re.compile(r"\]\(([^)#:]*)#([^)]+)\)|\bdocs: (docs/[\w-]+\.md)#(\S+)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LONGEST_PARAGRAPH = 600


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


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    text = _BLOCK.sub("", document.read_text())
    words = (re.sub(r"[^\w\- ]", "", title.lower()) for title in _HEADING.findall(text))
    return {each.strip().replace(" ", "-") for each in words}


@pytest.mark.parametrize("document", [*DOCUMENTS, "dashboards/alerts.yml"])
def test_links_to_a_heading_find_it(document: str) -> None:
    path = ROOT / document
    lost = []
    for beside, heading, below, named in _TO_A_HEADING.findall(path.read_text()):
        target = ROOT / below if below else path.parent / beside if beside else path
        if (heading or named) not in anchors(target):
            lost.append(f"{beside or below}#{heading or named}")
    assert lost == []


def test_a_heading_that_is_not_there_is_noticed() -> None:
    assert "when-something-is-wrong" in anchors(ROOT / "docs" / "operating.md")
    assert "no-such-heading" not in anchors(ROOT / "docs" / "operating.md")
    assert _TO_A_HEADING.findall("[a](b.md#c) [d](#e)\n docs: docs/f.md#g") == [
        ("b.md", "c", "", ""),
        ("", "e", "", ""),
        ("", "", "docs/f.md", "g"),
    ]


def test_every_page_is_found_from_the_first_one() -> None:
    readme = (ROOT / "README.md").read_text()
    linked = set(_LINK.findall(readme))
    assert [page for page in DOCUMENTS if page not in linked | {"README.md"}] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_an_extension_that_a_page_shows_can_be_loaded(document: str) -> None:
    for block in _PYTHON.findall((ROOT / document).read_text()):
        exec(compile(block, document, "exec"), {"__name__": "shown"})


def test_the_first_pages_are_short_and_found() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") < 200
    assert [
        line for line in readme.splitlines() if len(line) > _LONGEST_PARAGRAPH
    ] == []
    for document, most in ("docs/architecture.md", 150), ("CONTRIBUTING.md", 60):
        assert (ROOT / document).read_text().count("\n") <= most
        assert f"({document})" in readme
