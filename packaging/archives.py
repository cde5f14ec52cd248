"""Wheel and source archive, to the byte the same from the same source, wherever and by whom they are built.

usage: archives.py FOLDER SOURCE_DATE_EPOCH    in the source, with that in the environment, too
"""

from __future__ import annotations

import gzip
import sys
import tarfile
from pathlib import Path

from setuptools import build_meta


def settle(archive: Path, epoch: int) -> None:
    """Setuptools writes into a source archive who has built it, when, and with which umask."""
    part = archive.with_suffix(".part")
    with (
        tarfile.open(archive) as old,
        part.open("wb") as file,
        gzip.GzipFile("", "wb", 9, file, epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda one: one.name):
            member.mtime, member.pax_headers = epoch, {}
            member.uid = member.gid = 0
            member.uname = member.gname = "root"
            runs = member.isdir() or member.mode & 0o100
            member.mode = 0o755 if runs else 0o644
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    part.replace(archive)


def main(folder: str, epoch: str) -> int:
    name = build_meta.build_sdist(folder)
    settle(Path(folder, name), int(epoch))
    build_meta.build_wheel(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
