"""What of a guest's question for a name is passed on, and what the host's resolv.conf says."""

from __future__ import annotations

import dataclasses
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.settings import SETTINGS
from vmdriver.cli.doctor.network_findings import names_finding
from vmdriver.config import config_of
from vmdriver.config.views import settings_from
from vmdriver.host import resolv_conf
from vmdriver.host.resolv_conf import Followed, ResolvConf, parse
from vmdriver.network.names.desk import Pace
from vmdriver.network.names.query import LONGEST, question_of

NAME = b"\x03www\x07example\x03org\x00"
A, AXFR, ANY = 1, 252, 255


def asked(
    *,
    flags: int = 0x0100,
    counts: tuple[int, ...] = (1, 0, 0, 0),
    name: bytes = NAME,
    kind: int = A,
    world: int = 1,
    more: bytes = b"",
) -> bytes:
    return (
        struct.pack(">6H", 77, flags, *counts)
        + name
        + struct.pack(">HH", kind, world)
        + more
    )


def option(
    size: int = 1232, flags: int = 0, data: bytes = b"", version: int = 0
) -> bytes:
    return struct.pack(">BHHBBHH", 0, 41, size, 0, version, flags, len(data)) + data


def test_a_plain_question_is_written_anew_under_another_number() -> None:
    question = question_of(asked())
    assert question is not None
    assert question.message(5) == struct.pack(">H", 5) + asked()[2:]


def test_how_large_an_answer_may_be_is_passed_on_and_bounded_and_options_are_not() -> (
    None
):
    counts, secret = (1, 0, 0, 1), b"\x00\x08\x00\x04mark"
    for said, passed in ((1232, 1232), (65535, 4096), (0, 512)):
        question = question_of(asked(counts=counts, more=option(said, 0x8000, secret)))
        assert question is not None
        message = question.message(77)
        assert message == asked(counts=counts, more=option(passed, 0x8000))


@pytest.mark.parametrize(
    ("why", "message"),
    [
        ("an answer", asked(flags=0x8100)),
        ("an update of a zone", asked(flags=0x2900)),
        ("a look into the cache", asked(flags=0x0000)),
        ("no question", asked(counts=(0, 0, 0, 0))),
        ("two questions", asked(counts=(2, 0, 0, 0), more=NAME + b"\0\1\0\1")),
        ("an answer in it", asked(counts=(1, 1, 0, 0))),
        ("a zone's transfer", asked(kind=AXFR)),
        ("its changes", asked(kind=251)),
        ("of the server itself", asked(world=3)),
        ("a pointer for a name", asked(name=b"\xc0\x0c")),
        ("a label that is too long", asked(name=b"\x40" + b"a" * 64 + b"\0")),
        ("a name that is too long", asked(name=(b"\x3f" + b"a" * 63) * 4 + b"\0")),
        ("cut off", asked()[:-1]),
        ("cut off in its name", asked()[:15]),
        ("more behind it", asked(more=b"x")),
        ("a signature", asked(counts=(1, 0, 0, 1), more=b"\0\0\xfa\0\xff\0\0\0\0\0\0")),
        (
            "an option of another version",
            asked(counts=(1, 0, 0, 1), more=option(version=1)),
        ),
        (
            "an option that is cut off",
            asked(counts=(1, 0, 0, 1), more=option(data=b"1234")[:-1]),
        ),
        ("too much", asked(counts=(1, 0, 0, 1), more=option(data=b"0" * LONGEST))),
        ("nothing", b""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_else_is_passed_on(why: str, message: bytes) -> None:
    assert question_of(message) is None, why


@given(st.binary(max_size=300))
def test_what_is_passed_on_is_a_plain_question_whatever_came(noise: bytes) -> None:
    for message in (noise, asked(more=noise), asked(name=noise), noise + asked()):
        question = question_of(message)
        if question is not None:
            again = question_of(question.message(1))
            assert again is not None
            assert (again.asked, again.size) == (question.asked, question.size)


def test_an_answer_is_known_by_number_and_question_and_gets_the_guests_number() -> None:
    question = question_of(asked())
    assert question is not None
    answer = struct.pack(">6H", 9, 0x8180, 1, 0, 0, 0) + question.asked.upper()
    assert question.is_answered_by(answer, 9)
    assert question.for_guest(answer)[:2] == struct.pack(">H", 77)
    assert not question.is_answered_by(answer, 10), "another number"
    assert not question.is_answered_by(question.message(9), 9), "the question itself"
    other = answer.replace(b"WWW", b"ABC")
    assert not question.is_answered_by(other, 9), "an answer to something else"
    assert not question.is_answered_by(answer[:20], 9)


def test_a_question_that_no_server_answers_has_failed_and_is_told_so() -> None:
    question = question_of(asked())
    assert question is not None
    number, flags, *counts = struct.unpack_from(">6H", question.failed())
    assert (number, flags & 0x800F, counts) == (77, 0x8002, [1, 0, 0, 0])


def test_the_hosts_servers_and_domains_are_read_as_the_c_library_reads_them() -> None:
    text = """\
# from a VPN client
domain old.example
search corp.example. lab.example bad;domain
nameserver 127.0.0.53
nameserver nonsense
nameserver 2001:db8::53
nameserver 192.0.2.53
nameserver 192.0.2.54
nameserver
options edns0
"""
    found = parse(text)
    assert found.servers == ("127.0.0.53", "2001:db8::53", "192.0.2.53")
    assert found.search == ("corp.example", "lab.example")
    assert found.for_guests == ("192.0.2.53",)
    assert parse("") == ResolvConf(("127.0.0.1",), ())


def test_the_hosts_file_is_read_again_once_it_is_another(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    followed = Followed(path)
    assert followed.now().servers == ("127.0.0.1",), "as without one"
    path.write_text("nameserver 192.0.2.1\n")
    assert followed.now().servers == ("192.0.2.1",)
    fresh = tmp_path / "new"
    fresh.write_text("nameserver 192.0.2.2\n")
    os.replace(fresh, path)
    assert followed.now().servers == ("192.0.2.2",)
    path.unlink()
    assert followed.now().servers == ("127.0.0.1",)


@pytest.mark.parametrize(
    ("said", "text", "dns", "search"),
    [
        ("auto", "nameserver 192.0.2.1\nsearch a.example", ("192.0.2.1",), ()),
        (
            "auto",
            "nameserver 127.0.0.53\nsearch a.example",
            ("192.168.127.254",),
            ("a.example",),
        ),
        ("auto", "nameserver ::1\nnameserver 192.0.2.1", ("192.168.127.254",), ()),
        ("auto", "", ("192.168.127.254",), ()),
        ("auto", "nameserver 0.0.0.0", ("192.168.127.254",), ()),
        (
            "host",
            "nameserver 192.0.2.1\nsearch a.example",
            ("192.168.127.254",),
            ("a.example",),
        ),
        (["192.0.2.9"], "nameserver 127.0.0.1\nsearch a.example", ("192.0.2.9",), ()),
    ],
)
def test_guests_ask_the_hosts_first_server_or_where_they_cannot_the_host(
    said: object,
    text: str,
    dns: tuple[str, ...],
    search: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolv_conf, "read", lambda: parse(text))
    settings = settings_from(config_of({"dns": said}))
    assert (settings.dns, settings.search) == (dns, search)


def test_a_machine_asks_so_many_at_once_and_then_as_time_passes() -> None:
    pace = Pace()
    assert [pace.allows(5.0) for _ in range(300)].count(True) == 256
    assert not pace.allows(5.01)
    assert [pace.allows(6.01) for _ in range(300)].count(True) == 64
    assert [pace.allows(1e6) for _ in range(300)].count(True) == 256


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        ({"dns": ("192.0.2.1",)}, "ok", "guests ask 192.0.2.1 themselves"),
        ({"dns": ()}, "ok", "guests ask nobody themselves"),
        ({"egress": "none"}, "ok", "none for guests"),
        ({}, "warn", "none of the host's name servers answers (127.99.99.99)"),
    ],
)
async def test_doctor_says_whom_guests_ask_and_whether_anybody_answers(
    changes: dict[str, object], level: str, text: str
) -> None:
    settings = dataclasses.replace(
        SETTINGS, **{"dns": (SETTINGS.host_alias,), **changes}
    )
    found = await names_finding(settings, ("127.99.99.99",))
    assert found.level == level
    assert text in found.message
