"""Implements lifecycle.ports.Images with skopeo, umoci and mke2fs.

Directory:
    layout/                      a shared OCI layout, layers stored once
    disks/<key>.ext4             base disks, 0444; <key> = manifest digest, layout
                                 version and size
    .work-*                      under way; never counts as present, removed at start
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmdriver.errors import (
    CommandError,
    DriverError,
    ImageError,
    InvalidRequest,
    NotFound,
    Refused,
)
from vmdriver.host import facts, process
from vmdriver.host.retry import retried
from vmdriver.host.threads import Pool
from vmdriver.lifecycle.ports import BaseDisk, ProgressSink
from vmdriver.oci import files, refusals
from vmdriver.oci.reference import FIELD, parse

LAYOUT_VERSION = "1"
"""Part of a base disk's key: raise it when the way from image to disk changes."""
_FETCH_DEADLINE_S = 1800.0
_BUILD_DEADLINE_S = 900.0


@dataclass(frozen=True)
class ImagePolicy:
    """What the operator allows."""

    disk_mib: int
    """Smallest size of a base disk; a larger image makes a larger disk."""
    insecure_registries: tuple[str, ...] = ()
    """host[:port] of registries that are spoken to without TLS."""
    allowed_directories: tuple[Path, ...] = ()
    """Directories below which oci:PATH references may point."""


class ImageStore:
    """The image cache of one state directory."""

    def __init__(self, root: Path, pool: Pool, policy: ImagePolicy) -> None:
        self._root = root
        self._layout = root / "layout"
        self._disks = root / "disks"
        self._pool = pool
        self._policy = policy
        self._building: dict[str, asyncio.Lock] = {}

    async def open(self) -> None:
        """Make the directories and remove what was under way when the last process
        ended.
        """
        await self._pool.run(files.open_store, self._root, self._disks)

    async def prepare(self, reference: str, progress: ProgressSink) -> BaseDisk:
        """See ports.Images. Two requests for one image share the work."""
        progress("ResolvingImage", f"resolving {reference}")
        source, digest = await self._resolve(reference)
        key = hashlib.sha256(
            f"{digest} {LAYOUT_VERSION} {self._policy.disk_mib}".encode()
        ).hexdigest()[:32]
        path = self._disks / f"{key}.ext4"
        async with self._building.setdefault(key, asyncio.Lock()):
            if path.exists():
                progress("CacheHit", f"{digest} is prepared already")
            else:
                progress("CacheMiss", f"{digest} is not prepared yet")
                await self._build(source, digest, path, progress)
        return BaseDisk(str(path), digest)

    # --- resolving

    async def _resolve(self, reference: str) -> tuple[str, str]:
        """The source in skopeo's words, and the digest of the manifest for this host's
        architecture.
        """
        if reference.startswith("oci:"):
            source = self._local_source(reference)
        else:
            parsed = parse(reference)
            source = f"docker://{parsed}"
        manifest = json.loads(
            (await self._skopeo("inspect", "--raw", source=source)).stdout
        )
        if "manifests" in manifest:
            entry = _choose(manifest, reference)
            if reference.startswith("oci:"):
                return source, entry["digest"]
            return f"docker://{parsed.host}/{parsed.path}@{entry['digest']}", entry[
                "digest"
            ]
        inspected = json.loads(
            (await self._skopeo("inspect", "--no-tags", source=source)).stdout
        )
        _check_architecture(inspected.get("Architecture", ""), reference)
        digest = inspected["Digest"]
        return (
            source
            if reference.startswith("oci:")
            else f"docker://{parsed.host}/{parsed.path}@{digest}"
        ), digest

    def _local_source(self, reference: str) -> str:
        text, _, tag = reference.removeprefix("oci:").partition(":")
        path = Path(text)
        allowed = [
            directory.resolve() for directory in self._policy.allowed_directories
        ]
        if not path.is_absolute() or not any(
            path.resolve().is_relative_to(directory) for directory in allowed
        ):
            raise InvalidRequest(
                FIELD,
                f"{text[:200]!r} is not below a directory that the operator allows",
                resolution=(
                    "list the directory in allowed_image_dirs, or use a "
                    "registry reference"
                ),
            )
        if not (path / "index.json").is_file():
            raise NotFound(
                f"{FIELD}: {text[:200]!r} is not an OCI layout", reason="ImageNotFound"
            )
        return f"oci:{path.resolve()}" + (f":{tag}" if tag else "")

    async def _skopeo(
        self, verb: str, *arguments: str, source: str, to: str | None = None
    ) -> process.Completed:
        host = source.removeprefix("docker://").partition("/")[0]
        insecure = host in self._policy.insecure_registries
        tls = (
            []
            if not source.startswith("docker:")
            else [f"--{'src-' if to else ''}tls-verify={str(not insecure).lower()}"]
        )
        command = [
            "skopeo",
            "--override-os",
            "linux",
            "--override-arch",
            facts.oci_architecture(),
        ]
        command += [verb, *tls, *arguments, source, *([to] if to else [])]
        try:
            return await retried(
                lambda: self._run_skopeo(command), on=ImageError, attempts=3
            )
        except CommandError as error:
            raise refusals.translated(source, error) from error

    @staticmethod
    async def _run_skopeo(command: list[str]) -> process.Completed:
        """Retries are for the network only: a plain no is final."""
        try:
            return await process.run(command, deadline_s=_FETCH_DEADLINE_S)
        except CommandError as error:
            if refusals.is_passing(error):
                raise ImageError(
                    f"the registry did not answer: {error}", detail=error.detail
                ) from error
            raise

    # --- building

    async def _build(
        self, source: str, digest: str, path: Path, progress: ProgressSink
    ) -> None:
        work = Path(tempfile.mkdtemp(prefix=".work-", dir=self._root))
        try:
            progress("PullingLayer", f"fetching {source.partition('://')[2] or source}")
            name = digest.replace("sha256:", "")[:32]
            await self._skopeo(
                "copy", "--quiet", source=source, to=f"oci:{self._layout}:{name}"
            )
            progress("ExportingRootfs", "unpacking the layers")
            await self._tool(
                [
                    "umoci",
                    "raw",
                    "unpack",
                    "--image",
                    f"{self._layout}:{name}",
                    str(work / "root"),
                ],
                digest,
            )
            progress("CreatingRootDisk", "making the base disk")
            await self._make_disk(work / "root", work / "disk", digest)
            await self._pool.run(files.publish, work / "disk", path)
            progress("PreparingRootfs", "the base disk is ready")
        finally:
            await self._pool.run(files.remove_tree, work)

    async def _tool(self, command: list[str], digest: str) -> None:
        try:
            await process.run(command, deadline_s=_BUILD_DEADLINE_S)
        except CommandError as error:
            raise ImageError(
                f"image {digest} cannot be turned into a disk: {error}",
                detail=error.detail,
                resolution="the image may be damaged; push it again",
            ) from error

    async def _make_disk(self, tree: Path, disk: Path, digest: str) -> None:
        content = await self._pool.run(files.tree_size, tree)
        size_mib = max(self._policy.disk_mib, content * 3 // 2 // 2**20 + 256)
        # A fixed UUID and hash seed: the same image makes the same disk.
        seed = hashlib.sha256(digest.encode()).hexdigest()
        uuid = f"{seed[:8]}-{seed[8:12]}-4{seed[13:16]}-8{seed[17:20]}-{seed[20:32]}"
        await self._tool(
            [
                "mke2fs",
                "-q",
                "-F",
                "-t",
                "ext4",
                "-m",
                "0",
                "-L",
                "root",
                "-U",
                uuid,
                "-d",
                str(tree),
                "-E",
                f"hash_seed={uuid},root_owner=0:0,lazy_itable_init=1",
                str(disk),
                f"{size_mib}M",
            ],
            digest,
        )


def _choose(index: Mapping[str, Any], reference: str) -> Mapping[str, Any]:
    wanted = facts.oci_architecture()
    offered = []
    for entry in index["manifests"]:
        platform = entry.get("platform", {})
        if (
            platform.get("architecture") == wanted
            and platform.get("os", "linux") == "linux"
        ):
            return dict(entry)
        offered.append(platform.get("architecture", "unknown"))
    raise _wrong_architecture(reference, ", ".join(sorted(set(offered))))


def _check_architecture(architecture: str, reference: str) -> None:
    if architecture and architecture != facts.oci_architecture():
        raise _wrong_architecture(reference, architecture)


def _wrong_architecture(reference: str, offered: str) -> DriverError:
    return Refused(
        f"{FIELD}: {reference[:200]!r} is for {offered}, this host is {facts.oci_architecture()}",
        reason="ImageArchitecture",
        resolution=f"push an image for linux/{facts.oci_architecture()}",
    )
