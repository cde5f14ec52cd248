"""Shared by every tier: golden files, a look at what a test left running, what is run when, and what took longest."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# What an example takes depends on who else uses the machine; hangs end by pytest's time-out.
settings.register_profile("loaded machine", deadline=None)
settings.load_profile("loaded machine")
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # libvirt forks in this process
# Begun in the background, as CI may be: programs that tests begin would be deaf, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
pytest_plugins = ["tests.system.stage"]
"""One driver of a worker serves all tiers with real machines: two would take each other's for leftovers."""
GOLDEN = Path(__file__).parent / "golden"
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
SLOWEST = 20
SYSTEM_TIMEOUT_S = 400
"""Many cycles of real machines, on a busy host."""
REAL_MACHINES = ("system", "adversary")
TIERS = [*REAL_MACHINES, "netns", "package", "contract", "scenario", "repo", "unit", ""]
"""The longest tests come first, so that those of a moment fill both workers to the end."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate", action="store_true", help="write the golden files anew"
    )
    parser.addoption(
        "--soak",
        action="store_true",
        help="run what is marked as soak, and nothing else",
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    soak, left_out = config.getoption("--soak"), []
    for item in items:
        for tier in ("netns", *REAL_MACHINES):
            if f"/tests/{tier}/" in str(item.path):
                item.add_marker(tier)
        real = tier_of(item.nodeid) in REAL_MACHINES
        if real and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SYSTEM_TIMEOUT_S))
        if (item.get_closest_marker("soak") is not None) != soak:
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: TIERS.index(tier_of(item.nodeid)))


def tier_of(nodeid: str) -> str:
    """The folder of that test."""
    return nodeid.split("/")[1] if nodeid.count("/") > 1 else ""


class Durations:
    """What each test took, with what was made for it and taken down after it."""

    def __init__(self) -> None:
        self._took: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._took[report.nodeid] += report.duration  # type: ignore[assignment]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter
    ) -> Iterator[None]:
        """After the failures and the reasons of skips, where whoever looks at the end sees it."""
        yield
        tiers: Counter[str] = Counter()
        for nodeid, seconds in self._took.items():
            tiers[tier_of(nodeid)] += seconds  # type: ignore[assignment]
        write = terminalreporter.write_line
        terminalreporter.section(f"the slowest {SLOWEST}")
        for nodeid, seconds in self._took.most_common(SLOWEST):
            write(f"{seconds:7.1f} s  {nodeid.removeprefix('tests/')}")
        whole = ", ".join(f"{name} {s:.0f} s" for name, s in tiers.most_common())
        write(f"all workers together: {whole}")


def own_network_namespaces() -> None:
    """From now on this worker, and whatever it begins, has a /run/netns of its own: namespaces are
    named by tests and drivers, and the worker beside this one uses the same names.
    """
    libc, place = ctypes.CDLL(None, use_errno=True), Path("/run/netns")
    place.mkdir(mode=0o755, parents=True, exist_ok=True)
    steps: tuple[Callable[[], int], ...] = (
        lambda: libc.unshare(CLONE_NEWNS),
        lambda: libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None),
        lambda: libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, b"mode=755"),
    )
    for step in steps:
        if step() != 0:
            raise OSError(ctypes.get_errno(), "a /run/netns of the worker's own")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[
    None, pytest.TestReport, pytest.TestReport
]:
    """A half of a character that a test printed or logged would not pass from a worker to its
    master, which then ends all the others' tests.
    """
    report = yield
    report.sections[:] = [
        (name, text.encode(errors="backslashreplace").decode())
        for name, text in report.sections
    ]
    return report


def pytest_configure(config: pytest.Config) -> None:
    """Where the reports of all workers come together, and what each has for itself."""
    if hasattr(config, "workerinput"):
        if os.geteuid() == 0:
            own_network_namespaces()
        return
    if config.getoption("numprocesses", None):
        config.pluginmanager.register(Durations(), "durations of all workers")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with tests/golden/<name>."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--regenerate"):
            path.write_text(text)
        assert path.exists(), f"{path} is missing: run pytest --regenerate"
        assert text == path.read_text()

    return check


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [
        t
        for t in threading.enumerate()
        if t not in before and not t.daemon and t.is_alive()
    ]
    left = [t for t in left if not t.name.startswith(("vmdriver-", "asyncio_"))]
    assert not left, f"threads left over: {left}"
