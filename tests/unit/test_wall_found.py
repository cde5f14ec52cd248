"""What a driver found of the wall, for commands that look while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmdriver.model.wall import Lack, Offer
from vmdriver.storage.sandboxes import wall_found


def test_what_was_found_is_read_as_it_was_stored(tmp_path: Path) -> None:
    path = tmp_path / "wall.json"
    for offer in (
        Offer(("uid", "box")),
        Offer((), (Lack("box", "no bwrap", "install bubblewrap"),)),
    ):
        wall_found.store(path, offer)
        assert wall_found.load(path) == offer
    assert [p.name for p in tmp_path.iterdir()] == ["wall.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"parts": ["next year\'s"]}'])
def test_what_cannot_be_read_is_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wall.json"
    assert wall_found.load(path) is None
    path.write_text(text)
    assert wall_found.load(path) is None
