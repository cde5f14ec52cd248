"""Arguments of the commands about what a host has for its sandboxes: images, devices, volumes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Protocol

_VOLUMES = (
    ("ls", "list them, and which sandboxes have them"),
    ("create", "make an empty one"),
    ("rm", "remove one, with all that is on it"),
    ("grow", "make one larger; its file system follows at the next mount"),
    ("import", "make one of a raw ext4 image"),
    ("export", "write one to a new file, as a raw image"),
)


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
    _add_volumes(commands, leaf)


def _add_volumes(commands: Any, leaf: Leaf) -> None:
    text = (
        "list, make, remove, grow, import and export volumes, which outlive sandboxes"
    )
    actions = _group(commands, "volume", text)
    for action, meaning in _VOLUMES:
        one = leaf(actions, name=action, text=meaning)
        if action == "ls":
            continue
        one.add_argument("name", help="the volume's name")
        text = "whose it is; default: none's"
        one.add_argument("--workspace", default="", metavar="NAME", help=text)
        if action in {"create", "grow"}:
            text = "its size, which it takes on disk only as it is used"
            one.add_argument(
                "--size-mib", type=int, required=True, metavar="MIB", help=text
            )
        if action in {"import", "export"}:
            text = "the raw image"
            one.add_argument("file", type=Path, metavar="FILE", help=text)
        if action == "export":
            text = "as it was at that sandbox's snapshot, whoever has it now"
            one.add_argument(
                "--snapshot", default="", metavar="SANDBOX/NAME", help=text
            )


def _group(commands: Any, name: str, text: str) -> Any:
    group = commands.add_parser(name, help=text, description=text)
    return group.add_subparsers(dest="action", required=True, metavar="ACTION")
