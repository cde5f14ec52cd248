"""Tables in documents are what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import documents, history

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", documents.documents(ROOT), ids=lambda p: p.name)
def test_no_number_in_a_block_was_typed_by_hand(path: Path) -> None:
    text = path.read_text()
    filled = documents.fill(text, history.measured())
    assert filled == text, "run: scripts/bench --documents"


def test_every_block_that_can_be_made_is_in_a_document_once() -> None:
    text = "\n".join(path.read_text() for path in documents.documents(ROOT))
    for name in documents.BLOCKS:
        assert text.count(f"<!-- measured: {name} -->") == 1, name
    assert text.count("<!-- measured: end -->") == len(documents.BLOCKS)
