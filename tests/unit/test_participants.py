"""One draft for both languages of extensions, one scheme of keys, and nobody asks which language it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vmdriver.errors import Refused
from vmdriver.extension import CallPoint, Draft, PlanDraft
from vmdriver.lifecycle.engine.ledger import Held, Scope
from vmdriver.lifecycle.extending.notes import (
    HOOKS,
    KEYS,
    PHASES,
    Mark,
    is_extensions,
    is_hold,
    meaning,
)
from vmdriver.lifecycle.extending.plan_changes import shape
from vmdriver.model.record import Change

ROOT = Path(__file__).resolve().parents[2]
Set = Callable[[str, str], None]


def by_phase() -> tuple[Set, Callable[[], str]]:
    draft = Draft({})

    def set_as(extension: str, value: str) -> None:
        draft.on_behalf_of(extension, CallPoint.PREPARE_PLAN)
        draft.set_environment("A", value)

    return set_as, lambda: draft.changes()[0].extension


def by_hook() -> tuple[Set, Callable[[], str]]:
    draft = PlanDraft()

    def set_as(extension: str, value: str) -> None:
        draft.on_behalf_of(extension)
        draft.set_environment("A", value)

    return set_as, lambda: draft.collected("env")["A"][1]


def by_drop_in() -> tuple[Set, Callable[[], str]]:
    draft = PlanDraft()

    def set_as(extension: str, value: str) -> None:
        draft.on_behalf_of(extension)
        draft.add_drop_in("50-a", value)

    return set_as, lambda: draft.collected("drop_in")["50-a"][1]


VIEWS = pytest.mark.parametrize("view", [by_phase, by_hook, by_drop_in])


@VIEWS
def test_of_two_that_set_one_value_differently_both_are_named(view) -> None:
    set_as, asker = view()
    set_as("first", "1")
    with pytest.raises(Refused, match="'first' and 'second' both set .*differently"):
        set_as("second", "2")
    assert asker() == "first"


@VIEWS
def test_of_two_that_agree_the_first_has_asked(view) -> None:
    set_as, asker = view()
    set_as("first", "1")
    set_as("second", "1")
    assert asker() == "first"


@VIEWS
def test_its_own_value_an_extension_may_change(view) -> None:
    set_as, asker = view()
    set_as("first", "1")
    set_as("first", "2")
    set_as("second", "2")
    assert asker() == "first"


def test_a_phase_and_a_hook_share_one_draft() -> None:
    change = Change(field="plan.vcpus", value=2, extension="phases")
    draft = shape([change])
    draft.on_behalf_of("hooks")
    draft.set_vcpus(2)
    assert draft.asker("vcpus") == "phases"
    with pytest.raises(Refused, match="'phases' and 'hooks' both set vcpus"):
        draft.set_vcpus(3)


@pytest.mark.parametrize(
    ("key", "language", "mark"),
    [
        ("launch-hook:seat", HOOKS, Mark.RUN),
        ("delete-hook:seat", HOOKS, Mark.STAY),
        ("run-phases:seat", PHASES, Mark.RUN),
        ("stay-phases:seat", PHASES, Mark.STAY),
        ("hold:seat:port:8080", PHASES, Mark.HOLD),
    ],
)
def test_keys_of_0_1_0_mean_what_they_meant(
    key: str, language: str, mark: Mark
) -> None:
    assert meaning(key) == (language, mark)
    assert is_extensions(key)
    assert is_hold(Held(key, Scope.RUNTIME)) is (mark is Mark.HOLD)


def test_no_key_begins_with_another_and_none_is_a_machines() -> None:
    for prefix in KEYS:
        assert [p for p in KEYS if prefix.startswith(p)] == [prefix]
    for key in ("machine", "tap", "overlay", "capture:layer", "hold", "launch-files"):
        assert not is_extensions(key)
        with pytest.raises(LookupError):
            meaning(key)


def test_the_lifecycle_never_asks_which_language_an_extension_follows() -> None:
    asked = re.compile(r"isinstance\([^)]*\b(Lifecycle)?Extension\b")
    sources = list((ROOT / "vmdriver/lifecycle").rglob("*.py"))
    assert sources
    assert [p.name for p in sources if asked.search(p.read_text())] == []
    loader = (ROOT / "vmdriver/extensions/loader.py").read_text()
    assert asked.search(loader), "it is chosen once, where they are loaded"
