"""What a guest says of a command is read strictly: it may be anything."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdriver.errors import HypervisorError, TimedOut
from vmdriver.hypervisor.guest_programs import AgentPrograms, read_answer
from vmdriver.lifecycle.ports.programs import Program, Said, Turn


def said(taken: int, out: bytes, err: bytes, code: int | None = None) -> str:
    parts = [base64.b64encode(part).decode() for part in (out, err)]
    text = f"taken={taken} out={parts[0]} err={parts[1]}"
    return text if code is None else f"{text} code={code}"


@given(
    st.integers(0, 100),
    st.binary(max_size=4096),
    st.binary(max_size=4096),
    st.none() | st.integers(0, 255),
)
def test_what_an_agent_writes_is_read(
    taken: int, out: bytes, err: bytes, code: int | None
) -> None:
    assert read_answer(said(taken, out, err, code), 100, 4096) == Said(
        taken, out, err, code
    )


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "taken=1",
        "taken=1 out= err= code=",
        said(101, b"", b""),
        said(1, b"x" * 4097, b""),
        said(1, b"", b"", 256),
        said(1, b"", b"", 999),
        said(1, b"", b"") + " more=1",
        "taken=-1 out= err=",
        "taken=٣ out= err=",
        "taken=1 out=A err=",
        "taken=1 out=AA=A err=",
        "taken=1 out=###= err=",
        "taken=1  out= err=",
        said(1, b"", b"") + "\n",
        "taken=1 out= err= code=1\x00",
    ],
)
def test_what_is_no_answer_is_an_error(answer: str) -> None:
    with pytest.raises(HypervisorError):
        read_answer(answer, 100, 4096)


@given(st.text(max_size=200), st.integers(0, 10), st.integers(0, 10))
def test_no_text_is_more_than_was_asked_for(text: str, given: int, room: int) -> None:
    try:
        found = read_answer(text, given, room)
    except HypervisorError:
        return
    assert found.taken <= given
    assert max(len(found.out), len(found.err)) <= room


def may() -> None:
    """Nothing is in the way."""


class Agent:
    """Which answers after a moment, and notes how many ask at once."""

    def __init__(self) -> None:
        self.asking, self.most = 0, 0
        self.fields: list[dict[str, str]] = []

    async def ping(self, _domain: str, _limit_s: float) -> dict[str, str]:
        await self.request("", "ping", {}, 1, 1)
        return {"commands": "1", "operator": "1"}

    async def request(
        self,
        _domain: str,
        _verb: str,
        fields: dict[str, str],
        _limit_s: float,
        _longest: int,
        begin: Callable[[], Awaitable[None]] | None = None,
    ) -> str:
        self.asking += 1
        self.most = max(self.most, self.asking)
        if begin is not None:
            await begin()
        self.fields.append(fields)
        await asyncio.sleep(0.01)
        self.asking -= 1
        return said(0, b"", b"")


async def test_one_of_a_machines_commands_asks_at_a_time() -> None:
    """What else is asked of its agent finds no queue."""
    agent = Agent()
    programs = AgentPrograms(agent)  # type: ignore[arg-type]
    turns = [programs.exchange("d", "n", Turn(1), 5) for _ in range(5)]
    await asyncio.gather(*turns, programs.begin("d", "n", Program(("x",)), 5, may), programs.end("d", "n", 5))  # fmt: skip
    assert (agent.most, len(agent.fields)) == (1, 8)
    others = [programs.exchange(str(n), "n", Turn(1), 5) for n in range(5)]
    await asyncio.gather(*others)
    assert agent.most == 5, "of others' they do"


async def test_whose_turn_does_not_come_is_told_so() -> None:
    agent = Agent()
    programs = AgentPrograms(agent)  # type: ignore[arg-type]
    first = asyncio.ensure_future(programs.exchange("d", "n", Turn(1), 5))
    await asyncio.sleep(0)
    with pytest.raises(TimedOut):
        await programs.exchange("d", "n", Turn(1), 0.001)
    await first
    assert await programs.exchange("d", "n", Turn(2), 5) == Said(0, b"", b"", None)


async def test_words_that_are_no_utf8_arrive_as_they_were() -> None:
    agent = Agent()
    programs = AgentPrograms(agent)  # type: ignore[arg-type]
    await programs.begin("d", "n", Program(("cat", os.fsdecode(b"\xff"))), 5, may)
    assert base64.b64decode(agent.fields[-1]["argv"]) == b"cat\0\xff\0"


async def test_who_may_not_any_more_when_the_agent_is_about_to_be_asked_does_not_ask() -> (
    None
):
    def may_not() -> None:
        assert agent.asking == 1, "its turn has come, and the channel is open"
        raise LookupError

    agent = Agent()
    programs = AgentPrograms(agent)  # type: ignore[arg-type]
    with pytest.raises(LookupError):
        await programs.begin("d", "n", Program(("x",)), 5, may_not)
