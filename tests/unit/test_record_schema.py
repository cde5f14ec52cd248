"""What is stored of a sandbox, across releases."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from vmdriver.model.record import (
    SCHEMA,
    SCHEMA_MINOR,
    SandboxRecord,
    parse_record,
    stored_form,
)

OLD = {
    "schema_version": 1,
    "spec": {"id": "s1", "name": "box", "image": "example.org/image:1"},
    "created_at": "2026-11-22T10:00:00Z",
    "changed_at": "2026-11-22T10:00:00Z",
}


def stored(**more: object) -> bytes:
    return json.dumps({**OLD, **more}).encode()


def test_a_new_field_raises_the_minor_schema(
    golden: Callable[[str, str], None],
) -> None:
    """An older release keeps only the unknown fields of a newer minor schema."""
    schema = SandboxRecord.model_json_schema()
    models = {"SandboxRecord": schema, **schema["$defs"]}
    fields = {
        name: sorted(model["properties"])
        for name, model in models.items()
        if "properties" in model
    }
    known = {"schema": [SCHEMA, SCHEMA_MINOR], "fields": fields}
    try:
        golden("record-fields.json", json.dumps(known, indent=1, sort_keys=True) + "\n")
    except AssertionError:
        pytest.fail(
            "the fields of the record have changed: raise SCHEMA_MINOR if the last one was "
            "released, then pytest tests/unit/test_record_schema.py --regenerate"
        )


def test_a_record_of_the_first_release_is_read_and_becomes_one_of_ours() -> None:
    record = parse_record(stored())
    assert record.spec.name == "box"
    assert json.loads(stored_form(record))["schema_minor"] == SCHEMA_MINOR


def test_unknown_fields_are_kept_from_a_newer_minor_schema_only() -> None:
    newer = stored(schema_minor=SCHEMA_MINOR + 1, novelty={"deep": [1, None]})
    record = parse_record(newer).model_copy(update={"launches": 3})
    again = json.loads(stored_form(record))
    assert again["novelty"] == {"deep": [1, None]}
    assert again["launches"] == 3
    assert parse_record(stored_form(record)) == record
    with pytest.raises(ValueError, match="novelty"):
        parse_record(stored(schema_minor=SCHEMA_MINOR, novelty=1))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no JSON"),
        (b"\0\0", "no JSON"),
        (b"[]", "no JSON object"),
        (stored(schema_version=SCHEMA + 1), "newer release"),
        (stored(intent="perhaps"), "intent"),
        (stored(schema_minor="1.5"), "schema_minor"),
        (stored(launches="secret-value-of-somebody"), "launches"),
    ],
)
def test_what_is_wrong_is_said_without_what_is_in_it(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse_record(data)
    assert "secret" not in str(caught.value)
