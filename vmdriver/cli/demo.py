"""vmdriver demo: its arguments, and what they mean."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_FOLDER = Path("/var/lib/vmdriver-demo")


def add(commands: Any) -> None:
    """The command among the others."""
    text = "drive one sandbox through its life on this host, as a gateway would"
    one = commands.add_parser("demo", help=text, description=text)
    one.add_argument(
        "--in",
        dest="folder",
        type=Path,
        default=_FOLDER,
        metavar="FOLDER",
        help=f"where it works; default {_FOLDER}",
    )
    one.add_argument(
        "--image",
        default="",
        help="its image, with python3 and a shell; default: one of this host's packages",
    )
    one.add_argument(
        "--boot-files", type=Path, help="default: those that were installed"
    )
    one.add_argument(
        "--keep", action="store_true", help="leave its folder there, images and all"
    )


def demo(arguments: argparse.Namespace) -> int:
    """Only then its parts are imported."""
    from vmdriver.demo.demo import Wanted, demo

    boot: Path | None = arguments.boot_files
    wanted = Wanted(
        arguments.folder.absolute(),
        arguments.image,
        boot and boot.absolute(),
        arguments.keep,
    )
    return demo(wanted)
