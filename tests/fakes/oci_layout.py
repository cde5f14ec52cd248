"""Images with hand-made layers, as OCI layouts."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vmdriver.host import facts

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
PLAIN = "application/vnd.oci.image.layer.v1.tar"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
Fill = Callable[[tarfile.TarFile], None]


def entry(
    name: str,
    content: bytes | str = b"",
    kind: bytes = tarfile.REGTYPE,
    **more: Any,
) -> Fill:
    """One file of a layer; `more` are fields of its TarInfo."""

    def add(archive: tarfile.TarFile) -> None:
        data = content.encode() if isinstance(content, str) else content
        info = tarfile.TarInfo(name)
        info.type, info.mode = kind, 0o644
        for field, value in more.items():
            setattr(info, field, value)
        if kind == tarfile.REGTYPE:
            info.size = len(data)
        archive.addfile(info, io.BytesIO(data))

    return add


def directory(name: str, mode: int = 0o755) -> Fill:
    return entry(name, kind=tarfile.DIRTYPE, mode=mode)


def link(name: str, target: str, *, hard: bool = False) -> Fill:
    kind = tarfile.LNKTYPE if hard else tarfile.SYMTYPE
    return entry(name, kind=kind, linkname=target)


def layer(*fills: Fill, zipped: bool = True) -> bytes:
    """A tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for fill in fills:
            fill(archive)
    return gzip.compress(buffer.getvalue(), 1) if zipped else buffer.getvalue()


def zstd(plain: bytes, *options: str) -> bytes:
    """Compressed by zstd(1)."""
    return subprocess.run(
        ["zstd", "-qc", *options], input=plain, capture_output=True, check=True
    ).stdout


class Layout:
    """An OCI layout that is written by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._index: list[dict[str, Any]] = []
        (path / "blobs" / "sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (self.path / "blobs" / "sha256" / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    def image(
        self,
        tag: str,
        layers: Iterable[bytes],
        *,
        media_type: str = GZIP,
        architecture: str = "",
        config: dict[str, Any] | None = None,
        in_index_of: tuple[str, ...] = (),
        diffs: list[str] | None = None,
    ) -> str:
        """Add one; its manifest's digest. `diffs`: what it says that its layers are when they are
        plain, instead of what is so. `in_index_of`: architectures of an index that names it
        for ours, and something else for these.
        """
        described, plains = [], []
        for content in layers:
            kind = ZSTD if content[:4] == _ZSTD_MAGIC else media_type
            described.append({"mediaType": kind, **self.blob(content)})
            plain = content
            if content[:2] == b"\x1f\x8b":
                try:
                    plain = gzip.decompress(content)
                except (OSError, EOFError):
                    plain = b""
            elif content[:4] == _ZSTD_MAGIC:
                unpacked = subprocess.run(
                    ["zstd", "-dcq"], input=content, capture_output=True, check=False
                )
                plain = unpacked.stdout
            plains.append(f"sha256:{hashlib.sha256(plain).hexdigest()}")
        found = {
            "architecture": architecture or facts.oci_architecture(),
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": diffs or plains},
        }
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                **self.blob(json.dumps(found).encode()),
            },
            "layers": described,
        }
        described_manifest = {
            "mediaType": kind,
            **self.blob(json.dumps(manifest).encode()),
        }
        digest = str(described_manifest["digest"])
        if in_index_of:
            described_manifest = self._indexed(described_manifest, in_index_of)
        self._index.append(
            {
                **described_manifest,
                "annotations": {"org.opencontainers.image.ref.name": tag},
            }
        )
        index = {"schemaVersion": 2, "manifests": self._index}
        (self.path / "index.json").write_text(json.dumps(index))
        return digest

    def _indexed(
        self, manifest: dict[str, Any], others: tuple[str, ...]
    ) -> dict[str, Any]:
        kind = "application/vnd.oci.image.index.v1+json"
        platform = {"os": "linux", "architecture": facts.oci_architecture()}
        entries = [{**manifest, "platform": platform}] if "" not in others else []
        entries = [
            {**manifest, "platform": {"os": "linux", "architecture": name}}
            for name in others
            if name
        ] + entries
        index = {"schemaVersion": 2, "mediaType": kind, "manifests": entries}
        return {"mediaType": kind, **self.blob(json.dumps(index).encode())}
