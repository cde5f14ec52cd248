"""Every reason that somebody can see is explained, and every page that is made from code is new."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vmdriver.cli.main import main
from vmdriver.model.reasons import sections

ROOT = Path(__file__).resolve().parents[2]
_WORD = re.compile(r"[A-Z][a-z]+(?:[A-Z][a-z0-9]*)*")
ELSEWHERE = {"_proto", "testing", "demo"}
NAMES_ONLY = {"extension.py", "moved.py", "__init__.py"}
"""Hold names of classes as text."""
NO_REASONS = {
    *("CreateSandbox", "DeleteSandbox", "GetCapabilities", "GetSandbox"),
    *("ListSandboxes", "StartSandbox", "StopSandbox", "ValidateSandboxCreate"),
    *("WatchSandboxes", "ComputeDriver", "Admin"),  # services and their calls
    *("Cmd", "Entrypoint", "Env", "User", "WorkingDir"),  # an image's configuration
    *("CapAmb", "CapBnd", "CapEff", "CapInh", "CapPrm", "NoNewPrivs", "Seccomp"),
    *("Features", "Gid", "Groups", "Pss", "Rss", "State", "Uid"),  # of /proc
    *("By", "Ei", "Gi", "Ki", "Mi", "MiB", "Pi", "Ti"),  # units
    *("True", "False", "Ready"),  # a condition's status and type
    *("Normal", "Warning"),  # an event's type
    *("T", "Watched"),  # types
}


def words() -> dict[str, str]:
    """Every word in the code that could be a reason, and where."""
    found = {}
    for path in sorted((ROOT / "vmdriver").rglob("*.py")):
        parts = path.relative_to(ROOT / "vmdriver").parts
        if parts[0] in ELSEWHERE or path.name in NAMES_ONLY:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Constant):
                continue
            text = node.value
            if isinstance(text, str) and _WORD.fullmatch(text):
                found[text] = f"{path.relative_to(ROOT)}:{node.lineno}"
    return found


def test_every_reason_in_the_code_is_explained_and_no_other() -> None:
    explained = {e.reason for entries in sections().values() for e in entries}
    there = {w: where for w, where in words().items() if w not in NO_REASONS}
    missing = {word: where for word, where in there.items() if word not in explained}
    assert missing == {}, "explain it in vmdriver/model/reasons.toml"
    assert explained - there.keys() == set(), "nothing says that any more"


def given() -> dict[str, str]:
    """Whatever is given as a reason, or is an error's, whether it looks like one or not."""
    found = {}
    for path in sorted((ROOT / "vmdriver").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.keyword | ast.Assign) or not says_reason(node):
                continue
            value = node.value
            where = f"{path.relative_to(ROOT)}:{value.lineno}"
            text = value.value if isinstance(value, ast.Constant) else None
            if isinstance(text, str) and re.fullmatch(r"[A-Z]\w+", text):
                found[text] = where
            is_made = isinstance(value, ast.JoinedStr) and " " not in ast.unparse(value)
            assert not is_made, f"{where}: a reason is one word, written down"
    return found


def says_reason(node: ast.keyword | ast.Assign) -> bool:
    if isinstance(node, ast.keyword):
        return node.arg == "reason"
    return isinstance(node.targets[0], ast.Name) and node.targets[0].id == "reason"


def test_whatever_is_given_as_a_reason_is_explained() -> None:
    """Also one that the pattern above would not take for a reason."""
    explained = {e.reason for entries in sections().values() for e in entries}
    found = given()
    assert len(found) > 50
    assert {w: where for w, where in found.items() if w not in explained} == {}


NAMES_IN_PAGES = {
    *("CreateSandbox", "EnsureWorkspace", "GetCapabilities", "ValidateSandboxCreate"),
    *("CallPoint", "DeprecationWarning", "GetExtensionCapabilities", "LaunchPlan"),
    "SandboxSpec",
}


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_a_reason_that_a_page_names_is_one(page: str) -> None:
    """Not the class of an error, which nobody sees."""
    explained = {e.reason for entries in sections().values() for e in entries}
    words = re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z0-9]*)+)`", (ROOT / page).read_text())
    alerts = re.findall(r"alert: (\w+)", (ROOT / "dashboards/alerts.yml").read_text())
    assert {*words} - explained - {*alerts} - NAMES_IN_PAGES == set()


def test_what_is_said_is_a_sentence_and_said_once() -> None:
    every = [e for entries in sections().values() for e in entries]
    assert len({e.reason for e in every}) == len(every)
    for entry in every:
        assert entry.means.endswith("."), entry.reason
        assert not entry.what_to_do or entry.what_to_do.endswith((".", "`")), (
            entry.reason
        )


def test_pages_that_are_made_from_code_are_new() -> None:
    done = subprocess.run(
        ["scripts/generate-docs", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_explain_says_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "diskfull"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("DiskFull\n  There is no space on the disk")
    assert main(["explain", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)
    assert {"reason", "means", "what_to_do"} == set(every[0])
    assert len(every) == sum(len(entries) for entries in sections().values())
    assert main(["explain", "DiskFul"]) == 1
    assert "perhaps DiskFull" in capsys.readouterr().err
    assert main(["explain", "other", "--json"]) == 1, "as metrics call an extension's"
    said = capsys.readouterr()
    assert "an extension's own reasons" in said.err
    assert said.out == ""
