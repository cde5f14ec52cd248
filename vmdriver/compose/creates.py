"""Creates in a base on another host. The connection may break when it has done what it was asked
for and nobody has heard so: it is asked again, and says whether it is there already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.compose.base import FAR_AGAIN_S, Asked, Base, BaseRejected, Unanswered
from vmdriver.compose.patience import Patience
from vmdriver.errors import Unavailable

_OPEN = {
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
"""Answers to a second create that say nothing of the first: it may be under way, and what it takes
is what the second one does not get.
"""
_LOOK_AGAIN_S = (0.2, 0.5, 1.0, 2.0)
"""A create that is under way in the base is known there, and not to be had yet."""


class Wanted(Protocol):
    """Whose create it is."""

    @property
    def id(self) -> str:
        """The gateway's, never used twice."""

    @property
    def name(self) -> str:
        """Within its workspace."""

    @property
    def workspace(self) -> str:
        """Its."""


@dataclass(eq=False)
class _UnderWay:
    wanted: Wanted
    patience: Patience
    withdrawn: bool = False


class Creates:
    """Those under way. A base on this host is asked once: a connection that breaks is its end, and
    whoever asked learns that nobody knows.
    """

    def __init__(
        self, base: Base, look_again_s: Sequence[float] = _LOOK_AGAIN_S
    ) -> None:
        self._base, self._look_again_s = base, look_again_s
        self._under_way: set[_UnderWay] = set()

    def withdraw(self, sandbox_id: str, name: str) -> None:
        """A delete has come: what has not been answered is not asked for again."""
        for one in self._under_way:
            if one.wanted.id == sandbox_id or (
                not sandbox_id and one.wanted.name == name
            ):
                one.withdrawn = True

    async def ask(self, wanted: Wanted, request: bytes, asked: Asked) -> bytes:
        """The base's answer. BaseRejected, Unavailable; Unanswered where nobody knows."""
        if not self._base.is_far:
            return await self._once(request, asked, None)
        one = _UnderWay(wanted, self._base.patience(asked))
        self._under_way.add(one)
        try:
            return await self._until_answered(one, request, asked)
        finally:
            self._under_way.discard(one)

    async def _once(
        self, request: bytes, asked: Asked, patience: Patience | None
    ) -> bytes:
        return await self._base.call(
            "CreateSandbox", request, asked, repeat=False, patience=patience
        )

    async def _until_answered(
        self, one: _UnderWay, request: bytes, asked: Asked
    ) -> bytes:
        lost: Unanswered | None = None
        for pause_s in (0.0, *FAR_AGAIN_S):
            await asyncio.sleep(pause_s)
            try:
                return await self._once(request, asked, one.patience)
            except Unanswered as error:
                lost = error
            except Unavailable as error:
                # Not asked this time: what became of the first time stays open.
                raise (lost or error) from error
            except BaseRejected as error:
                if lost is None:
                    raise
                there = await self._is_there(one, asked)
                if there and not one.withdrawn:
                    return bytes(pb.CreateSandboxResponse().SerializeToString())
                is_open = there or (there is None and error.code in _OPEN)
                raise (lost if is_open else error) from error
            if one.withdrawn:
                break
        assert lost is not None  # noqa: S101 - every round returns, raises or sets it
        raise lost

    async def _is_there(self, one: _UnderWay, asked: Asked) -> bool | None:
        """Whether what the base has of that id is what was asked for. None: it does not say."""
        wanted, patience = one.wanted, one.patience
        question = pb.GetSandboxRequest(sandbox_id=wanted.id).SerializeToString()
        for wait_s in (*self._look_again_s, None):
            try:
                raw = await self._base.call(
                    "GetSandbox", question, asked, patience=patience
                )
            except BaseRejected:  # an answer that is none says no more than "not found"
                if wait_s is not None:
                    await asyncio.sleep(wait_s)
                continue
            found = pb.GetSandboxResponse.FromString(raw).sandbox
            return (found.name, found.workspace) == (wanted.name, wanted.workspace)
        return None
