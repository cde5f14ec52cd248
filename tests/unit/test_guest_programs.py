"""What a guest says of a command is read strictly: it may be anything."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdriver.errors import HypervisorError
from vmdriver.hypervisor.guest_programs import read_answer
from vmdriver.lifecycle.ports.programs import Said


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
