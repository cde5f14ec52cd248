"""One call to the driver, and what its answer means for the promises."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from tests.storm.stage import Keeper
from tests.storm.tally import Tally

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
}
"""Nothing was changed. Other refusals may come after something was begun."""
NOT_SENT = ("failed to connect", "Connection refused", "No such file")
SAID_NO = ("is still starting", "is being cleaned up")


@dataclass(frozen=True)
class Answer:
    """ok: acknowledged. refused: nothing was changed. Neither: nobody knows."""

    ok: bool
    refused: bool
    seconds: float
    same_driver: bool
    """No driver was killed or started while it took."""
    code: str = "OK"
    text: str = ""
    value: Any = None


class Caller:
    """Calls, with deadlines of its own that no answer should need."""

    def __init__(self, keeper: Keeper, tally: Tally) -> None:
        self._keeper, self._tally = keeper, tally

    def call(self, action: str, sandbox: str, work: Callable[[], Any]) -> Answer:
        self._tally.count(self._tally.actions, action)
        generation, begun = self._keeper.generation, time.monotonic()
        code, text, value = "OK", "", None
        try:
            value = work()
        except grpc.RpcError as error:
            code, text = error.code().name, str(error.details())
        except ValueError as error:  # the channel of a driver that is dead already
            code, text = "UNAVAILABLE", f"failed to connect: {error}"
        if any(word in text for word in NOT_SENT):
            text = NOT_SENT[0]
        seconds = time.monotonic() - begun
        same = generation == self._keeper.generation and generation > 0
        self._tally.note(f"{action}: {code} {text[:160]} ({seconds:.2f} s)", sandbox)
        if code != "OK":
            self._tally.refused(action, code, text)
        if "incident" in text:
            self._tally.broken(f"{action}: {text}", sandbox)
        refused = code in {c.name for c in REFUSALS} or (
            code == "FAILED_PRECONDITION" and "being deleted" in text
        )
        refused = refused or (
            code == "UNAVAILABLE" and any(t in text for t in NOT_SENT + SAID_NO)
        )
        return Answer(code == "OK", refused, seconds, same, code, text, value)
