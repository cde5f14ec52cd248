"""Packets that try a machine's rules, and what is taken for an answer to them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdriver.network.reach.explained import Destination, Protocol
from vmdriver.network.reach.packets import Seen, first_frame, seen

MACS = ("02:00:00:00:00:01", "5e:70:e0:9c:42:95")
GUEST = "10.0.128.2"


def frame(protocol: Protocol = "tcp", port: int = 40001) -> bytes:
    to = Destination("203.0.113.9", 443, protocol)
    return first_frame(to, source=GUEST, port=port, macs=MACS)


def summed(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    return (total & 0xFFFF) + (total >> 16) & 0xFFFF


@pytest.mark.parametrize(("protocol", "number"), [("tcp", 6), ("udp", 17)])
def test_a_first_packet_is_whole_for_whoever_checks_it(
    protocol: Protocol, number: int
) -> None:
    packet = frame(protocol)[14:]
    assert summed(packet[:20]) == 0xFFFF
    body = packet[20:]
    assert (
        summed(packet[12:20] + struct.pack(">BBH", 0, number, len(body)) + body)
        == 0xFFFF
    )
    assert struct.unpack_from(">H", packet, 2) == (len(packet),)


def test_it_is_known_again_by_its_ports() -> None:
    assert seen(frame()) == Seen("203.0.113.9", (40001, 443))
    assert seen(frame("udp", 40007)) == Seen("203.0.113.9", (40007, 443))


@pytest.mark.parametrize(
    ("flags", "refuses", "answers"),
    [
        (0x04, True, False),
        (0x14, True, False),
        (0x12, False, True),
        (0x10, False, False),
    ],
)
def test_a_reset_refuses_and_only_a_taken_connection_answers(
    flags: int, refuses: bool, answers: bool
) -> None:
    changed = bytearray(frame())
    changed[14 + 20 + 13] = flags
    found = seen(bytes(changed))
    assert found is not None
    assert (found.refuses, found.answers) == (refuses, answers)


def test_icmps_word_is_about_the_packet_that_it_quotes() -> None:
    quoted = frame("udp", 40003)[14:42]
    head = bytearray(frame()[:34])
    head[14 + 9] = 1
    found = seen(bytes(head) + bytes([3, 13, 0, 0, 0, 0, 0, 0]) + quoted)
    assert found == Seen("203.0.113.9", (40003, 443), refuses=True)
    assert seen(bytes(head) + bytes([11, 0, 0, 0, 0, 0, 0, 0]) + quoted) is None


@given(st.binary(max_size=120))
def test_whatever_else_comes_is_no_answer_and_no_error(noise: bytes) -> None:
    for data in (noise, frame()[:14] + noise, frame()[:24] + noise):
        found = seen(data)
        assert found is None or len(found.ports) == 2
