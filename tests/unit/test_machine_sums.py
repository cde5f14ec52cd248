"""What machines use: sums that only grow, and the busiest."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from vmdriver.host import facts
from vmdriver.hypervisor import qemu_process, usage
from vmdriver.hypervisor.usage import HostUsage
from vmdriver.model.usage import Usage
from vmdriver.telemetry.machines import ALL, ONE, TOP, Usages, Whose
from vmdriver.telemetry.seen import Value
from vmdriver.telemetry.shown import Shown


def values_of(values: Sequence[Value], shown: Shown) -> dict[str, float]:
    return {
        v.attributes.get("sandbox", ""): v.number for v in values if v.shown is shown
    }


def test_sums_only_grow_whoever_comes_and_goes() -> None:
    usages, a, b = Usages(), Whose("a", "w"), Whose("b", "w")
    cpu, memory = ALL["cpu_s"], ALL["memory"]
    first = usages.note({a: Usage("1", cpu_s=2, memory=10), b: Usage("2", cpu_s=1)})
    assert values_of(first, cpu) == {"": 3}
    assert values_of(first, memory) == {"": 10}
    assert values_of(first, ONE["cpu_s"]) == {"a": 2, "b": 1}
    gone = usages.note({b: Usage("2", cpu_s=4)})
    assert values_of(gone, cpu) == {"": 6}, "what a has used is not forgotten"
    assert values_of(gone, ONE["cpu_s"]) == {"b": 4}
    again = usages.note({a: Usage("3", cpu_s=1), b: Usage("2", cpu_s=4)})
    assert values_of(again, cpu) == {"": 7}, "another QEMU begins from nothing"
    older = usages.note({a: Usage("3", cpu_s=1), b: Usage("4", cpu_s=2)})
    assert values_of(older, cpu) == {"": 9}


def test_who_is_missed_once_is_not_counted_from_nothing_again() -> None:
    usages, a = Usages(), Whose("a", "w")
    for look in ({a: Usage("1", cpu_s=5)}, {}, {a: Usage("1", cpu_s=6)}):
        found = usages.note(look)
    assert values_of(found, ALL["cpu_s"]) == {"": 6}


def test_after_a_restart_sums_begin_at_nothing_also_where_machines_went_on() -> None:
    """A counter that is smaller than before has begun anew for Prometheus: all that it says then is taken for growth."""
    usages, a, b = Usages(since_s=100), Whose("a", "w"), Whose("b", "w")
    old, new = Usage("1", cpu_s=500, begun_s=50), Usage("2", cpu_s=3, begun_s=101)
    found = usages.note({a: old, b: new})
    assert values_of(found, ALL["cpu_s"]) == {"": 3}
    assert values_of(found, ONE["cpu_s"]) == {"a": 500, "b": 3}
    found = usages.note({a: Usage("1", cpu_s=502, begun_s=50)})
    assert values_of(found, ALL["cpu_s"]) == {"": 5}
    found = usages.note({a: Usage("4", cpu_s=1, begun_s=200)})
    assert values_of(found, ALL["cpu_s"]) == {"": 6}, "resumed: another QEMU"


def test_who_asks_before_there_is_another_look_is_shown_the_same_machines() -> None:
    """With many machines a look is some seconds old, and nobody had grown since: those first by name were the busiest."""
    usages = Usages()
    idle = {Whose(f"a{n:03}", "w"): Usage(str(n)) for n in range(2 * TOP)}
    busy = {Whose("z", "w"): Usage("z", cpu_s=9)}
    look = idle | busy
    first, again = usages.note(look), usages.note(look)
    assert "z" in values_of(first, ONE["cpu_s"])
    assert again == first


def test_of_machines_that_went_on_those_are_shown_first_that_had_used_most() -> None:
    usages = Usages(since_s=100)
    many = {Whose(f"s{n:03}", "w"): Usage(str(n), cpu_s=n) for n in range(3 * TOP)}
    own = values_of(usages.note(many), ONE["cpu_s"])
    assert set(own) == {f"s{n:03}" for n in range(2 * TOP, 3 * TOP)}


def test_when_a_qemu_began_is_told_by_the_clock_that_a_driver_begins_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = facts.uptime_s()
    with subprocess.Popen(["sleep", "60"]) as program:
        monkeypatch.setattr(qemu_process, "pid_of", lambda *_: program.pid)
        use = HostUsage(Path("/nowhere")).of({"domain": "tap"})["domain"]
        program.kill()
    assert before - 0.02 < use.begun_s < facts.uptime_s()
    assert use.memory > 0


def test_with_many_machines_the_memory_of_some_is_added_up_at_each_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a thousand of them it takes a look many seconds, and their CPU would be as old."""
    programs = [subprocess.Popen(["sleep", "60"]) for _ in range(4)]
    pids = {f"d{n}": program.pid for n, program in enumerate(programs)}
    added: list[int] = []

    def memory(pid: int) -> usage.Memory:
        added.append(pid)
        return usage.Memory(len(added), 1, 1)

    monkeypatch.setattr(qemu_process, "pid_of", lambda _, domain: pids[domain])
    monkeypatch.setattr(usage, "memory_of", memory)
    hurried, taps = HostUsage(Path("/nowhere"), memory_s=-1), dict.fromkeys(pids, "tap")
    first = hurried.of(taps)
    assert [use.memory for use in first.values()] == [1, 2, 3, 4], "none was known"
    assert hurried.of(taps) == first
    assert len(added) == 4
    patient = HostUsage(Path("/nowhere"), memory_s=60)
    for _ in range(3):
        patient.of(taps)
    assert len(added) == 4 + 12
    programs[0].kill()
    programs[0].wait()
    assert set(patient.of(taps)) == {"d1", "d2", "d3"}
    for program in programs[1:]:
        program.kill()
        program.wait()


def test_only_the_busiest_machines_have_series_of_their_own() -> None:
    usages = Usages()
    many = {Whose(f"s{n:03}", "w"): Usage(str(n), cpu_s=n) for n in range(3 * TOP)}
    own = values_of(usages.note(many), ONE["cpu_s"])
    assert set(own) == {f"s{n:03}" for n in range(2 * TOP, 3 * TOP)}
