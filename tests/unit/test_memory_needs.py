"""What a checkpoint on disk says that it needs, and the difference between gone and not readable now."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from vmdriver.errors import NotFound, Refused, StorageError
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.checkpoint import Part
from vmdriver.storage.checkpoints import Checkpoints


@pytest.fixture
async def store() -> AsyncIterator[Checkpoints]:
    threads = Threads("test", 2)
    yield Checkpoints(threads, Ownership(os.geteuid(), os.getegid()))
    threads.close()


async def test_a_manifest_of_another_release_says_what_it_needs(
    store: Checkpoints, tmp_path: Path
) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text('{"schema_version": 7, "files": [{"path": "/a"}, {"path": 1}]}')
    assert await store.needs(str(tmp_path)) == {"/a", "1"}
    with pytest.raises(Refused):
        await store.read(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": [1]}', '{"files": 1}'])
async def test_what_is_no_manifest_needs_nothing(
    store: Checkpoints, tmp_path: Path, text: str
) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert await store.needs(str(tmp_path)) == set()
    assert await store.needs(str(tmp_path / "absent")) == set()


async def test_what_cannot_be_read_now_is_not_taken_for_gone_or_damaged(
    store: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (
        tmp_path / "manifest.json"
    ).mkdir()  # reading it is an error, and not "no such file"
    (tmp_path / "memory").write_bytes(b"x")
    part = Part(name="memory", size=1, stored=1, digests=("d",))
    for call in (store.needs, store.read):
        with pytest.raises(StorageError):
            await call(str(tmp_path))

    def too_many(*_arguments: object, **_more: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", too_many)
    with pytest.raises(StorageError, match="Too many"):
        await store.damage(str(tmp_path), (part,))
    monkeypatch.setattr(Path, "stat", too_many)
    with pytest.raises(StorageError, match="Too many"):
        await store.identify((str(tmp_path / "memory"),))
    monkeypatch.undo()
    missing = Part(name="absent", size=1, stored=1, digests=("d",))
    assert await store.damage(str(tmp_path), (missing,)) == ["absent is gone"]
    with pytest.raises(NotFound):
        await store.identify((str(tmp_path / "absent"),))
