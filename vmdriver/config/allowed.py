"""What a setting may be, in words: for the table and the manual page that operators read."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

_WORDS = {int: "a number", float: "a number", Path: "a path", str: "a text"}
_MANY = {int: "numbers", str: "texts", Path: "paths"}


def allowed(field: FieldInfo) -> str:
    """Such as `1 to 255`, or `"auto", "kvm", "tcg"`, as they stand in a TOML file. What only the
    description says, such as the form of an address, is not in it.
    """
    return ", ".join(_kinds(field.annotation, _bounds(field)))


def _kinds(kind: Any, bounds: str) -> Iterator[str]:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        yield from (json.dumps(word) for word in inner)
    elif origin is Annotated:
        yield from _kinds(inner[0], bounds)
    elif origin in {Union, types.UnionType}:
        for one in inner:
            if one is not type(None):
                yield from _kinds(one, bounds)
    elif kind is bool:
        yield from ("true", "false")
    elif origin is list:
        yield f"a list of {_MANY.get(inner[0], 'tables')}"
    elif origin in {dict, Mapping}:
        yield "a table"
    else:
        yield bounds or _WORDS[kind]


def _bounds(field: FieldInfo) -> str:
    """Of a number; "": none."""
    found = {
        name: getattr(bound, name)
        for bound in field.metadata
        for name in ("ge", "gt", "le")
        if hasattr(bound, name)
    }
    if "gt" in found:
        least, more = f"above {found['gt']}", ""
    elif "ge" in found:
        least, more = f"{found['ge']}", " or more"
    else:
        return ""
    return f"{least} to {found['le']}" if "le" in found else f"{least}{more}"
