"""Which digest a name was resolved to when it was used first, for names that are kept to it.

A file of names and digests, the one that was kept last at its end. Blocking.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

from vmdriver.errors import InvalidRequest
from vmdriver.host.plain_file import read_start
from vmdriver.oci import files
from vmdriver.oci.reference import Reference, parse

_log = logging.getLogger(__name__)
_MOST = 4 * 2**20


class KeptNames:
    """`repositories` (host/path): only their names are kept. `path`: the file, made when the first
    one is.
    """

    def __init__(self, path: Path, repositories: tuple[str, ...]) -> None:
        self._path, self._repositories = path, repositories
        self._known: dict[str, str] | None = None
        self._keeping = threading.Lock()
        """Both published names are kept by a driver's first create, at the same time."""

    def digest(self, reference: str) -> str:
        """What that name is kept to; "": nothing yet, or it is none of them."""
        found = self._mine(reference)
        return self._names().get(str(found), "") if found is not None else ""

    def last(self, beginning: str) -> str:
        """The name of that beginning that was kept last, or ""."""
        names = [name for name in self._names() if name.startswith(beginning)]
        return names[-1] if names else ""

    def keep(self, reference: str, digest: str) -> None:
        """Durably, in place of what it was kept to before; no effect for other names. OSError."""
        found = self._mine(reference)
        if found is None:
            return
        with self._keeping:
            names = {**self._names()}
            if names.pop(str(found), "") == digest:
                return
            names[str(found)] = digest
            part = self._path.with_name(f".work-{self._path.name}")
            part.write_text(json.dumps(names, indent=1))
            files.publish(part, self._path, mode=0o600)
            self._known = names
        _log.info("%s is %s from now on", found, digest)

    def _mine(self, reference: str) -> Reference | None:
        try:
            found = parse(reference)
        except InvalidRequest:
            return None
        if found.digest or f"{found.host}/{found.path}" not in self._repositories:
            return None
        return found

    def _names(self) -> dict[str, str]:
        if self._known is None:
            self._known = read(self._path)
        return self._known


def read(path: Path) -> dict[str, str]:
    """Name -> digest. What cannot be read counts for nothing: names are resolved anew."""
    try:
        found = json.loads(read_start(os.path.realpath(path), _MOST))
        return {str(name): str(digest) for name, digest in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        _log.warning("%s cannot be read, its names are resolved anew: %s", path, error)
        return {}
