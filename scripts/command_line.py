"""The command line as pages describe it: docs/commands.md, the manual page, completion."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

_SETTING = "set_"


def every_command(
    one: argparse.ArgumentParser, name: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that does something, by its words."""
    groups = [a for a in one._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield name, one
    for group in groups:
        for word, sub in group.choices.items():
            yield from every_command(sub, f"{name} {word}".strip())


def is_setting(action: argparse.Action) -> bool:
    """Or the file of all of them."""
    return action.dest.startswith(_SETTING) or action.dest == "config"


def own(one: argparse.ArgumentParser) -> list[argparse.Action]:
    """Without --help and what every command takes."""
    return [
        action
        for action in one._actions
        if not is_setting(action) and not isinstance(action, argparse._HelpAction)
    ]


def takes_settings(one: argparse.ArgumentParser) -> bool:
    """Whether each of them is a flag of its."""
    return any(action.dest.startswith(_SETTING) for action in one._actions)
