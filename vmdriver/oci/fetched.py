"""The OCI layout that one fetch fills. skopeo writes it, in a box: nothing in it is believed.

Layers that the cache has are in it as further names of the same files, which are root's: they can
be read there, not changed. Layers that are new become the cache's as soon as they are whole.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vmdriver.errors import ImageError
from vmdriver.host.confined.user_namespace import give
from vmdriver.oci import files, manifest
from vmdriver.oci.cache import Cache
from vmdriver.oci.manifest import Layer, Manifest

_PREFIX = len("sha256:")


class FetchedLayout:
    """Blocking. `path`: where it is, in a folder that root alone can reach."""

    def __init__(self, path: Path, cache: Cache) -> None:
        self.path, self._cache = path, cache
        self._blobs = path / "blobs" / "sha256"
        self._wanted: list[str] = []

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

    def layers(self, wanted: Manifest | None, name: str) -> list[Path]:
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
        except OSError as error:
            raise ImageError(
                f"image {name} was not fetched as it should be: {error}"
            ) from error
        found = [layer.digest for layer in _layers(raw, name)]
        if wanted and found != [layer.digest for layer in wanted.layers]:
            raise ImageError(f"image {name} was changed while it was fetched")
        return [self._blobs / digest[_PREFIX:] for digest in found]


def _layers(raw: bytes, name: str) -> tuple[Layer, ...]:
    return manifest.parse(manifest.read(raw, name), raw, name).layers


def _folder(name: str, below: int | None) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=below)
