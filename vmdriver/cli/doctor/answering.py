"""Whether the disks behind paths answer: one that hangs is not to hold up whoever asks why.

A thread that waits for a hung file system cannot be ended, and keeps its process from ending. So
another process looks, which is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmdriver.cli.doctor.finding import Finding
from vmdriver.config import Config
from vmdriver.host import process

_PATIENCE_S = 5.0


async def silent(paths: Sequence[Path]) -> set[Path]:
    """Those that nothing is said of in time; what is not there is answered."""
    found = await asyncio.gather(*map(_is_silent, paths))
    return {path for path, hangs in zip(paths, found, strict=True) if hangs}


async def _is_silent(path: Path) -> bool:
    looking = await process.spawn(["stat", "--", str(path)])
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await looking.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            looking.kill()
        return True
    return False


async def silent_findings(config: Config) -> list[Finding]:
    """A failure for each setting whose path does not answer: whoever goes on would wait for it."""
    named = list(_named(config))
    hanging = await silent([path for _, path in named])
    return [
        Finding(setting, "fail", *_said(path))
        for setting, path in named
        if path in hanging
    ]


def folder_finding(path: str) -> Finding:
    """Of a folder of the host's that does not answer."""
    text, advice = _said(Path(path))
    return Finding(f"host folder {path}", "fail", text, advice, machines_start=True)


def _said(path: Path) -> tuple[str, str]:
    text = (
        f"{path} does not answer within {_PATIENCE_S:g} s: what is mounted there hangs"
    )
    return text, "have its server answer, or unmount it (cat /proc/mounts lists all)"


def _named(config: Config) -> Iterator[tuple[str, Path]]:
    """Settings that name what a driver reads itself."""
    for _, section in config:
        for key, value in section:
            if isinstance(value, Path):
                yield key, value
