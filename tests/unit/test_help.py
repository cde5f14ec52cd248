"""What --help says of each command, and what a mistake does: for people who see it first."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from vmdriver.cli import main, main_gateway_launched
from vmdriver.cli.main import parser

_LONGEST = 45
"""Lines: a screen or two."""


def commands(
    one: argparse.ArgumentParser, *words: str
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command that does something, by its words."""
    groups = [a for a in one._actions if isinstance(a, argparse._SubParsersAction)]
    for group in groups:
        for word, sub in group.choices.items():
            yield from commands(sub, *words, word)
    if not groups:
        yield words, one


EVERY = dict(commands(parser()))


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_a_commands_help_is_of_that_command(
    words: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for action in EVERY[words]._actions:
        if action.help is not argparse.SUPPRESS:
            assert action.help, f"{action.dest} is explained"
            assert all(flag in text for flag in action.option_strings)
    if words == ("serve",):
        assert "--state-dir" in text
    else:
        assert len(text.splitlines()) <= _LONGEST
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_a_mistake_is_said_shortly(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--bogus"])
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert "error: " in text
    assert words == ("serve",) or len(text.splitlines()) <= 12


def test_every_command_still_takes_every_setting() -> None:
    found = parser().parse_args(["ls", "--state-dir", "/x", "--mem-mib=7"])
    assert (found.set_state_dir, found.set_mem_mib) == ("/x", "7")


def test_the_first_page_lists_the_commands_and_how_they_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in EVERY:
        assert f" {words[0]} " in text
    assert "Ends with 0: done; 1: " in text
    with pytest.raises(SystemExit):
        main(["exec", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for told in ("125: it was not run", "127: there is no such", "every word of it"):
        assert told in text


def test_a_driver_that_a_gateway_launches_lists_its_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main_gateway_launched(["--help"])
    assert "--state-dir" in capsys.readouterr().out
