"""Real machines. The ladder: host (registry, image cache) -> driver (a process) -> a sandbox that runs."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.gateway import Gateway
from tests.fakes.leftovers import leftovers
from tests.fakes.registry import push, registry
from tests.fakes.serve import WORK
from tests.system.machines import INSTANCE, Driver, Host, dump
from vmdriver.model.passage import PLACE


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    if os.geteuid() != 0:
        pytest.fail("the system tier needs root")
    base = Path(tempfile.mkdtemp(prefix="vmdriver-test-"))
    base.chmod(
        0o755
    )  # QEMU's user must get through, which pytest's own directories do not allow
    state = base / "state with space"
    state.mkdir()
    (state / "boot").symlink_to(WORK / "boot")
    with registry(base / "registry") as address:
        push(WORK / "demo-image", "demo", f"{address}/demo:latest")
        yield Host(address, state)
    for link in PLACE.glob("*"):  # libvirt's short way into it
        if link.is_symlink() and link.readlink().is_relative_to(base):
            link.unlink()
    shutil.rmtree(base)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.close()


@pytest.fixture
def new_driver(
    host: Host,
    gateway: Gateway,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Callable[..., Driver]]:
    """Makes drivers; at the end everything of theirs must be gone, and what failed is shown."""
    made: list[Driver] = []

    def make(*options: str, **more: Any) -> Driver:
        directory = tmp_path_factory.mktemp("d")
        driver = Driver(
            replace(host, state=more.pop("state", host.state)),
            more.pop("gateway", gateway),
            directory / "run" / "d.sock",
            list(options),
            **more,
        )
        driver.log = directory / "driver.log"
        made.append(driver)
        driver.start()
        return driver

    yield make
    report = getattr(request.node, "report", None)
    if report is not None and report.failed:
        for driver in made:
            dump(driver)
    for driver in made:
        if not driver.host.state.exists():
            continue  # the test has ended it, with a state of its own
        if driver.process is not None and driver.process.poll() is not None:
            driver.start()
        for sandbox_id in driver.used:
            driver.delete(sandbox_id)
        assert driver.kill(signal.SIGTERM) < 3
        assert leftovers(INSTANCE, host.state) == []
        shutil.rmtree(driver.socket.parent.parent)


@pytest.hookimpl(tryfirst=True, hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.when == "call":
        item.report = report  # type: ignore[attr-defined]


@pytest.fixture
def driver(new_driver: Callable[..., Driver]) -> Driver:
    return new_driver()
