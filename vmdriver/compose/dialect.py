"""What a base says and understands otherwise than the contract: translated where its bytes come
and go, so that nobody else knows of it. Where nothing is, bytes pass as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from vmdriver._proto import compute_driver_pb2 as pb


class Meaning(StrEnum):
    """What the gateway is to take a reason of Ready=False for. It takes each that the contract
    does not name for an error from which a sandbox never comes back.
    """

    STARTING = "starting"
    STOPPING = "stopping"
    STOPPED = "stopped"


_NAMED: Mapping[str, Any] = {
    "GetSandbox": pb.GetSandboxRequest,
    "StartSandbox": pb.StartSandboxRequest,
    "StopSandbox": pb.StopSandboxRequest,
    "DeleteSandbox": pb.DeleteSandboxRequest,
}


@dataclass(frozen=True)
class Dialect:
    """`by_id`: it takes a sandbox's id or its name, and refuses both at once, as gateways say
    them. `reasons`: its own, in small letters.
    """

    by_id: bool = False
    reasons: Mapping[str, Meaning] = field(default_factory=dict)

    @staticmethod
    def of(by_id: bool, reasons: Mapping[str, Meaning]) -> Dialect:
        """As settings have it; reasons are the same in small and large letters."""
        return Dialect(by_id, {name.lower(): what for name, what in reasons.items()})

    def asked(self, method: str, request: bytes) -> bytes:
        """What the base is sent."""
        kind = _NAMED.get(method) if self.by_id else None
        if kind is None:
            return request
        message = kind.FromString(request)
        if not (message.sandbox_id and message.sandbox_name):
            return request
        message.ClearField("sandbox_name")
        return bytes(message.SerializeToString())

    def answered(self, method: str, answer: bytes) -> bytes:
        """What the base has answered."""
        if not self.reasons:
            return answer
        if method == "GetSandbox":
            one = pb.GetSandboxResponse.FromString(answer)
            return self._told(one, [one.sandbox], answer)
        if method == "ListSandboxes":
            several = pb.ListSandboxesResponse.FromString(answer)
            return self._told(several, several.sandboxes, answer)
        return answer

    def event(self, raw: bytes) -> bytes:
        """What the base tells who watches."""
        if not self.reasons:
            return raw
        event = pb.WatchSandboxesEvent.FromString(raw)
        if event.WhichOneof("payload") != "sandbox":
            return raw
        return self._told(event, [event.sandbox.sandbox], raw)

    def _told(self, whole: Any, seen: Iterable[pb.DriverSandbox], raw: bytes) -> bytes:
        changed = [self._translate(sandbox.status) for sandbox in seen]
        return bytes(whole.SerializeToString()) if any(changed) else raw

    def _translate(self, status: pb.DriverSandboxStatus) -> bool:
        """The base's own word stays, in the message; a condition that it has is left alone."""
        kinds = {c.type: c for c in reversed(status.conditions)}  # the first counts
        ready = kinds.get("Ready")
        if ready is None or ready.status.lower() != "false":
            return False
        meaning, own = self.reasons.get(ready.reason.lower()), ready.reason
        if meaning is None:
            return False
        ready.message = f"{own}: {ready.message}".removesuffix(": ")
        if meaning is Meaning.STARTING:
            ready.reason = "Starting"
            return True
        ready.reason = "DependenciesNotReady"
        if "Suspended" not in kinds:
            at = ready.last_transition_time
            status.conditions.append(_suspended(meaning, own, at))
        return True


PLAIN = Dialect()
"""The contract's own."""


def stops_still(seen: pb.DriverSandbox) -> bool:
    """Whether a base says that a stop which it has accepted is under way: what gateways take for
    that, too.
    """
    return any(
        c.type == "Suspended"
        and c.status.lower() == "false"
        and c.reason.lower() in {"podterminating", "podnotterminated"}
        for c in seen.status.conditions
    )


def _suspended(meaning: Meaning, own: str, at: str) -> pb.DriverCondition:
    """As upstream's Kubernetes driver says it; only this makes a gateway wait for a stop, or take
    it for done.
    """
    done = meaning is Meaning.STOPPED
    return pb.DriverCondition(
        type="Suspended",
        status="True" if done else "False",
        reason="Stopped" if done else "PodTerminating",
        message=own,
        last_transition_time=at,
    )
