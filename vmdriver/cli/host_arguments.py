"""Arguments of the commands about what a host has for its sandboxes: images, devices."""

from __future__ import annotations

import argparse
from typing import Any, Protocol


class Leaf(Protocol):
    """Makes a command that takes every setting, and prints JSON if asked to."""

    def __call__(
        self, commands: Any, *, name: str, text: str
    ) -> argparse.ArgumentParser:
        """The command's parser."""


def add(commands: Any, leaf: Leaf) -> None:
    """All of them."""
    text = "list, prepare and clear up images of a running driver"
    actions = _group(commands, "images", text)
    leaf(actions, name="ls", text="list those that are prepared")
    text = "prepare one before anybody needs it"
    one = leaf(actions, name="prefetch", text=text)
    one.add_argument("reference", help="as a request would name it")
    one = leaf(actions, name="gc", text="remove what nobody needs and limits forbid")
    one.add_argument("--dry-run", action="store_true", help="only say what would go")
    text = "devices of this host that sandboxes may have"
    actions = _group(commands, "devices", text)
    text = "list them, and who has them; works without a running driver"
    leaf(actions, name="ls", text=text)


def _group(commands: Any, name: str, text: str) -> Any:
    group = commands.add_parser(name, help=text, description=text)
    return group.add_subparsers(dest="action", required=True, metavar="ACTION")
