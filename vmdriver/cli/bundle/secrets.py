"""Values that are secret on this host, looked for once more in everything that is packed: what a
program of somebody else's wrote into a log is in no list of fields.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

from vmdriver.cli.bundle.contents import manifests
from vmdriver.cli.bundle.disclosure import WITHHELD
from vmdriver.cli.unread import known_sandboxes
from vmdriver.config import Config, hidden
from vmdriver.host.plain_file import read_start
from vmdriver.host.visible import visible
from vmdriver.model.logins import logins_in
from vmdriver.oci.trust import HOST_REGISTRIES, LOGINS
from vmdriver.storage.layout import Layout

_SHORTEST = 8
"""What is shorter is also found where it is no secret."""
_MOST = 4 * 2**20
_ORDINARY = {"PATH", "HOME", "LANG", "TERM", "SHELL", "USER", "PWD", "HOSTNAME"}
_OF_USERS = {
    *("environment", "driver_config", "parameters", "drop_in_environment", "value"),
    *("contents", "saved", "undo"),
}
"""Fields of records and ledgers whose values are somebody's own."""


class Secrets:
    """What is known of them. Reads; no file that is missing or damaged keeps it from the others.
    `environments`: of this process and of a driver that runs.
    """

    def __init__(
        self,
        config: Config,
        layout: Layout,
        environments: Sequence[Mapping[str, str]] = (),
    ) -> None:
        self._known: set[str] = set()
        self._ordinary: set[str] = set()
        for name in known_sandboxes(layout):
            files = layout.sandbox(name)
            self._add(_text(files.token))
            self._of_document(_json(files.record))
            for line in _text(files.ledger).splitlines():
                self._of_document(_parsed(line))
            for path in manifests(files):
                self._of_document(_json(path))
        for path in layout.templates.glob("*/manifest.json"):
            self._of_document(_json(path))
        self._of_settings(config)
        for environment in environments:
            self._of_process(environment)
        self._lengths = self._by_beginning()

    def scrubbed(self, text: str) -> str:
        """Without any of them. In one walk: whoever has many of them keeps nobody waiting."""
        parts, begin, end = [], 0, 0
        lengths = self._lengths
        for at in range(len(text) - _SHORTEST + 1):
            if (those := lengths.get(text[at : at + _SHORTEST])) is None:
                continue
            for length in those:
                if at + length <= end:
                    break
                if text[at : at + length] in self._known:
                    if at >= end:
                        parts += [text[begin:at], WITHHELD]
                    begin = end = at + length
                    break
        return "".join((*parts, text[begin:]))

    def _by_beginning(self) -> dict[str, list[int]]:
        """How long those are that begin so, the longest first."""
        self._known -= self._ordinary
        found: dict[str, set[int]] = {}
        for secret in self._known:
            found.setdefault(secret[:_SHORTEST], set()).add(len(secret))
        return {name: sorted(those, reverse=True) for name, those in found.items()}

    def _of_settings(self, config: Config) -> None:
        """What they say, and what is in the files that they name."""
        for table in config.extending.extension.values():
            self._add(table)
        for key in (config.gateway.guest_tls_key, config.remote.tls_key):
            self._add(_text(key))
        images = config.images
        own = images.image_auth_file
        for path in [own] if own else [Path(name) for name in LOGINS]:
            self._of_logins(_json(path))
        mirrors = _text(images.image_registries_conf or HOST_REGISTRIES)
        for text in (*_texts(config.model_dump(mode="json")), *_texts(_toml(mirrors))):
            self._add(list(logins_in(text)))

    def _of_process(self, environment: Mapping[str, str]) -> None:
        """Proxies' logins, and what is secret by its name."""
        for name, value in environment.items():
            self._add(list(logins_in(value)))
            if hidden(name, value) != hidden("", value):
                self._add(value)

    def _add(self, value: Any) -> None:
        """Every text in it, as it is and line by line, and as JSON, XML and a log write it."""
        for text in _texts(value):
            for part in {text.strip(), *(line.strip() for line in text.splitlines())}:
                if len(part) >= _SHORTEST:
                    self._known.update(_written(part))

    def _of_document(self, value: Any) -> None:
        """Of a record, a ledger's line, or what is left of one."""
        if isinstance(value, list):
            for inner in value:
                self._of_document(inner)
        if not isinstance(value, Mapping):
            return
        for name, inner in value.items():
            if name in {"id", "name", "workspace", "namespace", "image"}:
                self._ordinary.update(_texts(inner))
            elif name == "environment" and "disks" in value:
                self._of_environment(inner, value.get("environment_by"))
            elif name in _OF_USERS:
                self._add(_without_ordinary(inner))
            else:
                self._of_document(inner)

    def _of_environment(self, found: Any, by: Any) -> None:
        """A plan's: most of it is the driver's own, and told elsewhere."""
        if not isinstance(found, Mapping):
            return
        names = {"OPENSHELL_USER_ENVIRONMENT", *(by if isinstance(by, Mapping) else ())}
        self._add([found[name] for name in names if name in found])

    def _of_logins(self, document: Any) -> None:
        """containers-auth.json(5)."""
        auths = document.get("auths") if isinstance(document, Mapping) else None
        for login in auths.values() if isinstance(auths, Mapping) else ():
            self._add(login)
            encoded = login.get("auth", "") if isinstance(login, Mapping) else ""
            with contextlib.suppress(binascii.Error, ValueError):
                name_and_password = base64.b64decode(encoded).decode(errors="replace")
                self._add(name_and_password)
                self._add(name_and_password.partition(":")[2])


def _written(secret: str) -> Iterator[str]:
    """As it may be found."""
    yield secret
    if secret.isascii() and secret.isalnum():
        return
    # What is not printable, half of a character among it, is escaped by each in its own way.
    printable = secret.encode(errors="replace").decode()
    for one in (
        *(secret, visible(secret), repr(secret)[1:-1]),
        *(escape(secret), quote(printable), quote(printable, safe="")),
    ):
        once = json.dumps(one)[1:-1]
        yield from (one, once, json.dumps(once)[1:-1])


def _without_ordinary(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {k: v for k, v in value.items() if k not in _ORDINARY}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _text(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return read_start(path, _MOST).decode(errors="replace")
    except OSError:
        return ""


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return None


def _json(path: Path | None) -> Any:
    return _parsed(_text(path))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
