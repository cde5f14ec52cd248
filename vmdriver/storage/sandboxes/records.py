"""Records on disk: one directory per sandbox, there from the moment a create is
accepted until its delete is done.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from vmdriver.errors import AlreadyExists, InvalidRequest, StorageError
from vmdriver.host.threads import Threads
from vmdriver.model.ids import check_sandbox_id
from vmdriver.model.record import SandboxRecord, parse_record, stored_form
from vmdriver.model.set_aside import STATE_UNREADABLE, WAY_OUT, Salvage, salvage
from vmdriver.storage import files, spare
from vmdriver.storage.layout import Layout

_log = logging.getLogger(__name__)
_HALF_MADE = ".new-"


class RecordStore:
    """Implements lifecycle.ports.host.Records."""

    def __init__(self, layout: Layout, threads: Threads) -> None:
        self._layout = layout
        self._threads = threads
        self._unreadable: dict[str, str] = {}

    def unreadable(self) -> Mapping[str, str]:
        return dict(self._unreadable)

    def all_there(self) -> bool:
        return not self._layout.clearing.holds(self._layout.sandboxes.name)

    async def create(self, record: SandboxRecord, token: SecretStr | None) -> None:
        """Make the sandbox's directory with record and token, all at once.
        AlreadyExists if it is there.
        """
        await self._threads.run(self._create, record, token)

    def _create(self, record: SandboxRecord, token: SecretStr | None) -> None:
        target = self._layout.sandbox(record.id)
        if target.root.exists():
            raise AlreadyExists(f"sandbox {record.id} exists")
        made = part = self._layout.sandboxes / f"{_HALF_MADE}{record.id}"
        try:
            files.remove_tree(part)
            part.mkdir(mode=0o700)
            part.chmod(0o700)
            stored = stored_form(record)
            files.write_new(part / target.record.name, stored)
            spare.provide(part / target.record.name, len(stored))
            if token is not None:
                files.write_new(
                    part / target.token.name, token.get_secret_value().encode()
                )
            files.sync_directory(part)
            part.rename(target.root)
            made = target.root
            files.sync_directory(self._layout.sandboxes)
            self._layout.clearing.remove(self._layout.deleted / record.id)
        except OSError as error:
            with contextlib.suppress(OSError):  # the disk may be what is broken
                files.remove_tree(made)
            raise StorageError(
                f"sandbox {record.id} cannot be stored: {error.strerror}",
                detail=str(error),
            ) from error

    async def save(self, record: SandboxRecord) -> None:
        """Replace the record, durably. The directory must be there."""
        await self._threads.run(self._save, record)

    def _save(self, record: SandboxRecord) -> None:
        what = f"the record of sandbox {record.id} cannot be written"
        way_out = "check free space and permissions of the state directory"
        with files.or_error(what, way_out):
            spare.replace(self._layout.sandbox(record.id).record, stored_form(record))

    async def load_all(self) -> list[SandboxRecord]:
        """Every record. Half-made directories are removed; unreadable records are left
        alone and logged.
        """
        return await self._threads.run(self._load_all)

    def _load_all(self) -> list[SandboxRecord]:
        found = []
        self._unreadable = {}
        for directory in sorted(self._layout.sandboxes.iterdir()):
            if directory.name.startswith(_HALF_MADE):
                self._layout.clearing.remove(directory)
            elif not is_sandbox(directory):
                _log.warning("%s is no sandbox and is left alone", directory)
            else:
                try:
                    found.append(read_record(directory))
                except StorageError as error:
                    _log.error("%s", error.text())
                    self._unreadable[directory.name] = error.message
        return found

    async def salvage(self, sandbox_id: str) -> Salvage:
        return await self._threads.run(salvaged, self._layout.sandbox(sandbox_id).root)

    async def give_up(self, record: SandboxRecord) -> None:
        await self._threads.run(self._give_up, record)

    def _give_up(self, record: SandboxRecord) -> None:
        target = self._layout.sandbox(record.id)
        if target.root.is_symlink():
            text = "%s was a link: what it leads to is left alone: %s"
            _log.warning(text, record.id, target.root.readlink())
            target.root.unlink()
            target.root.mkdir(mode=0o700)
            target.root.chmod(0o700)
        # The record first: from then on it is one that goes, whatever its ledger is like.
        self._clear_the_way(target.record)
        self._save(record)
        self._clear_the_way(target.ledger)

    @staticmethod
    def _clear_the_way(path: Path) -> None:
        """A file is replaced in one step; a directory is in the way of that."""
        if path.is_symlink() or not path.is_dir():
            return
        with files.or_error(f"{path.name} is a directory that cannot be removed"):
            files.remove_tree(path)

    async def token(self, sandbox_id: str) -> SecretStr | None:
        """The sandbox's token, or None if the gateway gave none."""
        return await self._threads.run(self._token, sandbox_id)

    def _token(self, sandbox_id: str) -> SecretStr | None:
        try:
            return SecretStr(
                files.read(self._layout.sandbox(sandbox_id).token).decode()
            )
        except FileNotFoundError:
            return None

    async def remove(self, sandbox_id: str, *, noted: bool) -> None:
        """Remove the directory with everything in it; absent is fine. The last step of
        a delete.
        """
        await self._threads.run(self._remove, sandbox_id, noted)

    def _remove(self, sandbox_id: str, noted: bool) -> None:
        directory = self._layout.sandbox(sandbox_id).root
        if directory.is_symlink():
            raise StorageError(f"{directory.name} is a link and is left alone")
        if not directory.exists():
            return
        if noted and self._made_note(directory):
            return
        # First out of sight, so that a crash in the middle leaves a half-made
        # directory, not a half record.
        part = directory.with_name(f"{_HALF_MADE}{sandbox_id}")
        files.remove_tree(part)
        directory.rename(part)
        files.remove_tree(part)

    def _made_note(self, directory: Path) -> bool:
        """The directory itself becomes the note, in one step that takes no space: at no moment is
        there neither. False: it cannot be moved there; then a note is made beside it, if one can
        be.
        """
        note = self._layout.deleted / directory.name
        self._layout.clearing.remove(note)
        try:
            directory.rename(note)
        except OSError as error:
            _log.warning("%s: no note of its end: %s", directory.name, error)
            with contextlib.suppress(OSError):
                note.mkdir(mode=0o700)
                files.sync_directory(note.parent)
            return False
        os.utime(note)
        files.sync_directory(note.parent)
        files.sync_directory(directory.parent)
        for path in list(note.iterdir()):
            self._layout.clearing.remove(path)
        return True

    async def deleted(self, for_s: float) -> Mapping[str, float]:
        return await self._threads.run(self._deleted, for_s)

    def _deleted(self, for_s: float) -> Mapping[str, float]:
        """What is no note, or cannot be read, is no reason for anything but a line in the log."""
        found, clearing = dict[str, float](), self._layout.clearing
        for note in self._notes():
            with contextlib.suppress(OSError):
                for path in list(note.iterdir()) if _is_directory(note) else ():
                    clearing.remove(path)  # a driver was killed in the middle
                age_s = max(0.0, time.time() - note.lstat().st_mtime)
                there = os.path.lexists(self._layout.sandboxes / note.name)
                if there or age_s > for_s or not _is_directory(note):
                    clearing.remove(note)
                else:
                    found[note.name] = age_s
        return found

    async def forget_deleted(self, for_s: float) -> None:
        await self._threads.run(self._forget_deleted, for_s)

    def _forget_deleted(self, for_s: float) -> None:
        for note in self._notes():
            with contextlib.suppress(OSError):  # one that is not empty is being made
                if time.time() - note.lstat().st_mtime > for_s:
                    note.rmdir()

    def _notes(self) -> list[Path]:
        try:
            return sorted(self._layout.deleted.iterdir())
        except OSError as error:
            _log.warning("what was deleted of late is not known: %s", error)
            return []


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def is_sandbox(directory: Path) -> bool:
    """Whether that entry of the sandboxes' directory is one's: a directory named by an id, or
    what somebody has put elsewhere and left a link to.
    """
    try:
        check_sandbox_id(directory.name)
    except InvalidRequest:
        return False
    if directory.is_symlink():
        return (directory / "record.json").is_file()
    return directory.is_dir()


def read_record(directory: Path) -> SandboxRecord:
    """The record in a sandbox's directory. StorageError when it cannot be read."""
    path = directory / "record.json"
    if directory.is_symlink():
        raise _unreadable(directory.name, "its directory is a link")
    try:
        record = parse_record(files.read(path))
    except OSError as error:
        raise _unreadable(directory.name, error.strerror or str(error)) from error
    except ValueError as error:
        raise _unreadable(directory.name, str(error)) from error
    if record.id != directory.name:
        raise _unreadable(directory.name, "it is another sandbox's")
    return record


def _unreadable(sandbox_id: str, why: str) -> StorageError:
    return StorageError(
        f"sandboxes/{sandbox_id}/record.json cannot be read: {why}",
        reason=STATE_UNREADABLE,
        resolution=WAY_OUT,
    )


def salvaged(directory: Path) -> Salvage:
    """What can be made out of a sandbox's files, damaged or not."""
    texts = []
    for name in ("record.json", "ledger.jsonl"):
        try:
            texts.append(files.read(directory / name).decode(errors="replace"))
        except OSError:
            texts.append("")
    return salvage(*texts)
