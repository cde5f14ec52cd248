"""What --help says of each command, and what a mistake does: for people who see it first."""

from __future__ import annotations

import pytest

from scripts.command_line import every_command, own
from vmdriver.cli import main, main_gateway_launched
from vmdriver.cli.main import parser

_LONGEST = 45
"""Lines: a screen or two."""


EVERY = dict(every_command(parser()))


@pytest.mark.parametrize("name", EVERY)
def test_a_commands_help_is_of_that_command(
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for action in own(EVERY[name]):
        assert action.help, f"{action.dest} is explained"
        assert all(flag in text for flag in action.option_strings)
    if name == "serve":
        assert "--state-dir" in text
    else:
        assert len(text.splitlines()) <= _LONGEST
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("name", EVERY)
def test_a_mistake_is_said_shortly(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--bogus"])
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert "error: " in text
    assert name == "serve" or len(text.splitlines()) <= 12


def test_every_command_still_takes_every_setting() -> None:
    found = parser().parse_args(["ls", "--state-dir", "/x", "--mem-mib=7"])
    assert (found.set_state_dir, found.set_mem_mib) == ("/x", "7")


def test_the_first_page_lists_the_commands_and_how_they_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in EVERY:
        assert f" {name.split()[0]} " in text
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
