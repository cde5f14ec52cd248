"""What a wish makes of what was asked for: every cell."""

from __future__ import annotations

import pytest

from vmdriver.errors import Refused, Unavailable
from vmdriver.model import wishes
from vmdriver.model.checkpoint import MemoryRef
from vmdriver.model.phase import Action, Asked, Intent, Phase, cuts_off
from vmdriver.model.record import MAIN_PROCESS_EXITED, Failure, SandboxRecord, utc_now
from vmdriver.model.spec import SandboxSpec
from vmdriver.model.wishes import Wish

R, S, D = wishes.RUNNING, wishes.STOPPED, wishes.DELETED
U, G = wishes.SUSPENDED, wishes.STOPPED_SUSPENDED
NO = None
TABLE = {
    # was: START, STOP, STOP_SUSPENDED, STOP_NOW, SUSPEND, RETURN, GO_ON, DELETE
    R: (R, S, G, R, U, R, R, D),
    S: (R, S, S, S, NO, R, S, D),
    U: (R, G, G, U, U, R, R, D),
    G: (R, G, G, S, G, R, G, D),
    D: (NO, NO, NO, D, NO, NO, D, D),
}
ORDER = tuple(Wish)


def record(asked: Asked = R, **changes: object) -> SandboxRecord:
    return SandboxRecord(
        spec=SandboxSpec(id="s1", name="n", image="i"),
        created_at=utc_now(),
        changed_at=utc_now(),
        intent=asked.intent,
        stop_anyway=asked.stop_anyway,
        **changes,
    )


@pytest.mark.parametrize("was", TABLE)
@pytest.mark.parametrize("wish", ORDER)
def test_every_cell(was: Asked, wish: Wish) -> None:
    expected = TABLE[was][ORDER.index(wish)]
    assert wishes.asked_after(wish, was) == expected
    if expected is None:
        with pytest.raises(Refused):
            wishes.changes(wish, record(was))
        return
    changed = record(was).model_copy(update=wishes.changes(wish, record(was)))
    assert wishes.asked_of(changed) == expected
    if was is D:
        assert wishes.changes(wish, record(was)) == {}


def test_the_mark_of_a_former_suspension_says_nothing_of_another_wish() -> None:
    left = record(R).model_copy(update={"stop_anyway": True})
    assert wishes.asked_of(left) == R
    assert wishes.changes(Wish.SUSPEND, left)["stop_anyway"] is False


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("was", TABLE)
def test_a_suspension_that_was_not_to_be(was: Asked, there: bool) -> None:
    found = wishes.not_suspended(
        record(was, phase=Phase.SUSPENDING), machine_is_there=there, unwind_reason="x"
    )
    if was is D:
        assert found == {}, "nothing is written over a delete"
    elif there and was in {R, U}:
        assert found["phase"] is Phase.RUNNING
        assert found.get("intent", Intent.RUNNING) is Intent.RUNNING
    else:
        assert found == {"phase": Phase.STOPPING, "unwind_reason": "x"}


@pytest.mark.parametrize("asked_at", [R, S, U, G])
@pytest.mark.parametrize("now", [R, S, U, G, D])
def test_a_return_undoes_no_stop_that_came_after_it(
    asked_at: Asked, now: Asked
) -> None:
    stopped_since = now in {S, G} and now != asked_at
    if stopped_since or now is D:
        with pytest.raises(Refused):
            wishes.returned(record(now), "a", asked_at)
        return
    changed = record(now).model_copy(update=wishes.returned(record(now), "a", asked_at))
    assert (changed.intent, changed.reverting) == (Intent.RUNNING, "a")


def test_a_start_of_what_failed_is_another_try() -> None:
    failure = Failure(reason="MachineCrashed", message="it broke")
    failed = record(phase=Phase.FAILED, failure=failure)
    assert wishes.changes(Wish.START, failed)["phase"] is Phase.STOPPED
    memory = MemoryRef(directory="d", digest="x", kind="suspended", stored_bytes=1)
    kept = failed.model_copy(update={"memory": memory})
    assert wishes.changes(Wish.START, kept)["phase"] is Phase.SUSPENDED
    with pytest.raises(Unavailable):
        wishes.changes(Wish.START, record(phase=Phase.FAILING, failure=failure))
    ended = Failure(reason=MAIN_PROCESS_EXITED, message="exit code 1")
    with pytest.raises(Refused, match="exit code 1"):
        wishes.changes(Wish.START, record(phase=Phase.FAILED, failure=ended))
    assert wishes.changes(Wish.START, record(phase=Phase.RUNNING)) == {}


UP = {Action.LAUNCH, Action.AWAIT_READY, Action.RESUME}
KEEPING = {Action.SUSPEND, Action.REVERT, Action.GO_ON, Action.JOB}
CUT = {
    R: {Action.MERGE},
    S: UP | KEEPING | {Action.LOOK, Action.REST, Action.STAND_STILL},
    U: UP,
    G: UP | {Action.JOB, Action.STAND_STILL},
    D: set(Action) - {Action.DELETE},
}


@pytest.mark.parametrize("asked", CUT)
@pytest.mark.parametrize("doing", Action)
def test_what_is_cut_off_for_what(asked: Asked, doing: Action) -> None:
    assert cuts_off(asked, doing) == (doing in CUT[asked])
