"""Values and rules."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.driver import spec
from vmdriver.errors import InvalidRequest
from vmdriver.model import ids
from vmdriver.model.condition import status_of
from vmdriver.model.phase import (
    Action,
    DomainState,
    Intent,
    MachineState,
    Phase,
    machine_state,
    next_action,
)
from vmdriver.model.quantity import mebibytes, millicpus, parse_quantity
from vmdriver.model.record import Failure, SandboxRecord, utc_now


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("500m", Fraction(1, 2)),
        ("1.5", Fraction(3, 2)),
        ("2Gi", 2 * 2**30),
        ("2G", 2 * 10**9),
        (".5", Fraction(1, 2)),
        ("1e3", 1000),
        ("1E", 10**18),
        ("100n", Fraction(1, 10**7)),
        ("+3", 3),
        ("5.", 5),
        ("1E2", 100),
    ],
)
def test_quantities(text: str, value: Fraction) -> None:
    assert parse_quantity(text, "f") == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 1",
        "1 ",
        "1GiB",
        "abc",
        "1,5",
        "0",
        "-1",
        "0m",
        "1e",
        "NaN",
        "١",
        "1_000",
        "9" * 65,
    ],
)
def test_no_quantities(text: str) -> None:
    with pytest.raises(InvalidRequest, match="the.field"):
        parse_quantity(text, "the.field")


@given(st.text(max_size=70))
def test_any_text_is_a_quantity_or_a_clear_error(text: str) -> None:
    try:
        assert parse_quantity(text, "f") > 0
    except InvalidRequest as error:
        assert error.field == "f"


def test_cpu_and_memory_are_rounded_up() -> None:
    assert millicpus("1.0001", "f") == 1001
    assert mebibytes("1M", "f") == 1
    assert mebibytes("1025Ki", "f") == 2


@given(st.text(max_size=200))
def test_ids_are_single_path_components(text: str) -> None:
    try:
        checked = ids.check_sandbox_id(text)
    except InvalidRequest:
        return
    assert checked not in {"", ".", ".."}
    assert "/" not in checked
    assert "\0" not in checked


@given(st.from_regex(r"\A[A-Za-z0-9._-]{1,128}\Z"), st.integers(0, 5))
def test_derived_names_fit_their_worlds(sandbox_id: str, salt: int) -> None:
    assert len(ids.tap_name("vmdriver", sandbox_id, salt)) == ids.IFNAMSIZ
    first = int(ids.mac_address("vmdriver", sandbox_id, salt)[:2], 16)
    assert first & 1 == 0, "unicast"
    assert first & 2 == 2, "locally administered"
    assert ids.parse_mark(ids.mark("vmdriver", sandbox_id), "vmdriver") == sandbox_id
    assert ids.parse_mark(ids.mark("vmdriver", sandbox_id), "other") is None


TABLE = """
                      absent           booting          ready            exited        broken        crashed   stalled
running  new          launch           launch           launch           launch        launch        launch   launch
running  launching    launch           await ready      confirm running  record end    record end    record end   stand still
running  running      recover lost     rest             rest             record end    record end    record end   stand still
running  stopping     stop             stop             stop             stop          stop          stop    stop
running  stopped      launch           launch           launch           launch        launch        launch   launch
running  suspending   suspend          suspend          suspend          suspend       suspend       suspend   suspend
running  suspended    resume           resume           resume           resume        resume        resume   resume
running  resuming     resume           resume           resume           resume        resume        resume   resume
running  failing      clean up         clean up         clean up         clean up      clean up      clean up   clean up
running  failed       rest             rest             rest             rest          rest          rest    rest
running  deleting     delete           delete           delete           delete        delete        delete   delete
stopped  new          stop             stop             stop             stop          stop          stop    stop
stopped  launching    stop             stop             stop             stop          stop          stop    stop
stopped  running      stop             stop             stop             stop          stop          stop    stop
stopped  stopping     stop             stop             stop             stop          stop          stop    stop
stopped  stopped      rest             rest             rest             rest          rest          rest    rest
stopped  suspending   stop             stop             stop             stop          stop          stop    stop
stopped  suspended    rest             rest             rest             rest          rest          rest    rest
stopped  resuming     stop             stop             stop             stop          stop          stop    stop
stopped  failing      stop             stop             stop             stop          stop          stop    stop
stopped  failed       stop             stop             stop             stop          stop          stop    stop
stopped  deleting     delete           delete           delete           delete        delete        delete   delete
suspended  new          stop           stop             stop             stop          stop          stop    stop
suspended  launching    stop           stop             stop             stop          stop          stop    stop
suspended  running      stop           stop             suspend          stop          stop          stop    suspend
suspended  stopping     stop           stop             stop             stop          stop          stop    stop
suspended  stopped      rest           rest             rest             rest          rest          rest    rest
suspended  suspending   suspend        suspend          suspend          suspend       suspend       suspend   suspend
suspended  suspended    rest           rest             rest             rest          rest          rest    rest
suspended  resuming     resume         resume           resume           resume        resume        resume   resume
suspended  failing      stop           stop             stop             stop          stop          stop    stop
suspended  failed       stop           stop             stop             stop          stop          stop    stop
suspended  deleting     delete         delete           delete           delete        delete        delete   delete
"""


def test_the_table_cell_by_cell() -> None:
    import re

    seen = set()
    for line in TABLE.strip("\n").splitlines()[1:]:
        intent, phase, *actions = re.split(r"\s{2,}", line)
        for machine, action in zip(MachineState, actions, strict=True):
            got = next_action(Intent(intent), Phase(phase), machine)
            assert got is Action(action), (intent, phase, machine)
            seen.add((intent, phase, machine))
    for phase, machine in itertools.product(Phase, MachineState):
        assert next_action(Intent.DELETED, phase, machine) is Action.DELETE
        seen.add(("deleted", phase, machine))
    assert len(seen) == len(Intent) * len(Phase) * len(MachineState)


@pytest.mark.parametrize(
    ("domain", "report", "expected"),
    [
        (DomainState.ABSENT, "", MachineState.ABSENT),
        (DomainState.ABSENT, "exited", MachineState.ABSENT),
        (DomainState.RUNNING, "", MachineState.BOOTING),
        (DomainState.RUNNING, "started", MachineState.READY),
        (DomainState.RUNNING, "exited", MachineState.EXITED),
        (DomainState.PAUSED, "started", MachineState.READY),
        (DomainState.OFF, "exited", MachineState.EXITED),
        (DomainState.OFF, "started", MachineState.CRASHED),
        (DomainState.OFF, "", MachineState.CRASHED),
        (DomainState.CRASHED, "started", MachineState.CRASHED),
        (DomainState.OFF, "failed", MachineState.BROKEN),
        (DomainState.STALLED, "started", MachineState.STALLED),
        (DomainState.STALLED, "", MachineState.STALLED),
        (DomainState.STALLED, "exited", MachineState.EXITED),
    ],
)
def test_libvirts_word_and_the_guests(
    domain: DomainState, report: str, expected: MachineState
) -> None:
    assert machine_state(domain, report) is expected


TRANSIENT = {
    "reconcilererror",
    "dependenciesnotready",
    "supervisornotconnected",
    "starting",
    "containerstarting",
    "containercreated",
    "healthcheckstarting",
    "inspectfailed",
}


def gateway_phase(record: SandboxRecord) -> str:
    """A mirror of how the gateway derives its phase (contract §2.9)."""
    status = status_of(record)
    if status.deleting:
        return "DELETING"
    conditions = status.conditions
    if any(
        c.type.lower() == "suspended" and c.status.lower() == "true" for c in conditions
    ):
        return "STOPPED"
    ready = next((c for c in conditions if c.type == "Ready"), None)
    if ready is None:
        return "PROVISIONING"
    if ready.status.lower() == "true":
        return "READY"
    return "PROVISIONING" if ready.reason.lower() in TRANSIENT else "ERROR"


def record(
    intent: Intent, phase: Phase, failure: Failure | None = None
) -> SandboxRecord:
    return SandboxRecord(
        spec=spec(),
        intent=intent,
        phase=phase,
        failure=failure,
        created_at=utc_now(),
        changed_at=utc_now(),
    )


def test_the_gateway_sees_every_state_as_it_is() -> None:
    crash = Failure(reason="MachineCrashed", message="m")
    retried = Failure(reason="MachineCrashed", message="m", will_retry=True)
    for phase in Phase:
        assert gateway_phase(record(Intent.DELETED, phase)) == "DELETING"
    for phase in (Phase.NEW, Phase.LAUNCHING):
        assert gateway_phase(record(Intent.RUNNING, phase)) == "PROVISIONING"
        assert gateway_phase(record(Intent.RUNNING, phase, retried)) == "PROVISIONING"
    assert gateway_phase(record(Intent.RUNNING, Phase.RUNNING)) == "READY"
    assert (
        gateway_phase(record(Intent.RUNNING, Phase.FAILING, retried)) == "PROVISIONING"
    )
    for phase in (Phase.FAILING, Phase.FAILED):
        assert gateway_phase(record(Intent.RUNNING, phase, crash)) == "ERROR"
        assert gateway_phase(record(Intent.STOPPED, phase, crash)) == "PROVISIONING", (
            "a stop of it is under way"
        )
    for phase in (Phase.STOPPED, Phase.SUSPENDED):
        assert gateway_phase(record(Intent.STOPPED, phase)) == "STOPPED"
        assert gateway_phase(record(Intent.RUNNING, phase)) == "PROVISIONING", (
            "on its way up, as in a return to a snapshot: Stopped would be for good"
        )
    for phase in (Phase.RUNNING, Phase.STOPPING, Phase.LAUNCHING):
        assert gateway_phase(record(Intent.STOPPED, phase)) == "PROVISIONING"


def test_a_record_survives_its_json() -> None:
    value = record(Intent.RUNNING, Phase.NEW, Failure(reason="r", message="m"))
    assert SandboxRecord.model_validate_json(value.model_dump_json()) == value
