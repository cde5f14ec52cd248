"""Implements lifecycle.ports.memory.MemoryStore: checkpoints as directories
(model/checkpoint.py says what is in them).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from vmdriver.errors import (
    Exhausted,
    NotFound,
    Refused,
    StorageError,
)
from vmdriver.host.clearing import Clearing
from vmdriver.host.lanes import Lanes
from vmdriver.host.plain_file import open_plain, read_start
from vmdriver.host.threads import Threads
from vmdriver.host.users import ownership
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.lifecycle.ports.memory import Captured, SavedMachine, damaged
from vmdriver.model.checkpoint import (
    DOMAIN,
    MEMORY,
    STATE,
    FileIdentity,
    MemoryManifest,
    Part,
)
from vmdriver.model.plan import MachineUser
from vmdriver.storage import files
from vmdriver.storage.digests import (
    BLAKE3,
    SEGMENT,
    Segments,
    digests_of,
    kind_of,
    share_of,
)

_MANIFEST = "manifest.json"
_AT_ONCE = max(2, min(4, os.cpu_count() or 2))
"""Threads that digest at a time: as many as there are cores."""
_READ_S = 30.0
"""After which a disk that gives nothing at all is said not to answer."""


class Checkpoints:
    """All checkpoints. `owner`: who maps the memory where a machine has no user of its own."""

    def __init__(
        self, threads: Threads, owner: Ownership, clearing: Clearing | None = None
    ) -> None:
        self._clearing = clearing
        self._threads = threads
        self._owner = owner
        self._reserved: dict[str, int] = {}
        self._readers = Lanes("digests")
        self._digesting = asyncio.Semaphore(_AT_ONCE)

    async def begin(self, directory: str, needed_bytes: int) -> str:
        path = Path(directory)
        free = shutil.disk_usage(path.parent).free - sum(self._reserved.values())
        if needed_bytes > free:
            raise Exhausted(
                f"{needed_bytes // 2**20} MiB may be needed for the machine's memory, "
                f"{max(free, 0) // 2**20} MiB are free",
                reason="DiskFull",
                resolution="free space in the state directory, or remove snapshots",
            )
        self._reserved[directory] = needed_bytes
        return await self._threads.run(self._begin, path)

    def _begin(self, path: Path) -> str:
        files.remove_tree(path)
        path.mkdir(mode=0o711)
        path.chmod(0o711)
        memory = path / MEMORY
        files.write_new(memory, b"", 0o600, sync=False)
        return str(memory)

    async def lend(self, directory: str, user: MachineUser | None) -> None:
        # Not as its own: an owner can make it his to write to, while it is digested.
        reader = self._owner.uid if user is None else user.uid
        await self._change(directory, lambda memory: ownership.take(memory, {reader}))

    async def take_back(self, directory: str) -> None:
        await self._change(
            directory, lambda memory: ownership.own(memory, os.geteuid())
        )

    async def _change(self, directory: str, change: Callable[[Path], None]) -> None:
        memory = Path(directory) / MEMORY
        try:
            await self._threads.run(change, memory)
        except OSError as error:
            raise _unreadable(memory.parent, error) from error

    async def share(self, directory: str, user: MachineUser | None) -> None:
        path, gid = Path(directory), self._owner.gid if user is None else user.gid

        def share() -> None:
            ownership.share(path / MEMORY, gid)
            ownership.open_to(path, gid)

        try:
            await self._threads.run(share)
        except OSError as error:
            raise _unreadable(path, error) from error

    async def end(self, directory: str) -> None:
        self._reserved.pop(directory, None)

    async def write_parts(self, directory: str, captured: Captured) -> tuple[Part, ...]:
        path = Path(directory)
        what = "the checkpoint cannot be written"
        with files.or_error(what, "free space in the state directory"):
            for name, data in (
                (STATE, captured.state),
                (DOMAIN, captured.domain_xml.encode()),
            ):
                await self._threads.run(files.write_new, path / name, data)
            # Writing out and digesting need different things: both at once.
            names = (MEMORY, STATE, DOMAIN)
            parts, _ = await asyncio.gather(
                asyncio.gather(*(self._part(path / name) for name in names)),
                self._threads.run(files.sync_file, path / MEMORY),
            )
        return tuple(parts)

    async def _part(self, path: Path, kind: str = BLAKE3) -> Part:
        """Cancelled, it is given up at once: nobody waits for a disk that hangs, or is slow."""
        size = path.stat().st_size
        count = -(-size // SEGMENT)
        indices = iter(range(count))
        shares = await asyncio.gather(
            *(self._share(path, indices, kind) for _ in range(min(count, _AT_ONCE)))
        )
        found = {index: one for share in shares for index, one in share.items()}
        return Part(
            name=path.name,
            size=size,
            stored=sum(stored for _, stored in found.values()),
            digests=tuple(found[index][0] for index in range(count)),
        )

    async def _share(self, path: Path, indices: Iterator[int], kind: str) -> Segments:
        what, read = f"read {path.parent.name}/{path.name}", partial(share_of, path)
        async with self._digesting:
            return await self._readers.read(
                str(path), what, partial(read, indices, kind), deadline_s=_READ_S
            )

    async def publish(
        self, directory: str, target: str, manifest: MemoryManifest
    ) -> str:
        return await self._threads.run(
            self._publish, Path(directory), Path(target), manifest
        )

    @staticmethod
    def _publish(path: Path, target: Path, manifest: MemoryManifest) -> str:
        data = manifest.model_dump_json(indent=1).encode()
        try:
            target.parent.mkdir(mode=0o711, exist_ok=True)
            files.remove_tree(target)
            files.replace(path / _MANIFEST, data)
            path.rename(target)
            files.sync_directory(target.parent)
        except OSError as error:
            # Whoever is told that it failed lets the machine go on: then it is no checkpoint.
            with suppress(OSError):
                target.rename(path)
            raise StorageError(
                f"the checkpoint cannot be stored: {error.strerror}",
                detail=str(error),
            ) from error
        return hashlib.sha256(data).hexdigest()

    async def read(self, directory: str) -> tuple[MemoryManifest, str]:
        return await self._threads.run(self._read, Path(directory))

    @staticmethod
    def _read(path: Path) -> tuple[MemoryManifest, str]:
        file = path / _MANIFEST
        if file.is_fifo():  # it would be waited for
            raise Refused(f"the manifest of checkpoint {path.name} is a pipe")
        try:
            data = file.read_bytes()
            manifest = MemoryManifest.model_validate_json(data)
        except FileNotFoundError as error:
            raise NotFound(
                f"there is no checkpoint {path.name}", detail=str(path)
            ) from error
        except OSError as error:
            raise _unreadable(path, error) from error
        except ValidationError as error:
            raise Refused(
                f"the manifest of checkpoint {path.name} cannot be read",
                detail=str(error),
                reason="ManifestDamaged",
            ) from error
        return manifest, hashlib.sha256(data).hexdigest()

    async def needs(self, directory: str) -> set[str]:
        return await self._threads.run(_needs, Path(directory))

    async def damage(self, directory: str, parts: tuple[Part, ...]) -> list[str]:
        checks = (self._damage(Path(directory), part) for part in parts)
        return [text for text in await asyncio.gather(*checks) if text]

    async def _damage(self, directory: Path, part: Part) -> str:
        path = directory / part.name
        try:
            if path.is_symlink() or path.stat().st_size != part.size:
                return f"{part.name} has another size than it had"
            found = await self._part(path, kind_of(part.digests))
        except FileNotFoundError:
            return f"{part.name} is gone"
        except OSError as error:
            raise _unreadable(directory, error) from error
        for index, (was, now) in enumerate(
            zip(part.digests, found.digests, strict=True)
        ):
            if was != now:
                return f"{part.name} has changed (between {index * 64} and {index * 64 + 64} MiB)"
        return ""

    async def saved(self, directory: str, parts: tuple[Part, ...] = ()) -> SavedMachine:
        return await self._threads.run(_saved, Path(directory), parts)

    async def identify(self, paths: tuple[str, ...]) -> tuple[FileIdentity, ...]:
        return await self._threads.run(lambda: tuple(_identity(path) for path in paths))

    async def retire(self, directory: str, target: str) -> None:
        await self._threads.run(
            lambda: (Path(directory) / _MANIFEST).unlink(missing_ok=True)
        )
        await self.move(directory, target)

    async def unpublish(self, directory: str) -> None:
        def unlink() -> None:
            path = Path(directory)
            what = f"checkpoint {path.name} cannot be given up"
            with files.or_error(what), suppress(FileNotFoundError):
                (path / _MANIFEST).unlink(missing_ok=True)
                files.sync_directory(path)

        await self._threads.run(unlink)

    async def read_ahead(self, directory: str) -> None:
        """Measured on ext4, 512 MiB with 110 MiB of data: 180 ms with
        and 430 ms without for the reader's page faults.
        """
        await self._threads.run(_read_ahead, Path(directory) / MEMORY)

    async def move(self, directory: str, target: str) -> None:
        def rename() -> None:
            source, wanted = Path(directory), Path(target)
            if source.exists():
                files.remove_tree(wanted)
                wanted.parent.mkdir(mode=0o711, exist_ok=True)
                source.rename(wanted)
                files.sync_directory(wanted.parent)

        await self._threads.run(rename)

    async def remove(self, directory: str) -> None:
        self._reserved.pop(directory, None)
        await self._threads.run(self._remove, Path(directory))

    def _remove(self, path: Path) -> None:
        try:
            files.remove_tree(path)
        except OSError as error:
            why = f"it cannot be removed ({error.strerror})"
            if self._clearing is not None and self._clearing.displace(path, why):
                return
            raise StorageError(
                f"the checkpoint {path.name} cannot be removed: {error.strerror}",
                detail=str(error),
            ) from error

    async def listed(self, parent: str) -> list[str]:
        path = Path(parent)
        return sorted(p.name for p in path.iterdir()) if path.is_dir() else []


def _saved(path: Path, parts: tuple[Part, ...]) -> SavedMachine:
    was = {part.name: part for part in parts}
    if parts and not was.keys() >= {MEMORY, STATE, DOMAIN}:
        raise damaged("its manifest does not describe all of it")
    if parts and not (path / MEMORY).exists():
        raise damaged(f"{MEMORY} is gone")
    state, domain = (_small(path / name, was.get(name)) for name in (STATE, DOMAIN))
    try:
        return SavedMachine(state, domain.decode(), str(path / MEMORY))
    except UnicodeDecodeError as error:
        raise StorageError(
            f"checkpoint {path.name} cannot be read", detail=str(error)
        ) from error


def _small(path: Path, was: Part | None) -> bytes:
    """All of a small part, which is as it was if it is said how that was."""
    try:
        size = path.lstat().st_size
        if was is not None and (path.is_symlink() or size != was.size):
            raise damaged(f"{path.name} has another size than it had")
        data = read_start(path, size)
    except FileNotFoundError as error:
        if was is None:
            raise _unreadable(path.parent, error) from error
        raise damaged(f"{path.name} is gone") from error
    except OSError as error:
        raise _unreadable(path.parent, error) from error
    if was is not None and digests_of(data, kind_of(was.digests)) != was.digests:
        raise damaged(f"{path.name} has changed")
    return data


def _needs(path: Path) -> set[str]:
    try:
        found = json.loads((path / _MANIFEST).read_bytes())
        return {str(identity["path"]) for identity in found["files"]}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, KeyError, TypeError):
        return set()  # its digest says that it will never be loaded


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"checkpoint {path.name} cannot be read: {error.strerror}", detail=str(error)
    )


def _read_ahead(path: Path) -> None:
    try:
        descriptor = open_plain(path)
    except FileNotFoundError:
        return
    try:
        # In small pieces: the kernel cuts a request for the whole file down.
        for offset in range(0, os.fstat(descriptor).st_size, 2**20):
            os.posix_fadvise(descriptor, offset, 2**20, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)


def _identity(path: str) -> FileIdentity:
    try:
        info = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(
            f"{Path(path).name}, which the checkpoint needs, is gone", detail=path
        ) from error
    except OSError as error:
        raise _unreadable(Path(path), error) from error
    # Whoever is let in to read it changes the latter; and only we could set the former back.
    ours = info.st_uid == os.geteuid() and not info.st_mode & 0o022
    return FileIdentity(
        path=path,
        size=info.st_size,
        inode=info.st_ino,
        modified_ns=info.st_mtime_ns,
        changed_ns=0 if ours else info.st_ctime_ns,
    )
