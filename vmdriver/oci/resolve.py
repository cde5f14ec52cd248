"""Finds out which image a reference means now."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from vmdriver.errors import DriverError, ImageError, NotFound
from vmdriver.host import facts
from vmdriver.host.threads import Threads
from vmdriver.oci import files, manifest
from vmdriver.oci.kept import KeptNames
from vmdriver.oci.manifest import Manifest
from vmdriver.oci.policy import ImagePolicy, Source, sources
from vmdriver.oci.reference import FIELD
from vmdriver.oci.skopeo import Skopeo

_log = logging.getLogger(__name__)
_MOST_RECENT = 1000


@dataclass(frozen=True)
class Resolved:
    """An image that is somewhere."""

    reference: str
    """As it was asked for."""
    source: Source
    manifest: Manifest
    references: tuple[str, ...]
    """Every name of it that holds a digest."""


class Resolver:
    """Remembers what it was told lately, and for good what `kept` names are."""

    def __init__(
        self, skopeo: Skopeo, policy: ImagePolicy, threads: Threads, kept: KeptNames
    ) -> None:
        self._skopeo, self._policy, self._threads = skopeo, policy, threads
        self._kept = kept
        self._recent: dict[str, tuple[float, Resolved]] = {}

    def recent(self, reference: str) -> Resolved | None:
        """As it was resolved a moment ago. Refused, InvalidRequest for what is not allowed."""
        sources(reference, self._policy)
        when, found = self._recent.get(reference, (0.0, None))
        if found is None or time.monotonic() - when > self._policy.refresh_s:
            self._recent.pop(reference, None)
            return None
        return found

    def pinned(self, reference: str) -> str:
        """The source that a reference with a digest names, or one that is kept to a digest; "" for
        others. The same errors.
        """
        return self._pinned(reference)[0]

    def _pinned(self, reference: str) -> tuple[str, Source]:
        source = sources(reference, self._policy)[-1]
        if digest := self._kept.digest(reference):
            source = source.at(digest)
        return source.name if "@sha256:" in source.name else "", source

    async def resolve(self, reference: str, *, again: bool = False) -> Resolved:
        """Ask, in every place where it may be. `again`: also for a name that is kept to a digest,
        which is kept to what it means now. NotFound, Refused, InvalidRequest, ImageError.
        """
        places = sources(reference, self._policy)
        pinned, source = self._pinned(reference)
        if pinned and not again:
            places = [source]
        for source in places:
            try:
                found = await self._look(reference, source)
            except DriverError as error:
                if source is places[-1]:
                    raise
                _log.debug("%s: not in %s: %s", reference, source.name, error)
                continue
            if found.source.registry:
                if len(self._recent) >= _MOST_RECENT:
                    self._recent.clear()
                self._recent[reference] = (time.monotonic(), found)
            digest = found.manifest.digest
            await self._threads.run(self._kept.keep, reference, digest)
            return found
        raise NotFound(f"{FIELD}: there is no image {reference[:200]}")

    async def _look(self, reference: str, source: Source) -> Resolved:
        name, names = reference[:200], [source.name]
        raw = await self._skopeo.manifest(source)
        # `skopeo inspect --raw` shows what a registry sends, whatever was asked for.
        _, pinned, digest = source.name.partition("@") if source.registry else ("",) * 3
        if pinned:
            _check(raw, digest, name)
        document = manifest.read(raw, name)
        if manifest.is_index(document):
            names.append(source.at(manifest.digest_of(raw)).name)
            digest = manifest.choose(document, facts.oci_architecture(), name)
            source = source.at(digest)
            raw = await self._manifest_of(source, digest)
            _check(raw, digest, name)
            document = manifest.read(raw, name)
        found = manifest.parse(document, raw, name)
        source = source.at(found.digest)
        names.append(source.name)
        held = tuple(dict.fromkeys(n for n in names if "@sha256:" in n))
        return Resolved(reference, source, found, held)

    async def _manifest_of(self, source: Source, digest: str) -> bytes:
        if source.registry:
            return await self._skopeo.manifest(source)
        directory = source.name.removeprefix("oci:").partition(":")[0]
        path = Path(directory) / "blobs" / "sha256" / digest.removeprefix("sha256:")
        try:
            return await self._threads.run(_read, path)
        except OSError as error:
            raise ImageError(
                f"{directory} does not hold the image {digest}: {error.strerror}"
            ) from error


def _check(raw: bytes, digest: str, name: str) -> None:
    if manifest.digest_of(raw) != digest:
        raise ImageError(f"image {name}: its manifest is not {digest}")


def _read(path: Path) -> bytes:
    """Whoever makes such layouts may write there what he likes; what counts is the digest."""
    return files.read_small(path.resolve())
