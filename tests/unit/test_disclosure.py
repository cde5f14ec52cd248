"""What of stored documents may leave the host: nothing of which nobody has thought."""

from __future__ import annotations

import json
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from vmdriver.cli.bundle.disclosure import (
    FIELDS,
    LEDGER_DATA,
    SETTINGS_TOLD,
    SETTINGS_WITHHELD,
    WITHHELD,
    disclosed,
    disclosed_entry,
    disclosed_setting,
    without_console,
)
from vmdriver.config import SETTINGS
from vmdriver.lifecycle.launch import endings
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.model.checkpoint import MemoryManifest
from vmdriver.model.phase import MachineState, Phase
from vmdriver.model.record import NO_BARRIER, REFUSED_TO, SandboxRecord
from vmdriver.model.volume import Volume
from vmdriver.oci.cache import Entry, TreeEntry

SECRET = "canary-5f0e93f1c0ffee"


def models(kind: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    """That one and every one in it."""

    def within(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            models(annotation, seen)
        for inner in get_args(annotation):
            within(inner)

    if kind not in seen:
        seen.add(kind)
        for field in kind.model_fields.values():
            within(field.annotation)
    return seen


STORED = set[type[BaseModel]]().union(
    *(
        models(kind, set())
        for kind in (SandboxRecord, MemoryManifest, Entry, TreeEntry, Volume)
    )
)


@pytest.mark.parametrize("kind", sorted(STORED, key=lambda kind: str(kind)))
def test_each_field_that_is_stored_is_told_or_withheld_on_purpose(
    kind: type[BaseModel],
) -> None:
    told, withheld = (set(words.split()) for words in FIELDS[kind])
    assert told | withheld == set(kind.model_fields), (
        f"say in vmdriver/cli/bundle/disclosure.py whether {kind.__name__}'s field may leave the host"
    )
    assert not told & withheld


def test_each_setting_is_told_or_withheld_on_purpose() -> None:
    told, withheld = set(SETTINGS_TOLD.split()), set(SETTINGS_WITHHELD.split())
    assert told | withheld == set(SETTINGS)
    assert not told & withheld


def test_no_field_of_free_form_is_told() -> None:
    """What may hold anything is somebody else's."""
    for kind in STORED:
        for name in FIELDS[kind][0].split():
            annotation = kind.model_fields[name].annotation
            assert annotation is not Any
            assert get_origin(annotation) is None or Any not in get_args(annotation), (
                f"{kind.__name__}.{name}"
            )


def test_what_no_list_names_is_withheld_whatever_it_is() -> None:
    shown = disclosed(
        SandboxRecord, {"novelty": {"deep": SECRET}, "spec": [SECRET], "plan": SECRET}
    )
    assert SECRET not in json.dumps(shown)
    for line in ({"op": "intent", "key": "tap", "data": SECRET}, SECRET, [SECRET]):
        assert SECRET not in json.dumps(disclosed_entry(line))
    held = {"key": "hold:x:y:z", "data": {"extension": "x", "domain": SECRET}}
    assert SECRET not in json.dumps(disclosed_entry(held)), "an extension's own"
    assert "domain" in LEDGER_DATA


@pytest.mark.parametrize("key", ["connection", "openshell_endpoint", "otlp_endpoint"])
def test_an_address_is_told_without_login_and_parameters(key: str) -> None:
    value = f"https://me:{SECRET}@gateway.example.org:8443/x?key={SECRET}"
    assert disclosed_setting(key, value) == "https://gateway.example.org:8443/x"
    plain = "qemu:///embed"
    assert disclosed_setting(key, plain) == plain


def test_a_guests_words_in_a_message_are_withheld() -> None:
    """Whatever the guest says, a reader of reports is told no more than that it has said it."""
    said = endings.of_machine(
        MachineState.BROKEN, GuestReport("failed", reason=SECRET), Phase.LAUNCHING, SECRET, False
    )  # fmt: skip
    before = f"it is tried again ({REFUSED_TO} freeze: {SECRET})"
    for text in (said.message, before, f"{NO_BARRIER} {SECRET}"):
        assert SECRET in text
        shown = without_console(text)
        assert SECRET not in shown
        assert shown.endswith(WITHHELD)
        assert len(shown) > len(WITHHELD) + 10, "what we say of it stays"
    shown = disclosed(SandboxRecord, {"failure": said.model_dump()})
    assert SECRET not in json.dumps(shown)
