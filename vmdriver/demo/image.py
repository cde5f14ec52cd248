"""A small image for the demo, of files that this Debian has installed: nothing is fetched."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vmdriver.errors import NotFound
from vmdriver.host import facts
from vmdriver.oci import files

TAG = "demo"
_WANTED = ("python3", "dash", "bash", "coreutils")
"""The stand-in for the supervisor is a script for Python, and runs shells."""
_DPKG = Path("/var/lib/dpkg")
_TOP = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Links into /usr, where it is merged."""
_LEFT_OUT = ("/usr/share/",)
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nsandbox:x:10001:10001::/sandbox:/bin/bash\n",
    "etc/group": "root:x:0:\nsandbox:x:10001:\n",
}
_FOLDERS = ("root", "tmp", "var", "var/tmp", "run", "sandbox", "etc")
_KIND = "application/vnd.oci.image."


def build(layout: Path) -> str:
    """Write it as an OCI layout into a folder that is not there; its manifest's digest. Blocking,
    some seconds. NotFound where this host has no packages of Debian's.
    """
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer = blobs / "layer"
    with tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as archive:
        _fill(archive, _packages(_WANTED))
    digest = files.digest(layer)
    layer.rename(blobs / digest)
    described = {
        "mediaType": f"{_KIND}layer.v1.tar",
        "digest": f"sha256:{digest}",
        "size": (blobs / digest).stat().st_size,
    }
    config = {
        "architecture": facts.oci_architecture(),
        "os": "linux",
        "config": {"Env": ["LANG=C.UTF-8"]},
        "rootfs": {"type": "layers", "diff_ids": [described["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_KIND}manifest.v1+json",
        "config": _blob(blobs, f"{_KIND}config.v1+json", config),
        "layers": [described],
    }
    found = _blob(blobs, f"{_KIND}manifest.v1+json", manifest)
    named = {**found, "annotations": {"org.opencontainers.image.ref.name": TAG}}
    index = {"schemaVersion": 2, "manifests": [named]}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps(index))
    return str(found["digest"])


def _blob(blobs: Path, kind: str, content: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(content, sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


def _fill(archive: tarfile.TarFile, packages: Iterable[str]) -> None:
    done: set[str] = set()
    for name in _FOLDERS:
        _add_folder(archive, name, done)
    for name in _TOP:
        top = Path("/", name)
        if top.is_symlink():
            _add(archive, top, name, done)
    for name, text in _FILES.items():
        entry = tarfile.TarInfo(name)
        entry.mode, entry.size = 0o644, len(text)
        archive.addfile(entry, io.BytesIO(text.encode()))
    for package in packages:
        for path in _files_of(package):
            # As the kernel would find it: /bin is a link to /usr/bin on a merged /usr.
            real = Path(os.path.realpath(path.parent), path.name)
            _add(archive, real, str(real)[1:], done)
            for compiled in real.parent.glob(f"__pycache__/{real.stem}.*.pyc"):
                _add(archive, compiled, str(compiled)[1:], done)
    _add(archive, Path("/bin/sh").parent.resolve() / "sh", "usr/bin/sh", done)


def _add_folder(archive: tarfile.TarFile, name: str, done: set[str]) -> None:
    if name in done or not name:
        return
    _add_folder(archive, name.rpartition("/")[0], done)
    done.add(name)
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name.endswith("tmp") else 0o755
    archive.addfile(entry)


def _add(archive: tarfile.TarFile, path: Path, name: str, done: set[str]) -> None:
    """A file or a link of the host's; nothing where it has none of that name any more. Root's, and
    without the rights of its owner for whoever runs it.
    """
    try:
        found = path.lstat()
    except OSError:
        return
    if name in done or not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
        return
    _add_folder(archive, name.rpartition("/")[0], done)
    done.add(name)
    entry = tarfile.TarInfo(name)
    if stat.S_ISLNK(found.st_mode):
        entry.type, entry.linkname = tarfile.SYMTYPE, str(path.readlink())
        archive.addfile(entry)
        return
    entry.mode, entry.size = found.st_mode & 0o755, found.st_size
    with path.open("rb") as file:
        archive.addfile(entry, file)


def _files_of(package: str) -> Iterator[Path]:
    lists = [*(_DPKG / "info").glob(f"{package}.list")]
    lists += (_DPKG / "info").glob(f"{package}:*.list")
    for line in lists[0].read_text().splitlines() if lists else ():
        if line.startswith("/") and not line.startswith(_LEFT_OUT):
            yield Path(line)


def _packages(wanted: Iterable[str]) -> list[str]:
    """With all that they depend on, as far as it is installed."""
    try:
        status = (_DPKG / "status").read_text()
    except OSError as error:
        raise NotFound(
            "the demo's image is made of Debian's packages, which this host has not",
            detail=str(error),
            resolution="name an image that has python3 and a shell: --image",
        ) from error
    needs: dict[str, list[str]] = {}
    provided: dict[str, str] = {}
    for block in status.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", block, re.MULTILINE))
        if "installed" not in fields.get("Status", "").split():
            continue
        name = fields["Package"]
        both = f"{fields.get('Pre-Depends', '')}, {fields.get('Depends', '')}"
        needs[name] = [choice for part in both.split(",") for choice in part.split("|")]
        for other in fields.get("Provides", "").split(","):
            provided.setdefault(_name(other), name)
    found: list[str] = []
    waiting = list(wanted)
    while waiting:
        name = _name(waiting.pop())
        name = name if name in needs else provided.get(name, "")
        if name and name not in found:
            found.append(name)
            waiting += needs[name]
    return sorted(found)


def _name(relation: str) -> str:
    """Of `python3:any (>= 3.11~)`."""
    return relation.strip().partition(" ")[0].partition(":")[0]
