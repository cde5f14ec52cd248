"""The OCI layout that one fetch fills. skopeo writes it, in a box: nothing in it is believed.

Layers that the cache has are in it as further names of the same files, which are root's: they can
be read there, not changed. Layers that are new become the cache's as soon as they are whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmdriver.errors import ImageError
from vmdriver.host.confined.user_namespace import give
from vmdriver.oci import files, manifest
from vmdriver.oci.cache import Cache
from vmdriver.oci.manifest import PLAIN, ZSTD, Manifest

_PREFIX = len("sha256:")
IMAGE = "image"
"""Tag of the image in a layout that was fetched."""
_MOST_CONFIG = 64 * 2**20
"""Bytes that a program may say to us, which read it before."""


@dataclass(frozen=True)
class LayerFile:
    """One layer of a layout."""

    path: Path
    packed: int
    """Bytes that were fetched for it."""
    media_type: str
    diff: str
    """Digest that it has when it is plain, as the image's configuration says."""

    @property
    def zstd(self) -> bool:
        """Whether it is compressed so."""
        return self.media_type == ZSTD


class FetchedLayout:
    """Blocking. `path`: where it is, in a folder that root alone can reach."""

    def __init__(self, path: Path, cache: Cache) -> None:
        self.path, self._cache = path, cache
        self._blobs = path / "blobs" / "sha256"
        self._wanted: list[str] = []
        self._manifest: dict[str, Any] = {}
        """The layout's."""

    def make(self, wanted: Manifest, theirs: bool) -> None:
        """With the layers that are known. `theirs`: the image users' to write, else root's."""
        self._wanted = [layer.digest[_PREFIX:] for layer in wanted.layers]
        self._blobs.mkdir(parents=True)
        folders = (self.path, self._blobs.parent, self._blobs)
        for folder in folders:
            folder.chmod(0o755)
        if theirs:
            give(*folders)
        for layer in wanted.layers:
            known = self._cache.blob(layer.digest)
            with contextlib.suppress(OSError):  # then it is fetched
                files.take_over(known, 0o444, links=True)
                os.link(known, self._blobs / known.name)

    def keep(self) -> None:
        """Put whole layers into the cache, too. skopeo gives a blob its name when it is whole and
        is what its digest says; umoci looks again. What is no plain file is left here.
        """
        with contextlib.suppress(OSError), self._folder() as folder:
            for name in self._wanted:
                place = self._cache.blob(name)
                if place.exists():
                    continue
                with contextlib.suppress(OSError):
                    files.take_over(folder / name, 0o444, into=place)

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        """Where the blobs are. OSError where there is a link on the way: it would lead root to
        what is not the layout's.
        """
        opened = [_folder(str(self.path), None)]
        try:
            for name in ("blobs", "sha256"):
                opened.append(_folder(name, opened[-1]))
            yield Path(f"/proc/self/fd/{opened[-1]}")
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def under_way(self) -> int:
        """Bytes of layers that are not whole yet."""
        found = 0
        for path in self.path.glob("oci-put-blob*"):
            with contextlib.suppress(FileNotFoundError):
                found += path.lstat().st_size
        return found

    def layers(self, wanted: Manifest | None, name: str) -> list[LayerFile]:
        """As they are in the layout: skopeo may have written the manifest anew. ImageError for
        image `name` where it is not as it should be, or has other layers than `wanted` has.
        """
        for file in (self.path / "index.json", self.path / "oci-layout"):
            with contextlib.suppress(OSError):
                files.take_over(file, 0o444)
        try:
            index = manifest.read(files.read_small(self.path / "index.json"), name)
            digest = manifest.last_of(index, name)[_PREFIX:]
            with self._folder() as folder:
                raw = files.read_small(folder / digest)
                found = manifest.parse(manifest.read(raw, name), raw, name)
                config = folder / found.config_digest[_PREFIX:]
                described = files.read_small(config, _MOST_CONFIG)
        except OSError as error:
            raise ImageError(
                f"image {name} was not fetched as it should be: {error}"
            ) from error
        digests = [layer.digest for layer in found.layers]
        if wanted and digests != [layer.digest for layer in wanted.layers]:
            raise ImageError(f"image {name} was changed while it was fetched")
        diffs = manifest.diffs(described, len(digests), name)
        self._manifest = manifest.read(raw, name)
        return [
            LayerFile(
                self._blobs / layer.digest[_PREFIX:], layer.size, layer.media_type, diff
            )
            for layer, diff in zip(found.layers, diffs, strict=True)
        ]

    def put(self, layer: LayerFile, part: Path) -> LayerFile:
        """A layer as a plain archive, which a program left in `part`. OSError."""
        name = layer.diff[_PREFIX:]
        with self._folder() as folder, contextlib.suppress(FileExistsError):
            # What is there instead is not what its name says: umoci finds that out.
            files.take_over(part, 0o444, into=folder / name)
        part.unlink()
        return dataclasses.replace(layer, path=self._blobs / name, media_type=PLAIN)

    def describe(self, layers: Sequence[LayerFile]) -> None:
        """From now on these are the image's layers."""
        described = [
            {
                **old,
                "mediaType": layer.media_type,
                "digest": f"sha256:{layer.path.name}",
            }
            | {"size": layer.path.lstat().st_size}
            for old, layer in zip(self._manifest["layers"], layers, strict=True)
        ]
        raw = json.dumps({**self._manifest, "layers": described}).encode()
        digest = manifest.digest_of(raw)
        kind = self._manifest.get("mediaType", manifest.IMAGE)
        tag = {"org.opencontainers.image.ref.name": IMAGE}
        entry = {
            "mediaType": kind,
            "digest": digest,
            "size": len(raw),
            "annotations": tag,
        }
        index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
        with self._folder() as folder:
            files.replace(folder / digest[_PREFIX:], raw)
        files.replace(self.path / "index.json", index)


def _folder(name: str, below: int | None) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=below)
