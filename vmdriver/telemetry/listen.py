"""Where metrics may be asked for, and where they may be sent."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

_UNIX = "unix:"
_LONGEST = 107
"""unix(7): sun_path, without the NUL at its end."""


@dataclass(frozen=True)
class Listen:
    """Where: a path, or a host and a port."""

    path: Path | None = None
    host: str = ""
    port: int = 0


def parse_listen(text: str) -> Listen:
    """`unix:/PATH`, `127.0.0.1:PORT` or `[::1]:PORT`. ValueError: nobody outside this host is to
    see who runs what here, and there is no password.

    >>> parse_listen("127.0.0.1:9464")
    Listen(path=None, host='127.0.0.1', port=9464)
    """
    if text.startswith(_UNIX):
        path = Path(text.removeprefix(_UNIX))
        if not path.is_absolute():
            raise ValueError("a socket's path is absolute: unix:/run/vmdriver/metrics")
        if len(os.fsencode(path)) > _LONGEST or not str(path).isprintable():
            raise ValueError(f"a socket's path is text of at most {_LONGEST} bytes")
        return Listen(path=path)
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback or not port.isascii() or not port.isdigit():
        raise ValueError("is neither unix:/PATH nor a loopback address with a port")
    if not 0 < int(port) < 65536:
        raise ValueError("a port is between 1 and 65535")
    return Listen(host=host, port=int(port))


def _check_address(text: str) -> str:
    if text:
        parse_listen(text)
    return text


def _check_collector(url: str) -> str:
    found = urlsplit(url)
    if url and (found.scheme not in {"http", "https"} or not found.hostname):
        raise ValueError("is no http:// or https:// URL")
    if found.username is not None:  # gRPC would take it for the host, and log it
        raise ValueError("may hold no user and password")
    return url


MetricsAddress = Annotated[str, AfterValidator(_check_address)]
"""A setting that `parse_listen` reads, or "" for none."""
CollectorUrl = Annotated[str, AfterValidator(_check_collector)]
"""A setting: a collector's http:// or https:// address without a login, or "" for none."""
