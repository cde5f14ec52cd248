"""What a stopwatch says of steps that were beside each other."""

from __future__ import annotations

import pytest

from vmdriver.lifecycle.engine import stopwatch
from vmdriver.lifecycle.engine.stopwatch import Stopwatch


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    return clock


def test_what_two_steps_of_one_name_have_in_common_counts_once(clock: Clock) -> None:
    watch = Stopwatch()
    first, second = watch.step("network"), watch.step("network")
    first.__enter__()
    clock.now = 1.0
    second.__enter__()
    clock.now = 3.0
    first.__exit__(None, None, None)
    clock.now = 4.0
    second.__exit__(None, None, None)
    clock.now = 6.0
    with watch.step("network"):
        clock.now = 7.0
    assert watch.steps == {"network": 5.0}
    assert len(watch.timed()) == 3, "each by itself"


def test_one_step_inside_another_of_its_name_adds_nothing(clock: Clock) -> None:
    watch = Stopwatch()
    with watch.step("load"):
        clock.now = 1.0
        with watch.step("load"):
            clock.now = 2.0
        clock.now = 3.0
    assert watch.steps == {"load": 3.0}


def test_steps_are_in_the_order_of_their_ends(clock: Clock) -> None:
    watch = Stopwatch()
    outer = watch.step("outer")
    outer.__enter__()
    with watch.step("inner"):
        clock.now = 1.0
    clock.now = 2.0
    outer.__exit__(None, None, None)
    assert list(watch.steps.items()) == [("inner", 1.0), ("outer", 2.0)]
