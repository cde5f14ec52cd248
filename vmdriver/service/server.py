"""The gRPC server on a Unix socket that only its owner can reach."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import grpc
from grpc_reflection.v1alpha import reflection

from vmdriver._proto import admin_pb2, compute_driver_pb2
from vmdriver.errors import ConfigError
from vmdriver.host.unix_socket import MAX_PATH
from vmdriver.service.interceptor import ErrorInterceptor

COMPUTE_DRIVER = compute_driver_pb2.DESCRIPTOR.services_by_name[
    "ComputeDriver"
].full_name
ADMIN = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name
VOLUMES = f"{ADMIN.rpartition('.')[0]}.Volumes"
Server = grpc.aio.Server
_MAX_MESSAGE = 16 * 1024 * 1024
_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    ("grpc.so_reuseport", 0),
]
_FAR_OPTIONS = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # the one that gRPC obeys
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_concurrent_streams", 64),
]
"""gRPC's keepalive guide: a server ends connections that ask more often than it allows, which is
every 5 minutes unless it says so.
"""
_MOST_FAR_CALLS = 512
_WAIT_FOR_PREDECESSOR_S = 6.0


def check_path(path: Path, setting: str = "bind_socket") -> None:
    """ConfigError for a path that cannot be a socket's."""
    size = len(os.fsencode(path))
    if size > MAX_PATH:
        raise ConfigError(
            f"{setting}: the path is {size} bytes long, a Unix socket's may "
            f"have {MAX_PATH}",
            detail=str(path),
            resolution="choose a shorter path",
        )
    if not path.is_absolute():
        raise ConfigError(f"{setting}: {path} is not an absolute path")


def secure_directory(directory: Path) -> None:
    """Make it, or check that it is a directory of ours, and close it to others.
    ConfigError.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = directory.lstat()
    except OSError as error:
        raise ConfigError(
            f"bind_socket: {directory} cannot be made: {error.strerror}"
        ) from error
    if not stat.S_ISDIR(info.st_mode):
        raise ConfigError(
            f"bind_socket: {directory} is not a directory (links are not followed)"
        )
    if info.st_uid != os.geteuid():
        raise ConfigError(
            f"bind_socket: {directory} belongs to uid {info.st_uid}, not to us",
            resolution="choose a directory of your own for the socket",
        )
    # Closing a directory that others use (/run, /tmp) would break them.
    others = [p for p in directory.iterdir() if not p.is_socket()]
    if stat.S_IMODE(info.st_mode) & 0o077 and others:
        raise ConfigError(
            f"bind_socket: {directory} is open to others and holds {others[0].name}",
            resolution="give the socket a directory of its own",
        )
    directory.chmod(0o700)


async def _answers(path: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError as error:
        if error.errno in {errno.ECONNREFUSED, errno.ENOENT}:
            return False
        raise ConfigError(f"bind_socket: {path}: {error.strerror}") from error
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


async def remove_stale(path: Path) -> None:
    """Remove a socket of ours that nobody answers on. ConfigError for anything else
    that is there.
    """
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(info.st_mode):
        raise ConfigError(
            f"bind_socket: {path} exists and is not a socket",
            resolution="remove it, or choose another",
        )
    if info.st_uid != os.geteuid():
        raise ConfigError(
            f"bind_socket: {path} belongs to uid {info.st_uid}, not to us"
        )
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _WAIT_FOR_PREDECESSOR_S
    while await _answers(path):  # a driver that is being replaced may still be ending
        if loop.time() > deadline:
            raise ConfigError(
                f"bind_socket: another program answers on {path}",
                resolution="stop it, or choose another path",
            )
        await asyncio.sleep(0.1)
    path.unlink(missing_ok=True)


async def serve(
    path: Path, register: Callable[[grpc.aio.Server], None], *services: str
) -> grpc.aio.Server:
    """A started server on that path, mode 0600 in a directory 0700; `register` adds its
    services, whose full names are `services`: reflection tells clients what they look like.
    """
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=_OPTIONS)
    register(server)
    names = (*services, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return await _started(server, path)


async def serve_far(
    path: Path, register: Callable[[grpc.aio.Server], None]
) -> grpc.aio.Server:
    """The same for callers on other hosts, who come through TLS: that one service and nothing else,
    a bound on calls at one time, and an end for who does not answer any more.
    """
    server = grpc.aio.server(
        interceptors=[ErrorInterceptor()],
        options=[*_OPTIONS, *_FAR_OPTIONS],
        maximum_concurrent_rpcs=_MOST_FAR_CALLS,
    )
    register(server)
    return await _started(server, path)


async def _started(server: grpc.aio.Server, path: Path) -> grpc.aio.Server:
    check_path(path)
    secure_directory(path.parent)
    await remove_stale(path)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    path.chmod(0o600)
    return server
