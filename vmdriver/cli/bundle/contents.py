"""What is packed of the state directory. Reads; a file that is missing, damaged, a pipe or a link
is said to be that, and keeps nothing else out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vmdriver.cli.bundle.archive import Member
from vmdriver.cli.bundle.disclosure import disclosed, disclosed_entry
from vmdriver.cli.unread import as_document, known_sandboxes, read_state
from vmdriver.config import Config
from vmdriver.host import console_file
from vmdriver.host.plain_file import open_plain, read_start
from vmdriver.model.checkpoint import MemoryManifest
from vmdriver.model.ids import domain_name
from vmdriver.model.record import SandboxRecord
from vmdriver.model.volume import Volume
from vmdriver.oci.cache import Entry, TreeEntry
from vmdriver.storage.layout import Layout, SandboxFiles
from vmdriver.storage.sandboxes.guest_report import read_report

MOST_OF_LOG = 4 * 2**20
_MOST_OF_DOCUMENT = 4 * 2**20
_MOST_OF_MACHINES_LOG = 2**18
_MOST_LISTED = 20_000
DAEMONS_LOGS = Path("/var/log/libvirt/qemu")
_PRIVATE = {"extensions", "blobs", "root"}
"""Folders whose files are not even named: extensions' own, and what images hold."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for. `sandbox`: "" for all; `console`: with what guests printed."""

    sandbox: str
    console: bool


def as_json(name: str, document: Any, what: str) -> Member:
    """A member that holds a document."""
    text = json.dumps(document, indent=1, default=str)
    return Member(name, f"{text}\n".encode(), what)


def of_state(config: Config, layout: Layout, wanted: Wanted) -> Iterator[Member]:
    """Everything that is packed of the state directory, and libvirt's logs."""
    listed = "\n".join(_listed(layout.root, wanted.sandbox))
    text = "names, sizes, owners and times of its files"
    yield Member("state.txt", f"{listed}\n".encode(), text)
    for path, what in (
        (layout.accelerator, "whether a probe guest has booted on KVM"),
        (layout.questions, "whether libvirt asks QEMU for each feature of a CPU"),
        (layout.wall, "parts of the wall that can be had here"),
        (layout.boot / "current" / "manifest.json", "which boot files guests have"),
    ):
        document = _document(path, lambda found: found)
        yield as_json(f"state/{path.name}", document, what)
    notes = [vars(note) for note in layout.clearing.notes()]
    yield as_json("state/set-aside.json", notes, "what was in the way, moved aside")
    for name in known_sandboxes(layout):
        if wanted.sandbox in {"", name}:
            yield from _of_sandbox(layout.sandbox(name), wanted)
    yield from _of_volumes(layout, wanted.sandbox)
    yield from _of_templates(layout)
    yield as_json("images.json", list(_of_images(layout)), "images that are prepared")
    yield from _machines_logs(config, layout, wanted.sandbox)


def _of_sandbox(files: SandboxFiles, wanted: Wanted) -> Iterator[Member]:
    top = f"sandboxes/{files.root.name}"
    record = _document(files.record, lambda found: disclosed(SandboxRecord, found))
    yield as_json(f"{top}/record.json", record, "what is known of it")
    lines = [_line(text) for text in _text(files.ledger).splitlines()]
    yield as_json(f"{top}/ledger.json", lines, "what is held for it")
    state = read_state(files)
    if state.problems:
        found = as_document(state)
        yield as_json(f"{top}/unreadable.json", found, "what of it cannot be read")
    report = read_report(str(files.status))
    said = {"phase": report.phase, "exit_code": report.exit_code}
    said |= {"reason": report.reason} if wanted.console else {}
    found = {**said, "stamps": report.stamps}
    yield as_json(f"{top}/guest.json", found, "what its guest said of itself last")
    for path in sorted(manifests(files)):
        name = path.parent.relative_to(files.root)
        manifest = _document(path, lambda found: disclosed(MemoryManifest, found))
        text = "what its kept memory is of"
        yield as_json(f"{top}/{name}/manifest.json", manifest, text)
    if wanted.console:
        shown = console_file.tail(files.console, console_file.KEPT)
        yield Member(f"{top}/console.txt", f"{shown}\n".encode(), "what it printed")


def manifests(files: SandboxFiles) -> list[Path]:
    """Of memory that is kept of it."""
    folders = [files.suspended, files.mapped, files.kept]
    with contextlib.suppress(OSError):
        folders += files.snapshots.iterdir()
    return [folder / "manifest.json" for folder in folders if folder.is_dir()]


def _of_volumes(layout: Layout, sandbox: str) -> Iterator[Member]:
    """Of one sandbox: those that are attached to it."""
    for folder in _folders(layout.volumes):
        note = _document(folder / "volume.json", partial(disclosed, Volume))
        attached = note.get("attached") if isinstance(note, dict) else None
        if not sandbox or (isinstance(attached, dict) and sandbox in attached):
            name = f"volumes/{folder.name}/volume.json"
            yield as_json(name, note, "what is known of that volume")


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(inner for inner in path.iterdir() if inner.is_dir())
    except OSError:
        return []


def _of_templates(layout: Layout) -> Iterator[Member]:
    for folder in _folders(layout.templates):
        manifest = _document(
            folder / "manifest.json", lambda found: disclosed(MemoryManifest, found)
        )
        name = f"templates/{folder.name}/manifest.json"
        yield as_json(name, manifest, "what that template is of")


def _of_images(layout: Layout) -> Iterator[Any]:
    kinds: tuple[tuple[type[BaseModel], str], ...] = (
        (Entry, "disks/*.json"),
        (TreeEntry, "trees/*/source.json"),
    )
    for kind, pattern in kinds:
        for path in sorted(layout.images.glob(pattern)):
            yield _document(path, partial(disclosed, kind))


def _machines_logs(config: Config, layout: Layout, sandbox: str) -> Iterator[Member]:
    """libvirt's, of each machine: what QEMU was begun with, and what it said on its way out."""
    instance, embedded = config.driver.instance, config.driver.connection == "embed"
    folder = layout.libvirt / "log" / "qemu" if embedded else DAEMONS_LOGS
    only = _domain(instance, layout.sandbox(sandbox)) if sandbox else ""
    others = re.compile(rf"{re.escape(instance)}-[0-9a-f]{{8}}-")
    for path in _newest_first(folder.glob(f"{instance}-*.log")):
        if others.match(path.stem):
            continue  # of another driver, whose secrets are not known here
        if only in {"", path.stem}:
            text = _tail(path, _MOST_OF_MACHINES_LOG)
            what = "libvirt's and QEMU's log of that machine"
            yield Member(f"machines/{path.name}", text.encode(), what)
    if not embedded:
        return
    for path in sorted((layout.libvirt / "etc" / "qemu").glob("*.xml")):
        if only in {"", path.stem}:
            text = _text(path)
            what = "that machine, as libvirt has it defined"
            yield Member(f"machines/{path.name}", text.encode(), what)


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    """Where there is no room for all, those that are there are of what happened last."""

    def changed(path: Path) -> float:
        try:
            return -path.lstat().st_mtime
        except OSError:
            return 0.0

    return sorted(paths, key=changed)


def _domain(instance: str, files: SandboxFiles) -> str:
    """Of its machine: one that waited keeps its name when a sandbox takes it over."""
    record = read_state(files).record
    if record is not None and record.plan is not None:
        return record.plan.domain
    return domain_name(instance, files.root.name)


def _listed(root: Path, sandbox: str) -> Iterator[str]:
    count = 0
    for folder, names, found in os.walk(root, followlinks=False):
        at = Path(folder)
        names[:] = sorted(n for n in names if n not in _PRIVATE)
        if sandbox and at == root / "sandboxes":
            names[:] = [name for name in names if name == sandbox]
        for name in (*names, *sorted(found)):
            count += 1
            if count > _MOST_LISTED:
                yield f"and more than {_MOST_LISTED}"
                return
            yield _entry(at / name, root)


def _entry(path: Path, root: Path) -> str:
    name = json.dumps(str(path.relative_to(root)))[1:-1]
    try:
        info = path.lstat()
    except OSError as error:
        return f"?  {name}  {error.strerror}"
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(info.st_mtime))
    stored = info.st_blocks * 512
    return (
        f"{stat.filemode(info.st_mode)} {info.st_uid}:{info.st_gid} {info.st_size} {stored} "
        f"{when}  {name}"
    )


def _document(path: Path, shown: Callable[[Any], Any]) -> Any:
    """A JSON file as it is told; what it is instead where it is none, without any of it."""
    try:
        data = read_start(path, _MOST_OF_DOCUMENT)
    except OSError as error:
        return {"not read": error.strerror or str(error)}
    try:
        return shown(json.loads(data))
    except (ValueError, RecursionError) as error:
        return {"no JSON": type(error).__name__, "bytes": len(data)}


def _line(text: str) -> Any:
    try:
        return disclosed_entry(json.loads(text))
    except (ValueError, RecursionError) as error:
        return {"no JSON": type(error).__name__, "characters": len(text)}


def _text(path: Path) -> str:
    try:
        return read_start(path, _MOST_OF_DOCUMENT).decode(errors="replace")
    except OSError:
        return ""


def _tail(path: Path, most: int) -> str:
    """The end of a file that only grows, from a line's beginning."""
    try:
        descriptor = open_plain(path)
    except OSError as error:
        return f"not read: {error.strerror}\n"
    try:
        return tail_of(descriptor, most)
    finally:
        os.close(descriptor)


def tail_of(descriptor: int, most: int) -> str:
    """The same of an open one. OSError."""
    size = os.fstat(descriptor).st_size
    data = os.pread(descriptor, most + 1, max(0, size - most - 1))
    return end_of(data, most)


def end_of(data: bytes, most: int) -> str:
    """Its last lines: half a secret at the beginning would be none that is known."""
    text = data[-most:].decode(errors="replace")
    return text.partition("\n")[2] if len(data) > most else text
