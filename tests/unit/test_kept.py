"""Bytes that are made once for everybody."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field

from vmdriver.service.kept import Kept


@dataclass(frozen=True)
class Value:
    text: str


@dataclass
class Encoder:
    made: list[str] = field(default_factory=list)

    def __call__(self, value: Value) -> bytes:
        self.made.append(value.text)
        return value.text.encode()


def test_a_value_is_encoded_once_as_long_as_somebody_holds_it() -> None:
    encoder = Encoder()
    kept, value = Kept(encoder), Value("a")
    assert [kept.of(value) for _ in range(50)] == [b"a"] * 50
    assert encoder.made == ["a"]


def test_another_value_that_says_the_same_is_another_value() -> None:
    encoder = Encoder()
    kept = Kept(encoder)
    first, second = Value("a"), Value("a")
    assert kept.of(first) == kept.of(second) == b"a"
    assert encoder.made == ["a", "a"]


def test_nothing_is_held_for_what_nobody_holds() -> None:
    kept = Kept(Encoder())
    values = [Value(str(number)) for number in range(100)]
    for value in values:
        kept.of(value)
    assert len(kept) == 100
    del values[10:], value
    gc.collect()
    assert len(kept) == 10


def test_a_value_in_the_place_of_one_that_is_gone_is_encoded_itself() -> None:
    kept = Kept(Encoder())
    places = set()
    for number in range(2000):
        value = Value(str(number))
        places.add(id(value))
        assert kept.of(value) == str(number).encode()
    assert len(places) < 2000, "no address was used twice: this has shown nothing"
