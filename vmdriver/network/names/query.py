"""A guest's question for a name, read strictly and written anew (RFC 1035, RFC 6891). Pure.

The host's resolver takes what the driver asks for the host's own word: it may let it transfer
zones, change them, or look into its cache. So a guest gets through what a stub resolver asks, one
question for records of the Internet, and nothing of its message is passed on but name, type, and
how large the answer may be.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

LONGEST = 4096
"""Bytes of a question that is looked at."""
_HEADER = struct.Struct(">6H")
_RESPONSE, _TRUNCATED, _RECURSION, _OFFERED = 0x8000, 0x0200, 0x0100, 0x0080
_OPERATION, _CODE, _SERVER_FAILED = 0x7800, 0x000F, 2
_CHECKING_DISABLED, _AUTHENTIC = 0x0010, 0x0020
_INTERNET, _OPT, _NO_TYPE = 1, 41, 0
_TRANSFERS_AND_KEYS = range(249, 255)
"""TKEY, TSIG, IXFR, AXFR, MAILB, MAILA."""
_OPTION = struct.Struct(">BHHBBHH")
"""Root, type, size, upper bits of the code, version, flags, length of what follows."""
_WANTS_SIGNATURES = 0x8000
_LEAST, _MOST = 512, 4096
"""Of an answer in one datagram."""
_LONGEST_LABEL, _LONGEST_NAME = 63, 255


@dataclass(frozen=True)
class Question:
    """What a guest has asked."""

    number: int
    """The guest's, of its message."""
    asked: bytes
    """Name, type and class, as in the message."""
    flags: int
    """Those of its message that are passed on."""
    size: int | None
    """Most bytes that it takes in one datagram, where it says so."""
    signatures: bool

    def message(self, number: int) -> bytes:
        """The same question as a message of ours with that number."""
        return self._whole(number, self.flags)

    def _whole(self, number: int, flags: int) -> bytes:
        """With an option where the guest's has one: whoever is asked so has to answer so, or is
        taken for a server that knows of none.
        """
        head = _HEADER.pack(number, flags, 1, 0, 0, self.size is not None)
        if self.size is None:
            return head + self.asked
        wants = _WANTS_SIGNATURES if self.signatures else 0
        return head + self.asked + _OPTION.pack(0, _OPT, self.size, 0, 0, wants, 0)

    def is_answered_by(self, message: bytes, number: int) -> bool:
        """Whether that message is an answer to the one of ours with that number."""
        if len(message) < _HEADER.size + len(self.asked):
            return False
        found, flags, questions, *_ = _HEADER.unpack_from(message)
        asked = message[_HEADER.size : _HEADER.size + len(self.asked)]
        return bool(
            found == number
            and flags & _RESPONSE
            and questions == 1
            and asked.lower() == self.asked.lower()
        )

    def for_guest(self, message: bytes) -> bytes:
        """An answer, with the number that the guest knows."""
        return struct.pack(">H", self.number) + message[2:]

    def failed(self) -> bytes:
        """Says that no server has answered."""
        flags = self.flags | _RESPONSE | _OFFERED | _SERVER_FAILED
        return self._whole(self.number, flags)


def question_of(message: bytes) -> Question | None:
    """What it asks; None for whatever is no plain question for a name."""
    if not _HEADER.size < len(message) <= LONGEST:
        return None
    number, flags, questions, answers, authorities, more = _HEADER.unpack_from(message)
    odd = flags & (_RESPONSE | _OPERATION | _TRUNCATED | _CODE)
    if odd or not flags & _RECURSION or (questions, answers, authorities) != (1, 0, 0):
        return None
    end = _end_of_question(message)
    if end is None or more > 1:
        return None
    kept = flags & (_RECURSION | _CHECKING_DISABLED | _AUTHENTIC)
    asked = message[_HEADER.size : end]
    if not more:
        return (
            Question(number, asked, kept, None, False) if end == len(message) else None
        )
    return _with_option(message, end, Question(number, asked, kept, _LEAST, False))


def _end_of_question(message: bytes) -> int | None:
    """Behind name, type and class."""
    place = _HEADER.size
    while True:
        if place >= len(message) or place - _HEADER.size >= _LONGEST_NAME:
            return None
        length = message[place]
        place += 1 + length
        if length > _LONGEST_LABEL:  # or leads elsewhere
            return None
        if length == 0:
            break
    if place + 4 > len(message):
        return None
    kind, world = struct.unpack_from(">HH", message, place)
    fit = world == _INTERNET and kind not in {_NO_TYPE, _OPT, *_TRANSFERS_AND_KEYS}
    return place + 4 if fit else None


def _with_option(message: bytes, place: int, question: Question) -> Question | None:
    """The only record that may follow, with options that nobody is told of."""
    if place + _OPTION.size > len(message):
        return None
    root, kind, size, code, version, flags, length = _OPTION.unpack_from(message, place)
    whole = place + _OPTION.size + length == len(message)
    if (root, kind, code, version) != (0, _OPT, 0, 0) or not whole:
        return None
    return Question(
        question.number,
        question.asked,
        question.flags,
        min(max(size, _LEAST), _MOST),
        bool(flags & _WANTS_SIGNATURES),
    )
