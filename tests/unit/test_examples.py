"""What a docstring shows is what happens."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOWING = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("vmdriver", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "_proto" not in path.parts
    and re.search(r"^ +>>> ", path.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("module", SHOWING)
def test_examples_are_true(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried > 0, "its examples are not found"
    assert failed == 0
