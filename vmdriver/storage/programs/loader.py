"""A dynamic loader that looks for nothing in the file system that it runs in.

The supervisor is root in a guest whose files are an image's. Where that image says which
libraries every program is to load first, or has some of its own, ours must not listen.
"""

from __future__ import annotations

import re

_NOWHERE = b"/sys/"
"""In a guest the kernel's own file system, in which nobody makes files."""
_LISTS = re.compile(rb"/[!-~]*/ld[!-~]*\.(?:preload|cache|path)(?=\0)")
"""Of glibc: libraries for every program, and where libraries are; of musl: the latter."""
_FOLDERS = re.compile(rb"/[!-~]*lib[!-~]*/(?=\0)|/lib:/[!-~]*(?=\0)")
"""Where each of them looks at last."""


def self_contained(loader: bytes) -> bytes | None:
    """The same program, of the same size, with these paths leading nowhere; libraries are found by
    the program's own RPATH. None for a loader that has no such paths: it is not known what it does.
    """
    loader, lists = _LISTS.subn(_nowhere, loader)
    loader, folders = _FOLDERS.subn(_nowhere, loader)
    return loader if lists and folders else None


def _nowhere(path: re.Match[bytes]) -> bytes:
    length = len(path[0])
    return (_NOWHERE + b"0" * length)[: length - 1] + path[0][-1:]
