"""What the network's modules share: netlink sockets, here or in a namespace, its errors as ours,
and the kernel's settings.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vmdriver.errors import NetworkError
from vmdriver.host.confined import netns
from vmdriver.host.threads import alone


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn netlink's and the kernel's errors into ours."""
    try:
        yield
    except NetlinkError as error:
        raise NetworkError(
            f"{what}: {error.args[-1]}", detail=f"netlink error {error.code}"
        ) from error
    except OSError as error:
        raise NetworkError(f"{what}: {error.strerror}", detail=str(error)) from error


@asynccontextmanager
async def netlink() -> AsyncIterator[Any]:
    """Of the host's own network namespace."""
    async with AsyncIPRoute() as connection:
        yield connection


@asynccontextmanager
async def netlink_in(namespace: str | Path) -> AsyncIterator[Any]:
    """Of the namespace of that name, or file: a socket belongs to where it was made, whoever uses
    it.
    """
    with ExitStack() as made:  # also what is made when nobody waits for it any more
        own = await alone("netlink", _socket_in, namespace, made)
        async with AsyncIPRoute(use_socket=own) as connection:
            yield connection


def _socket_in(namespace: str | Path, made: ExitStack) -> socket.socket:
    with netns.entered(namespace):
        return made.enter_context(netlink_socket())


def netlink_socket() -> socket.socket:
    """Of the namespace that this thread is in."""
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    made = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
    made.bind((0, 0))
    return made


def attribute(message: Any, name: str) -> Any:
    """One of a message's, or None."""
    return message.get_attr(name)


def kind(link: Any) -> str:
    """A link's, such as veth; "" for one of the kernel's own."""
    info = attribute(link, "IFLA_LINKINFO")
    return str(info.get_attr("IFLA_INFO_KIND")) if info is not None else ""


@contextmanager
def ignore_missing() -> Iterator[None]:
    """For removing a link that may be gone."""
    try:
        yield
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise


def write_sysctls(values: Mapping[str, str]) -> None:
    """Names below net/, of the namespace that this thread is in. NetworkError."""
    for name, value in values.items():
        path = Path("/proc/sys/net") / name
        try:
            if path.read_text().strip() != value:
                path.write_text(value)
        except OSError as error:
            if "ipv6" in name and error.errno == errno.ENOENT:
                continue  # a host without IPv6
            raise NetworkError(
                f"sysctl net/{name} cannot be set to {value}: {error.strerror}"
            ) from error
