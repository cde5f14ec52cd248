"""What commands that list something print of times and sizes: as people say them, unless for machines."""

from __future__ import annotations

import argparse
import json
from datetime import timedelta
from typing import Any

import pytest

from vmdriver.cli import images, memory
from vmdriver.config import load
from vmdriver.model.record import utc_now
from vmdriver.service import admin_client

AT = (utc_now() - timedelta(hours=3, minutes=1)).isoformat()
SNAPSHOT = {"name": "one", "created": AT, "memory": True, "memory_bytes": 3 * 2**29, "disk_bytes": 2**20, "layers": ["/l/a", "/l/b"], "volumes": [{"name": "data", "size_mib": 64, "stored_bytes": 2**20}]}  # fmt: skip
IMAGE = {"digest": f"sha256:{'0' * 64}", "stored_bytes": 2**30, "used": AT, "in_use": True, "names": ["docker://r/x@sha256:0"]}  # fmt: skip


def said(
    words: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:  # fmt: skip
    monkeypatch.setattr(admin_client, "list_snapshots", lambda *_: [SNAPSHOT])
    monkeypatch.setattr(admin_client, "list_images", lambda *_: [IMAGE])
    what = words.pop("of")
    arguments = argparse.Namespace(**{"id": "s1", "json": False, **words})
    loaded = load(flags={"state_dir": "/nowhere"}, environment={})
    work = images.images if what == "images" else memory.snapshot
    assert work(loaded, arguments) == 0
    return capsys.readouterr().out


def test_a_snapshot_is_shown_as_a_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"of": "snapshot", "action": "show", "name": "one"}
    lines = said(words, monkeypatch, capsys).splitlines()
    assert lines[0] == "one"
    assert lines[1].split()[:4] == ["created", "3", "hours", "ago"]
    assert [line.split() for line in lines[2:]] == [
        ["memory", "1.5", "GiB"],
        ["disk", "1", "MiB"],
        ["volume", "data,", "64", "MiB,", "1", "MiB", "stored"],
        ["layer", "/l/a"],
        ["layer", "/l/b"],
    ]


def test_lists_say_how_long_ago_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ({"of": "snapshot", "action": "ls"}, {"of": "images", "action": "ls"}):
        assert "3 hours ago" in said(words, monkeypatch, capsys)


def test_for_machines_all_is_as_the_driver_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"of": "snapshot", "action": "show", "name": "one", "json": True}
    assert json.loads(said(words, monkeypatch, capsys)) == SNAPSHOT
    words = {"of": "images", "action": "ls", "json": True}
    assert json.loads(said(words, monkeypatch, capsys)) == [IMAGE]
