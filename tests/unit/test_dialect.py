"""What a base says otherwise than the contract, and what becomes of it on its way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.compose.dialect import PLAIN, Dialect, Meaning, stops_still

NEW = b"\xfa\x3f\x03new"
"""Field 1023, of a contract to come."""
OWN = Dialect.of(
    True,
    {
        "Provisioning": Meaning.STARTING,
        "Stopping": Meaning.STOPPING,
        "Stopped": Meaning.STOPPED,
    },
)
_CONDITIONS = st.lists(
    st.builds(
        pb.DriverCondition,
        type=st.sampled_from(["Ready", "Suspended", "PodScheduled", ""]),
        status=st.sampled_from(["True", "False", "false", "Unknown", ""]),
        reason=st.sampled_from(["Provisioning", "STOPPED", "stopping", "Failed", ""]),
        message=st.text(max_size=5),
    ),
    max_size=4,
)


def told(*conditions: pb.DriverCondition) -> pb.DriverSandbox:
    found = pb.DriverSandbox(id="s1", name="n", workspace="w")
    found.status.conditions.extend(conditions)
    found.MergeFromString(NEW)
    return found


def through(dialect: Dialect, seen: pb.DriverSandbox) -> pb.DriverSandbox:
    """The same by each way that it may come."""
    get = pb.GetSandboxResponse(sandbox=seen).SerializeToString()
    listed = pb.ListSandboxesResponse(sandboxes=[seen]).SerializeToString()
    event = pb.WatchSandboxesEvent()
    event.sandbox.sandbox.CopyFrom(seen)
    ways = (
        pb.GetSandboxResponse.FromString(dialect.answered("GetSandbox", get)).sandbox,
        pb.ListSandboxesResponse.FromString(
            dialect.answered("ListSandboxes", listed)
        ).sandboxes[0],
        pb.WatchSandboxesEvent.FromString(
            dialect.event(event.SerializeToString())
        ).sandbox.sandbox,
    )
    assert ways[0] == ways[1] == ways[2]
    return ways[0]


def ready(reason: str, status: str = "False") -> pb.DriverCondition:
    return pb.DriverCondition(
        type="Ready", status=status, reason=reason, last_transition_time="now"
    )


@pytest.mark.parametrize(
    ("reason", "becomes", "suspended", "still"),
    [
        ("Provisioning", "Starting", [], False),
        ("Stopping", "DependenciesNotReady", [("False", "PodTerminating")], True),
        ("Stopped", "DependenciesNotReady", [("True", "Stopped")], False),
        ("Failed", "Failed", [], False),
    ],
)
def test_an_own_reason_is_said_in_the_contracts_words_and_kept_in_the_message(
    reason: str, becomes: str, suspended: list[tuple[str, str]], still: bool
) -> None:
    found = through(OWN, told(ready(reason)))
    first, *others = found.status.conditions
    assert (first.reason, first.last_transition_time) == (becomes, "now")
    assert first.message == ("" if becomes == reason else reason)
    assert [(c.status, c.reason) for c in others] == suspended
    assert {c.type for c in others} <= {"Suspended"}
    assert stops_still(found) is still
    assert NEW in found.SerializeToString()


def test_what_a_base_says_of_a_suspension_itself_is_left_alone() -> None:
    own = pb.DriverCondition(type="Suspended", status="False", reason="PodNotOwned")
    found = through(OWN, told(ready("Stopped"), own))
    assert list(found.status.conditions)[1:] == [own]
    assert not stops_still(found)


@given(_CONDITIONS)
def test_what_has_no_own_reason_passes_byte_for_byte(
    conditions: list[pb.DriverCondition],
) -> None:
    seen = told(*conditions)
    assert through(PLAIN, seen).SerializeToString() == seen.SerializeToString()
    found = through(OWN, seen)
    # The first that says Ready counts, as it does for gateways.
    first = next((c for c in conditions if c.type == "Ready"), None)
    own = first is not None and (first.status.lower(), first.reason.lower()) in {
        ("false", reason) for reason in ("provisioning", "stopped", "stopping")
    }
    if not own:
        assert found.SerializeToString() == seen.SerializeToString()
    # One at most is said anew, nothing is lost, and what was said anew is said so once.
    changed = [
        a for a, b in zip(conditions, found.status.conditions, strict=False) if a != b
    ]
    assert len(changed) == own
    assert len(found.status.conditions) - len(conditions) in {0, 1}


def test_other_events_and_answers_pass_as_they_are() -> None:
    gone = pb.WatchSandboxesEvent()
    gone.deleted.sandbox_id = "s1"
    for dialect in (PLAIN, OWN):
        assert dialect.event(gone.SerializeToString()) == gone.SerializeToString()
        assert dialect.event(b"") == b""
        for method in ("StopSandbox", "/other.Service/Call"):
            assert dialect.answered(method, b"\xff\xff not a message") == b"\xff\xff not a message"  # fmt: skip
            assert PLAIN.asked(method, b"\xff not one") == b"\xff not one"


@pytest.mark.parametrize("method", ["Get", "Start", "Stop", "Delete"])
def test_of_id_and_name_the_id_is_what_is_left(method: str) -> None:
    kind = getattr(pb, f"{method}SandboxRequest")
    both = kind(sandbox_id="s1", sandbox_name="n")
    both.MergeFromString(NEW)
    sent = OWN.asked(f"{method}Sandbox", both.SerializeToString())
    left = kind.FromString(sent)
    assert (left.sandbox_id, left.sandbox_name) == ("s1", "")
    assert NEW in sent
    for one in (kind(sandbox_id="s1"), kind(sandbox_name="n"), kind()):
        raw = one.SerializeToString()
        assert OWN.asked(f"{method}Sandbox", raw) == raw
    raw = both.SerializeToString()
    assert PLAIN.asked(f"{method}Sandbox", raw) == raw
