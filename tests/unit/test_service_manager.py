"""What systemd is told of a driver: on a real socket, in the order in which it happens."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmdriver.cli.reload import reload
from vmdriver.config import Loaded, load
from vmdriver.config.service_manager import service_manager
from vmdriver.errors import ConfigError
from vmdriver.host.service_manager import ServiceManager


class Listener:
    """The other end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address[0] == "@" else address)
        self._socket.settimeout(5)

    def hears(self) -> list[str]:
        return self._socket.recv(4096).decode().splitlines()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["a path", "an abstract name"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    path = str(tmp_path / "notify")
    name = path if request.param == "a path" else f"@vmdriver-{os.getpid()}"
    found = Listener(name)
    yield found
    found.close()


async def test_a_start_goes_on_is_done_and_then_the_watchdog_is_fed(
    listener: Listener,
) -> None:
    ready = asyncio.Event()
    manager = ServiceManager(listener.address, watchdog_s=0.03)
    told = asyncio.create_task(manager.accompany(ready))
    first = await asyncio.to_thread(listener.hears)
    assert first == ["EXTEND_TIMEOUT_USEC=60000000", "STATUS=starting"]
    ready.set()
    assert (await asyncio.to_thread(listener.hears))[0] == "READY=1"
    for _ in range(3):
        assert await asyncio.to_thread(listener.hears) == ["WATCHDOG=1"]
    told.cancel()


async def test_without_a_watchdog_nothing_is_said_after_the_start(
    listener: Listener,
) -> None:
    ready = asyncio.Event()
    ready.set()
    async with asyncio.timeout(5):
        await ServiceManager(listener.address).accompany(ready)
    assert listener.hears()[0] == "READY=1"


async def test_without_a_manager_or_with_one_that_is_gone_nothing_fails(
    tmp_path: Path,
) -> None:
    ready = asyncio.Event()
    ready.set()
    for manager in (ServiceManager(), ServiceManager(str(tmp_path / "gone"))):
        await manager.accompany(ready)
        manager.reloading()
        manager.reloaded()


def test_a_manager_that_does_not_read_keeps_nobody_waiting(listener: Listener) -> None:
    manager = ServiceManager(listener.address)
    for _ in range(2000):  # far more than its socket holds
        manager.tell("WATCHDOG=1")
    assert listener.hears() == ["WATCHDOG=1"]


def test_a_reload_is_told_with_its_time(listener: Listener) -> None:
    manager = ServiceManager(listener.address)
    manager.reloading()
    manager.reloaded()
    ready = asyncio.Event()
    ready.set()
    asyncio.run(manager.accompany(ready))
    assert listener.hears()[0] == "READY=1", "what ends a reload ends no start"
    manager.reloading()
    first, second = listener.hears()
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0
    manager.reloaded()
    assert listener.hears() == ["READY=1"]


async def test_that_the_start_is_done_is_told_when_there_is_room_for_it(
    listener: Listener,
) -> None:
    manager = ServiceManager(listener.address)
    for _ in range(2000):  # far more than its socket holds
        manager.tell("X=1")
    ready = asyncio.Event()
    ready.set()
    told = asyncio.create_task(manager.accompany(ready))
    async with asyncio.timeout(10):
        while (await asyncio.to_thread(listener.hears))[0] != "READY=1":
            pass
        await told


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, ServiceManager()),
        ({"NOTIFY_SOCKET": "/run/n"}, ServiceManager("/run/n")),
        ({"NOTIFY_SOCKET": "vsock:2:1"}, ServiceManager()),
        (
            {"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"},
            ServiceManager("@n", 60.0),
        ),
        (
            {"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"},
            ServiceManager("@n"),
        ),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "soon"}, ServiceManager("@n")),
        ({"WATCHDOG_USEC": "60000000"}, ServiceManager()),
    ],
)
def test_what_the_environment_says_of_a_manager(
    said: dict[str, str], found: ServiceManager
) -> None:
    assert service_manager(said, pid=7) == found


def configured(tmp_path: Path, text: str) -> Loaded:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return load(file=file, environment={})


@pytest.fixture
def levels() -> Iterator[None]:
    """As they were."""
    root, ours = logging.getLogger(), logging.getLogger("vmdriver")
    before = root.level, ours.level, list(root.handlers)
    yield
    root.setLevel(before[0])
    ours.setLevel(before[1])
    root.handlers[:] = before[2]


@pytest.mark.usefixtures("levels")
def test_a_reload_takes_up_the_log_and_names_what_needs_another_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = configured(tmp_path, "vcpus = 2")
    reload(before, lambda: configured(tmp_path, 'vcpus = 3\nlog_level = "debug"'))
    assert logging.getLogger("vmdriver").level == logging.DEBUG
    text = capsys.readouterr().err
    assert "vcpus: not as the driver was started" in text
    assert "log_level, " not in text


@pytest.mark.usefixtures("levels")
def test_a_reload_of_a_wrong_configuration_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = configured(tmp_path, 'log_level = "warning"')
    logging.getLogger("vmdriver").setLevel(logging.WARNING)

    def wrong() -> Loaded:
        with pytest.raises(ConfigError) as caught:
            configured(tmp_path, "vcpu = 3")
        raise caught.value

    reload(before, wrong)
    assert "the configuration stays as it was" in caplog.text
    assert "'vcpus'" in caplog.text
    assert logging.getLogger("vmdriver").level == logging.WARNING


@pytest.mark.usefixtures("levels")
@pytest.mark.parametrize("text", ["templates = 3", f"vcpus = {'[' * 100_000}"])
def test_a_reload_of_what_is_no_configuration_at_all_changes_nothing(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = configured(tmp_path, "")
    reload(before, lambda: configured(tmp_path, text))
    assert "the configuration stays as it was" in caplog.text
