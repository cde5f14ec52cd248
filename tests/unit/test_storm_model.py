"""The storm's model: what was told narrows what may be, what was lost widens it."""

from __future__ import annotations

import hashlib

import pytest

from tests.storm.promises import Promise, Sandbox, Wish
from tests.storm.tally import Tally
from tests.system.workloads import check_chains


def sandbox(*may: Wish) -> Sandbox:
    return Sandbox("storm-1", False, set(may))


def test_an_answer_narrows_and_a_lost_answer_widens() -> None:
    one = sandbox(Wish.RUNNING)
    one.asked({Wish.STOPPED}, certain=False)
    assert one.may == {Wish.RUNNING, Wish.STOPPED}
    one.asked({Wish.RUNNING}, certain=True)
    assert one.may == {Wish.RUNNING}


def test_a_delete_that_was_told_is_final() -> None:
    one = sandbox(Wish.RUNNING)
    one.was_deleted()
    one.asked({Wish.RUNNING}, certain=True)
    assert one.may == {Wish.GONE}


def test_what_was_written_while_the_machine_was_killed_is_on_its_disk_alone() -> None:
    one = sandbox(Wish.RUNNING)
    one.wrote(1, one.deaths())
    asked = one.deaths()
    one.machine_dies("killed")
    one.wrote(2, asked)
    assert one.holds == Promise(frozenset({1, 2}), frozenset())
    one.wrote(3, one.deaths())
    assert one.holds.memory == {3}


def test_returned_to_a_snapshot_it_has_what_the_snapshot_has() -> None:
    then = Promise(frozenset({1}), frozenset({1}))
    one = sandbox(Wish.RUNNING)
    one.wrote(2, one.deaths())
    one.returned(then, one.deaths(), certain=True)
    assert one.holds == then
    one.wrote(3, one.deaths())
    one.returned(then, one.deaths(), certain=False)
    assert one.holds == then, "what is in both"


def links(name: str, count: int) -> list[str]:
    h, lines = name, [f"start {name}"]
    for number in range(1, count + 1):
        h = hashlib.sha256(f"{h} {number}".encode()).hexdigest()
        lines.append(f"{number} {h}")
    return lines


def test_chains_may_be_torn_by_a_power_cut_and_nowhere_else() -> None:
    first, second = links("a", 3), links("b", 2)
    assert check_chains("\n".join([*first, *second])) == [3, 2]
    torn = [*first[:-1], first[-1][:20]]
    assert check_chains("\n".join([*torn, "", *second])) == [2, 2]
    for broken in (
        [*first[:2], first[3]],  # one is missing
        [*first, first[-1]],  # one was lived twice
    ):
        with pytest.raises(AssertionError):
            check_chains("\n".join([*broken, first[-1]]))


def test_refusals_are_counted_by_their_reason() -> None:
    tally = Tally()
    tally.refused("stop", "NOT_FOUND", "sandbox storm-1 is not known")
    tally.refused("stop", "NOT_FOUND", "sandbox storm-27 is not known")
    assert list(tally.refusals.values()) == [2]
