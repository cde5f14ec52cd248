"""What the image cache has on disk: base disks with what is known of them, and layers.

Directory:
    blobs/sha256/<hex>           layers as they were fetched, stored once
    disks/<key>-<nonce>.ext4     base disks; <key> = manifest digest and layout version
    disks/<key>-<nonce>.json     an Entry, written last: without it a disk counts for nothing; its
                                 modification time is when the disk was asked for last
    trees/<key>/root             images that are needed as directories, such as the supervisor's
    trees/<key>/source.json      a TreeEntry, written last
    .work-*                      under way; never counts as present, removed at start
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from vmdriver.host.clearing import Clearing
from vmdriver.model.image import ImageConfig
from vmdriver.model.spec import Frozen
from vmdriver.oci import files

_log = logging.getLogger(__name__)
LAYOUT_VERSION = "2"
"""Part of a base disk's key: raise it when the way from image to disk changes."""


class Entry(Frozen):
    """One base disk."""

    schema_version: int = 1
    path: str
    digest: str
    """Of the manifest that it was made from."""
    references: tuple[str, ...]
    """As people asked for it, the digest of its index among them."""
    config: ImageConfig
    layers: tuple[str, ...]
    """Digests."""
    stored_bytes: int
    virtual_bytes: int
    created: float
    """Seconds since 1970."""
    identity: tuple[int, int, int]
    """Inode, size, and nanosecond of the last change: another one needs a look at `content`."""
    content: str
    """files.content_digest of the disk."""


class TreeEntry(Frozen):
    """One unpacked image."""

    schema_version: int = 1
    digest: str
    references: tuple[str, ...]
    """As it was asked for, and every name that holds a digest."""
    stored_bytes: int


@dataclass(frozen=True)
class Used:
    """An entry, and when it was asked for last (seconds since 1970)."""

    entry: Entry
    used: float


def key_of(digest: str) -> str:
    """The name that a base disk of this image begins with."""
    return hashlib.sha256(f"{digest} {LAYOUT_VERSION}".encode()).hexdigest()[:32]


def identity(path: Path) -> tuple[int, int, int]:
    """Of a file. FileNotFoundError."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


class Cache:
    """Blocking; its callers have threads. `root` is the images' directory."""

    def __init__(self, root: Path) -> None:
        self.root, self.blobs, self.disks = root, root / "blobs", root / "disks"
        self.trees = root / "trees"
        self._clearing = Clearing(root.parent / "set-aside")

    def open(self) -> None:
        """Make the directories; remove unfinished work, and what older versions left. What does
        not belong there is moved aside.
        """
        for path in (self.root, self.blobs, self.disks, self.trees):
            self._clearing.make_directory(path)
        files.spread(self.root)
        self._clearing.make_directory(self.blobs / "sha256", 0o700)
        unfinished = [*self.root.glob(".work-*"), *self.disks.glob(".*")]
        for path in [*unfinished, self.root / "layout"]:
            self._clearing.remove(path)
        for path in list(self.trees.iterdir()):
            if _tree_entry(path) is None:
                self._clearing.remove(path)
        for path in self.disks.glob("*.json"):
            self._clearing.make_way_for_file(path)

    def entries(self) -> list[Used]:
        """Of every disk that is there, in no order."""
        found = []
        for path in self.disks.glob("*.json"):
            try:
                entry = Entry.model_validate_json(path.read_bytes())
                used = path.stat().st_mtime
            except FileNotFoundError:
                continue
            except (OSError, ValidationError):
                _log.warning("%s cannot be read: its disk is made anew", path)
                self._clearing.remove(path)
                continue
            if Path(entry.path).exists():
                found.append(Used(entry, used))
        return found

    def find(self, digest: str) -> Entry | None:
        """The disk of that image, if it is there and as it was made."""
        for path in self.disks.glob(f"{key_of(digest)}-*.json"):
            try:
                entry = Entry.model_validate_json(path.read_bytes())
            except (OSError, ValidationError):
                self._clearing.remove(path)
                continue
            try:
                if identity(Path(entry.path)) == entry.identity or self._is_sound(
                    entry
                ):
                    return entry
            except OSError:
                pass
            self.set_aside(entry)
        return None

    def by_reference(self, reference: str) -> Entry | None:
        """The disk that was made for a reference which names a digest."""
        for used in self.entries():
            if reference in used.entry.references:
                return self.find(used.entry.digest)
        return None

    def _is_sound(self, entry: Entry) -> bool:
        """It was touched: is its content what it was?"""
        if files.content_digest(Path(entry.path)) != entry.content:
            return False
        self.save(entry.model_copy(update={"identity": identity(Path(entry.path))}))
        return True

    def set_aside(self, entry: Entry) -> None:
        """No new sandbox stands on this disk; those that do keep it until they go."""
        _log.error("base disk %s is not as it was made: it is made anew", entry.path)
        _meta(entry).unlink(missing_ok=True)

    def save(self, entry: Entry) -> None:
        """Durably."""
        part = self.disks / f".{_meta(entry).stem}.part"  # no name that `entries` reads
        part.write_bytes(entry.model_dump_json().encode())
        files.publish(part, _meta(entry), mode=0o600)

    def touch(self, entry: Entry) -> None:
        """It is asked for now."""
        os.utime(_meta(entry))

    def new_disk(self, digest: str) -> Path:
        """A path that no disk has."""
        return self.disks / f"{key_of(digest)}-{os.urandom(4).hex()}.ext4"

    def blob(self, digest: str) -> Path:
        """Where a layer is, once it is fetched."""
        return self.blobs / "sha256" / digest.removeprefix("sha256:")

    def all_blobs(self) -> list[Path]:
        """Every layer that is there."""
        return [path for path in (self.blobs / "sha256").iterdir() if path.is_file()]

    def drop_damaged_blobs(self, digests: Iterable[str]) -> list[str]:
        """Remove layers whose content is not what their name says; their digests."""
        damaged = []
        for digest in digests:
            path = self.blob(digest)
            if path.exists() and f"sha256:{files.digest(path)}" != digest:
                path.unlink()
                damaged.append(digest)
        return damaged

    def orphan_disks(self) -> list[Path]:
        """Disks without an entry: half published, set aside, or of an older version."""
        known = {used.entry.path for used in self.entries()}
        disks = (path for path in self.disks.glob("*.ext4") if path.is_file())
        return [path for path in disks if str(path) not in known]

    def tree(self, digest: str) -> Path:
        """Where the unpacked image is, once it is there."""
        return self.trees / key_of(digest) / "root"

    def tree_entries(self) -> list[tuple[Path, TreeEntry]]:
        """Every unpacked image, with its directory. What cannot be read is not there."""
        homes = (path.parent for path in self.trees.glob("*/source.json"))
        found = ((home, _tree_entry(home)) for home in homes)
        return [(home, entry) for home, entry in found if entry is not None]

    def publish_tree(self, root: Path, entry: TreeEntry) -> TreeEntry:
        """Put an unpacked image into its place, all at once: `root` and what is known of it
        become a directory's content, and that gets the name that is looked for. One that is
        there already may be in use, and stays; it goes by these names, too.
        """
        place = self.trees / key_of(entry.digest)
        known = _tree_entry(place)
        if known is not None and (place / "root").is_dir():
            names = dict.fromkeys((*known.references, *entry.references))
            entry = known.model_copy(update={"references": tuple(names)})
            self._write_source(place, entry)
            return entry
        home = root.with_name(f"{root.name}.home")
        home.mkdir(mode=0o700)
        root.rename(home / "root")
        self._write_source(home, entry)
        if place.exists():  # half removed; nobody is given it
            place.rename(home.with_name("before"))
        home.rename(place)
        files.sync_directory(self.trees)
        return entry

    @staticmethod
    def _write_source(home: Path, entry: TreeEntry) -> None:
        part = home / ".source"
        part.write_bytes(entry.model_dump_json().encode())
        files.publish(part, home / "source.json", mode=0o600)

    def remove(self, path: Path) -> None:
        """A disk with its entry, which goes first; a layer; an unpacked image."""
        if path.is_dir():
            (path / "source.json").unlink(missing_ok=True)
            self._clearing.remove(path)
            return
        self._clearing.remove(path.with_suffix(".json"))
        self._clearing.remove(path)

    def free_bytes(self) -> int:
        """Of the file system."""
        return shutil.disk_usage(self.root).free

    def used(self, path: Path) -> float:
        """When a disk, a layer or an unpacked image was asked for last, seconds since 1970; 0.0 for
        what nobody can be given.
        """
        mark = path / "source.json" if path.is_dir() else path
        if path.suffix == ".ext4":
            mark = path.with_suffix(".json")
        try:
            return mark.stat().st_mtime
        except FileNotFoundError:
            return 0.0


def _meta(entry: Entry) -> Path:
    return Path(entry.path).with_suffix(".json")


def _tree_entry(home: Path) -> TreeEntry | None:
    source = home / "source.json"
    if not source.is_file():  # a pipe would be waited for
        return None
    try:
        return TreeEntry.model_validate_json(source.read_bytes())
    except (OSError, ValidationError):
        return None
