"""Commands that a document, an alert or the explanation of a reason names can be given as they stand there."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from vmdriver.cli.main import parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *("README.md", "SECURITY.md", "CONTRIBUTING.md", "dashboards/alerts.yml"),
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
    "vmdriver/model/reasons.toml",
]
COMMAND_LINE = parser()
_QUOTED = re.compile(r"`(?:sudo )?vmdriver ([^`]+)`")
_BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
_IN_A_BLOCK = re.compile(r"^vmdriver ((?:.*\\\n)*.*)$", re.MULTILINE)


def commands(page: str) -> Iterator[str]:
    """Without the program's name, comments, and arguments that may be left out; each of several alternatives."""
    text = (ROOT / page).read_text()
    blocks = "\n".join(_BLOCK.findall(text))
    for found in (*_QUOTED.findall(text), *_IN_A_BLOCK.findall(blocks)):
        whole = re.sub(r"\s#\s.*|\\\n|\[[A-Z.]+\]", "", found).replace("...", "")
        whole = whole.replace(" MIB", " 1")
        first, *others = re.sub(r"\{\{.*?\}\}", "X", whole).split(" | ")
        group = shlex.split(first)[0]
        for one in (first, *others):
            words = [word.strip("[]").split("|") for word in shlex.split(one)]
            if "invalid choice" in fault(words[0][0]):  # `images ls | gc`
                words.insert(0, [group])
            yield from (" ".join(chosen) for chosen in product(*words))


def fault(command: str) -> str:
    """What the command line says to it; "" if it takes it. Arguments may be left out, as where a text only speaks of a
    command: then there are some.
    """
    words = command.split()
    for _ in range(4):
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                COMMAND_LINE.parse_args(words)
        except SystemExit:
            text = said.getvalue().splitlines()[-1]
            if "are required: " not in text or "ACTION" in text:
                return "" if "are required: " in text else text
            words = [*words, "x"]
        else:
            return ""
    return said.getvalue()


@pytest.mark.parametrize("page", PAGES)
def test_a_command_that_a_page_names_is_one(page: str) -> None:
    faults = {command: fault(command) for command in commands(page)}
    assert {c: f for c, f in faults.items() if f} == {}


def test_what_is_none_is_noticed() -> None:
    assert list(commands("README.md"))
    for wrong in (
        *("fly", "ls --wings", "snapshot fly", "inspect ID AGAIN"),
        *("images gc NOW", "resume ID --warm"),
    ):
        assert fault(wrong), wrong
    assert fault("snapshot create ID NAME --disk-only") == ""


@pytest.mark.parametrize("page", PAGES)
def test_scripts_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    named = re.findall(
        r"(?<![\w/])(?:\./)?((?:scripts|images)/[a-z][\w-]*)\b(?![./])", text
    )
    assert [name for name in named if not (ROOT / name).exists()] == []
