"""A create whose answer was lost, and a base that says to the second one something else than that it is there."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import pytest

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.compose.base import Asked, BaseRejected, Unanswered
from vmdriver.compose.creates import Creates
from vmdriver.compose.patience import FAR, Patience

FULL = BaseRejected(
    grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!", ()
)
WRONG = BaseRejected(grpc.StatusCode.INVALID_ARGUMENT, "no such image", ())


@dataclass(frozen=True)
class Wanted:
    id: str = "s1"
    name: str = "name-s1"
    workspace: str = ""


class FarBase:
    """Loses the first create's answer, and refuses each later one. `takes`: it has done the first; `looks_refused`:
    that many questions after it are refused, too.
    """

    is_far = True

    def __init__(self, refusal: BaseRejected, takes: bool, looks_refused: int) -> None:
        self._refusal, self._takes, self._looks_refused = refusal, takes, looks_refused
        self._creates = 0

    def patience(self, asked: Asked) -> Patience:
        return Patience(FAR, 20.0, asked.timeout_s)

    async def call(
        self,
        method: str,
        _request: bytes,
        _asked: Asked,
        *,
        repeat: bool = True,
        patience: Patience | None = None,
    ) -> bytes:
        assert patience is not None
        if method == "CreateSandbox":
            assert not repeat
            self._creates += 1
            raise Unanswered("cut") if self._creates == 1 else self._refusal
        if self._looks_refused:
            self._looks_refused -= 1
            raise FULL
        if not self._takes:
            raise BaseRejected(grpc.StatusCode.NOT_FOUND, "no such sandbox", ())
        found = pb.DriverSandbox(id="s1", name="name-s1")
        return bytes(pb.GetSandboxResponse(sandbox=found).SerializeToString())


async def outcome(base: FarBase) -> bytes:
    creates = Creates(base, (0.0, 0.0, 0.0))  # type: ignore[arg-type]
    return await creates.ask(Wanted(), b"", Asked())


@pytest.mark.parametrize("looks_refused", [0, 2])
async def test_what_is_there_was_made_whatever_is_said_to_the_second_create(
    looks_refused: int,
) -> None:
    """Otherwise its caller is told that there is none, and what it holds is given back under a machine that runs."""
    assert await outcome(FarBase(FULL, True, looks_refused)) == b""


@pytest.mark.parametrize("looks_refused", [0, 9])
async def test_nobody_knows_where_a_base_has_no_room_to_say(
    looks_refused: int,
) -> None:
    with pytest.raises(Unanswered):
        await outcome(FarBase(FULL, False, looks_refused))


async def test_what_can_never_be_made_is_refused_in_the_bases_words() -> None:
    with pytest.raises(BaseRejected, match="no such image"):
        await outcome(FarBase(WRONG, False, 0))
