"""The waterfall of a start, and where the guest's stamps are in it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from vmdriver.cli.waterfall import shown, taken, waterfall
from vmdriver.model.checkpoint import MemoryRef, SnapshotEntry
from vmdriver.model.timing import StartTiming, TimedStep, with_guest


def step(name: str, begun_ms: float, ended_ms: float) -> TimedStep:
    return TimedStep(name=name, begun_ms=begun_ms, ended_ms=ended_ms)


def test_a_step_is_where_it_began_and_as_long_as_it_took() -> None:
    lines = waterfall([step("a", 0, 50), step("bc", 50, 100), step("d", 99, 99.1)], 56)
    assert lines == [
        "  a      50.0 ms " + "█" * 20,
        "  bc     50.0 ms " + " " * 20 + "█" * 20,
        "  d       0.1 ms " + " " * 39 + "·",
    ]


def test_nothing_took_any_time_and_nothing_was_timed() -> None:
    assert waterfall([], 80) == []
    assert waterfall([step("a", 0, 0)], 80) == ["  a      0.0 ms ·"]


def test_a_narrow_terminal_still_shows_bars() -> None:
    (line,) = waterfall([step("a name of some length", 0, 5)], 10)
    assert line.endswith("█" * 20)


def test_a_name_that_comes_from_a_guest_is_text() -> None:
    (line,) = waterfall([step("guest: \x1b[2J", 0, 5)], 80)
    assert "\x1b" not in line


def test_the_guests_stamps_are_inside_the_step_in_which_it_starts() -> None:
    steps = (step("machine", 0, 100), step("guest starts", 100, 900))
    found = with_guest(steps, {"workload": 0.7, "init": 0.25}, "guest starts")
    assert found[2:] == (
        step("guest: init", 100, 350),
        step("guest: workload", 350, 800),
    )
    assert with_guest(steps, {"init": 0.25}, "another") == steps


def test_a_start_has_a_heading() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    timing = StartTiming(kind="booted", at=at, steps=(step("a", 0, 1234.5),))
    head = shown(timing).splitlines()[0]
    assert head == "booted in 1234 ms, up at 2026-01-02 03:04:05 UTC"


@pytest.mark.parametrize(
    ("kind", "steps", "words"),
    [
        ("relaunched", ("machine",), "booted again in 10 ms, up"),
        ("resumed", ("load",), "resumed from its memory in 10 ms, up"),
        ("snapshot", ("load",), "returned to a snapshot in 10 ms, up"),
        ("template", ("machine", "load"), "forked from a template in 20 ms, up"),
        ("template", ("machine", "go on"), "taken from the warm pool in 20 ms, up"),
        (
            "template",
            ("load", "guest takes its files", "guest starts"),
            "forked from a template in 30 ms, of which the guest 20 ms, up",
        ),
        ("of a \x1bnewer release", ("a",), "of a \\x1bnewer release in 10 ms, up"),
    ],
)
def test_a_heading_says_how_it_came_up_and_what_of_it_was_the_guests(
    kind: str, steps: tuple[str, ...], words: str
) -> None:
    spans = [step(name, 10 * n, 10 * n + 10) for n, name in enumerate(steps)]
    at = datetime(2026, 1, 2, tzinfo=UTC)
    timing = StartTiming(kind=kind, at=at, steps=tuple(spans))
    assert shown(timing).splitlines()[0].startswith(words)


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        (MemoryRef(directory="d", digest="", kind="snapshot"), "snapshot a in 900 ms"),
        (None, "snapshot a of the disk alone in 900 ms"),
    ],
)
def test_a_snapshot_says_how_long_the_workload_stood_still(
    memory: MemoryRef | None, said: str
) -> None:
    steps = [("sync", 0, 50), ("freeze", 50, 70), ("go on", 80, 100), ("cut", 100, 900)]
    entry = SnapshotEntry(
        name="a",
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
        layers=("l",),
        memory=memory,
        steps=tuple(step(*one) for one in steps),
    )
    head, *bars = taken(entry).splitlines()
    assert head == (
        f"{said}, of which the workload stood still for 50 ms, taken at 2026-01-02 00:00:00 UTC"
    )
    assert len(bars) == 4
    untimed = entry.model_copy(update={"steps": ()})
    assert taken(untimed) == "", "of a stopped sandbox, or by an earlier release"
    odd = entry.model_copy(update={"steps": (step("another", 0, 5),)})
    assert "stood still for 0 ms" in taken(odd)
