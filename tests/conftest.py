"""Shared by every tier: golden files, and a look at what a test left running."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# What an example takes depends on who else uses the machine; hangs end by pytest's time-out.
settings.register_profile("loaded machine", deadline=None)
settings.load_profile("loaded machine")
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # libvirt forks in this process
GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate", action="store_true", help="write the golden files anew"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for tier in ("netns", "system"):
            if f"/tests/{tier}/" in str(item.path):
                item.add_marker(tier)


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
