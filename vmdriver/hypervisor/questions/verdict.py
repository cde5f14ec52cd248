"""Whether libvirt may begin machines without asking QEMU for each feature of their CPU, and for
how long that is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as Xml

from pydantic import ValidationError

from vmdriver.model.spec import Frozen

_SCHEMA = 1
_OWN = {"seclabel", "genid", "{http://libvirt.org/schemas/domain/qemu/1.0}capabilities"}
"""Elements that differ from one begin to the next, or by what was asked for."""


class Verdict(Frozen):
    """What came of trying it once."""

    spared: bool
    reason: str = ""
    """Why not."""
    about: str
    """Versions of libvirt and QEMU, and whatever else it depends on."""


class _Kept(Frozen):
    schema_version: int = _SCHEMA
    verdicts: Mapping[str, Verdict] = {}
    """By the domain's type."""


@dataclass(frozen=True)
class Said:
    """What a machine that was begun says of itself."""

    domain_xml: str
    words: Mapping[str, int]
    """What its CPU can do: registers of CPUID by name, where it is an x86."""


def difference(asked: Said, unasked: Said) -> str:
    """In what the same machine, begun without questions, is not the same, in words, or ""."""
    changed = sorted(
        name
        for name in asked.words.keys() | unasked.words.keys()
        if asked.words.get(name) != unasked.words.get(name)
    )
    if changed:
        return f"its CPU differs in {', '.join(changed[:8])}"
    was, now = _comparable(asked.domain_xml), _comparable(unasked.domain_xml)
    for old, new in zip(was, now, strict=False):
        if old != new:
            return f"libvirt describes it as {new.strip()}, not {old.strip()}"
    return "" if len(was) == len(now) else "libvirt describes it differently"


def _comparable(domain_xml: str) -> list[str]:
    root = Xml.fromstring(domain_xml)  # noqa: S314 - libvirt's own output
    root.attrib.pop("id", None)
    for element in [child for child in root if child.tag in _OWN]:
        root.remove(element)
    return Xml.canonicalize(
        Xml.tostring(root, encoding="unicode"), strip_text=True
    ).split(">")


def load(path: Path) -> dict[str, Verdict]:
    """Those that are known, by the domain's type; none where nothing can be read."""
    try:
        kept = _Kept.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError, ValidationError):
        return {}
    return dict(kept.verdicts) if kept.schema_version == _SCHEMA else {}


def store(path: Path, kind: str, verdict: Verdict) -> None:
    """Keep it beside those of other types. OSError."""
    kept = _Kept(verdicts={**load(path), kind: verdict})
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    part.touch(0o600)  # the driver's alone
    part.write_text(kept.model_dump_json(indent=1) + "\n")
    part.replace(path)
