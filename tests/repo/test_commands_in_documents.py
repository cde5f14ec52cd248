"""Commands that a document, an alert or the explanation of a reason names can be given as they stand there."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from vmdriver.cli.main import _parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *("README.md", "SECURITY.md", "CONTRIBUTING.md", "dashboards/alerts.yml"),
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
    "vmdriver/model/reasons.toml",
]
_QUOTED = re.compile(r"`(?:sudo )?vmdriver ([^`]+)`")
_BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
_IN_A_BLOCK = re.compile(r"^vmdriver ((?:.*\\\n)*.*)$", re.MULTILINE)


def commands(page: str) -> Iterator[str]:
    """Without the program's name, comments, and arguments that may be left out; each of several alternatives."""
    text, known = (ROOT / page).read_text(), groups(_parser())
    blocks = "\n".join(_BLOCK.findall(text))
    for found in (*_QUOTED.findall(text), *_IN_A_BLOCK.findall(blocks)):
        whole = re.sub(r"\s#\s.*|\\\n|\[[A-Z.]+\]", "", found).replace("...", "")
        first, *others = re.sub(r"\{\{.*?\}\}", "X", whole).split(" | ")
        group = shlex.split(first)[0]
        for one in (first, *others):
            words = [word.strip("[]").split("|") for word in shlex.split(one)]
            if words[0][0] not in known:  # `images ls | gc`
                words.insert(0, [group])
            yield from (" ".join(chosen) for chosen in product(*words))


def groups(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Commands below it."""
    found = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def leaf(words: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser of that command, and its arguments."""
    parser = _parser()
    while words and (below := groups(parser)):
        if words[0] not in below:
            raise LookupError(f"there is no command {words[0]}")
        parser, words = below[words[0]], words[1:]
    return parser, words


def fault(command: str) -> str:
    """What is wrong with it; "" if nothing is. Arguments may be left out, as where a text speaks of a command."""
    try:
        parser, words = leaf(command.split())
    except LookupError as error:
        return str(error)
    options = {flag for action in parser._actions for flag in action.option_strings}
    flags = [word.partition("=")[0] for word in words if word.startswith("-")]
    if unknown := [flag for flag in flags if flag not in options]:
        return f"there is no {unknown[0]}"
    taken, plain = 0, 0
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("-"):
            continue
        action = parser._option_string_actions.get(before)
        takes = action is not None and action.nargs != 0
        taken, plain = taken + takes, plain + (not takes)
    places = [a for a in parser._actions if not a.option_strings]
    return "" if plain <= len(places) else f"{plain} arguments, not {len(places)}"


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
