"""Real machines. The ladder: host (registry, prepared images) -> a driver (a process) that all tests of a worker share ->
a sandbox that goes on from a template's memory. Where the boot is what is tested, or the driver's options are, there is
`booting`, `new_driver` and `fresh_host`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.gateway import Gateway
from tests.fakes.leftovers import leftovers
from tests.fakes.registry import push, registry
from tests.fakes.serve import SERVE, WORK
from tests.fakes.waiting import until
from tests.system.machines import INSTANCE, Driver, Host, dump
from vmdriver.model.passage import PLACE

WITHOUT_TEMPLATES = ["--templates-enabled", "false"]


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """With a registry that has the demo image, and a state directory without anything."""
    if os.geteuid() != 0:
        pytest.fail("the system tier needs root")
    base = Path(tempfile.mkdtemp(prefix="vmdriver-test-"))
    base.chmod(
        0o755
    )  # QEMU's user must get through, which pytest's own directories do not allow
    with registry(base / "registry") as address:
        push(WORK / "demo-image", "demo", f"{address}/demo:latest")
        yield Host(address, new_state(base / "state with space"))
    for link in PLACE.glob("*"):  # libvirt's short way into it
        # Drivers of other tests take theirs away meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if link.is_symlink() and link.readlink().is_relative_to(base):
                link.unlink()
    shutil.rmtree(base)


def new_state(state: Path) -> Path:
    """A state directory with boot files alone."""
    state.mkdir(mode=0o755, exist_ok=True)
    (state / "boot").symlink_to(WORK / "boot")
    return state


def lend_images(known: Path, state: Path) -> None:
    """What one state directory has prepared, another has as well: copies, since a file that gets another name has changed."""
    there, here = known / "images" / "disks", state / "images" / "disks"
    here.mkdir(parents=True)
    for folder in (here, here.parent):
        folder.chmod(0o711)
    for note in there.glob("*.json"):
        text = json.loads(note.read_text())
        file, copy = (folder / Path(text["path"]).name for folder in (there, here))
        command = ["cp", "-p", "--sparse=always", "--reflink=auto", file, copy]
        subprocess.run(command, check=True)
        found = copy.stat()
        text["path"] = str(copy)
        text["identity"] = [found.st_ino, found.st_size, found.st_mtime_ns]
        (here / note.name).write_text(json.dumps(text))
        (here / note.name).chmod(0o600)
    lend_what_is_known_of_qemu(known, state)


def lend_what_is_known_of_qemu(known: Path, state: Path) -> None:
    """Else each state directory's first driver asks three QEMUs what they can do, and begins one twice."""
    if (known / "questions.json").exists():  # else nothing was decided
        shutil.copy2(known / "questions.json", state)
    (state / "libvirt").mkdir(mode=0o711)
    shutil.copytree(known / "libvirt" / "cache", state / "libvirt" / "cache")


@pytest.fixture(scope="session")
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.close()


@pytest.fixture(scope="session")
def shared(
    host: Host, gateway: Gateway, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Driver]:
    """For tests that only need a driver. It has a template: a sandbox as `create` asks for goes on from its memory."""
    driver = logged(Driver(host, gateway, Path(), []), tmp_path_factory)
    driver.start()
    driver.wait(driver.create(), "Running")
    driver.wait_for_template()
    finish(driver)
    yield driver
    rest(driver)
    nothing_is_left(driver)


@pytest.fixture(scope="session")
def shared_booting(
    shared: Driver, gateway: Gateway, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Driver]:
    """The same without templates: every sandbox boots."""
    state = new_state(shared.host.state.with_name("cold"))
    lend_images(shared.host.state, state)
    instance = INSTANCE.replace("test", "cold")
    host = replace(shared.host, state=state, instance=instance)
    driver = Driver(host, gateway, Path(), WITHOUT_TEMPLATES)
    yield logged(driver, tmp_path_factory)
    rest(driver)


def logged(driver: Driver, factory: pytest.TempPathFactory) -> Driver:
    """With a directory for its socket and its log."""
    directory = factory.mktemp("d")
    driver.socket = directory / "run" / "d.sock"
    driver.log = directory / "driver.log"
    return driver


def rest(driver: Driver) -> None:
    """It ends, and says nothing of it."""
    if driver.runs():
        assert driver.kill(signal.SIGTERM) < 3


def finish(driver: Driver) -> None:
    """Its sandboxes go."""
    if not driver.runs():
        driver.start()
    for sandbox_id in driver.used:
        driver.delete(sandbox_id)
    driver.used.clear()


def nothing_is_left(driver: Driver) -> None:
    left = [""]

    def gone() -> bool:
        left[:] = leftovers(driver.host.instance, driver.host.state)
        return not left

    until(gone, lambda: left, limit_s=3)


def failed(request: pytest.FixtureRequest) -> bool:
    report = getattr(request.node, "report", None)
    return report is not None and bool(report.failed)


def lent(driver: Driver, request: pytest.FixtureRequest) -> Iterator[Driver]:
    """For one test, as if it were new."""
    options = list(driver.options)
    driver.log.write_bytes(b"")
    if not driver.runs():
        driver.start()
    yield driver
    if failed(request):
        dump(driver)
    other = driver.options != options or driver.command != SERVE
    driver.options, driver.command = options, list(SERVE)
    finish(driver)
    nothing_is_left(driver)
    if other or failed(request):
        rest(driver)


@pytest.fixture
def driver(shared: Driver, request: pytest.FixtureRequest) -> Iterator[Driver]:
    """Its sandboxes go on from a template's memory."""
    yield from lent(shared, request)


@pytest.fixture
def booting(shared_booting: Driver, request: pytest.FixtureRequest) -> Iterator[Driver]:
    """Its sandboxes boot."""
    yield from lent(shared_booting, request)


@pytest.fixture
def resting(shared: Driver) -> Host:
    """The shared driver's host, whose driver has ended."""
    rest(shared)
    return shared.host


@pytest.fixture
def fresh_host(shared: Driver) -> Host:
    """One of the test's own, with the demo image prepared; without templates. Its drivers may end after it: it goes with
    the shared one.
    """
    base = shared.host.state.parent
    state = new_state(Path(tempfile.mkdtemp(prefix="own-", dir=base)))
    state.chmod(0o755)
    lend_images(shared.host.state, state)
    return replace(shared.host, state=state)


@pytest.fixture
def new_driver(
    shared: Driver,
    gateway: Gateway,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Callable[..., Driver]]:
    """Makes drivers; at the end everything of theirs must be gone, and what failed is shown."""
    made: list[Driver] = []

    def make(*options: str, **more: Any) -> Driver:
        host = more.pop("host", shared.host)
        if "state" in more:
            host = replace(host, state=more.pop("state"))
        if host.state == shared.host.state:
            assert "false" not in options, "without templates it removes all tests' own"
        if host.instance == shared.host.instance:
            rest(shared)  # each would take the other's machines for leftovers
        talks_to = more.pop("gateway", gateway)
        driver = Driver(host, talks_to, Path(), list(options), **more)
        made.append(logged(driver, tmp_path_factory))
        driver.start()
        return driver

    yield make
    if failed(request):
        for driver in made:
            dump(driver)
    for driver in made:
        if driver.host.state.exists():  # else the test has ended it
            finish(driver)
        rest(driver)
        if driver.host.state.exists():
            nothing_is_left(driver)
        shutil.rmtree(driver.socket.parent.parent)


@pytest.hookimpl(tryfirst=True, wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.report = report  # type: ignore[attr-defined]
    return report
