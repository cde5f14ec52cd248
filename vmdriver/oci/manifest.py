"""Reads image indexes, manifests and configurations. Pure; whatever a registry sends, the answer
is a value or an error that names the image.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from vmdriver.errors import DriverError, ImageError, Refused
from vmdriver.host.visible import visible
from vmdriver.model.image import ImageConfig
from vmdriver.oci.reference import FIELD

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_INDEXES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}
IMAGE = "application/vnd.oci.image.manifest.v1+json"
PLAIN = "application/vnd.oci.image.layer.v1.tar"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
_LAYERS = {
    PLAIN,
    ZSTD,
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
}
_MOST_LAYERS = 500
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Layer:
    """One layer as it is transferred."""

    digest: str
    size: int
    media_type: str


@dataclass(frozen=True)
class Manifest:
    """An image for one architecture. `digest` is of the bytes that were read."""

    digest: str
    config_digest: str
    layers: tuple[Layer, ...]

    @property
    def transfer_bytes(self) -> int:
        """Of all layers."""
        return sum(layer.size for layer in self.layers)


def digest_of(raw: bytes) -> str:
    """As references name it."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def read(raw: bytes, name: str) -> dict[str, Any]:
    """A manifest or an index. ImageError for anything else."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _bad(name, "its manifest is not JSON") from error
    if not isinstance(document, dict):
        raise _bad(name, "its manifest is not an object")
    return document


def is_index(document: dict[str, Any]) -> bool:
    """Whether it names an image for each of several platforms."""
    return _media_type(document) in _INDEXES or "manifests" in document


def choose(index: dict[str, Any], architecture: str, name: str) -> str:
    """Digest of the image for Linux on this architecture. Refused, naming what is offered."""
    offered = set()
    for entry in _objects(index.get("manifests"), name, "manifests"):
        platform = entry.get("platform") or {}
        if not isinstance(platform, dict):
            raise _bad(name, "a platform in its index is no object")
        found = (platform.get("os", "linux"), platform.get("architecture", "unknown"))
        if found == ("linux", architecture):
            return _digest(entry, name)
        offered.add("/".join(str(part) for part in found))
    raise wrong_architecture(
        name, ", ".join(sorted(offered)) or "nothing", architecture
    )


def last_of(index: dict[str, Any], name: str) -> str:
    """Digest of what a layout's index named last. ImageError."""
    entries = _objects(index.get("manifests"), name, "manifests")
    if not entries:
        raise _bad(name, "nothing was fetched")
    return _digest(entries[-1], name)


def parse(document: dict[str, Any], raw: bytes, name: str) -> Manifest:
    """A manifest. Refused for kinds of layers that cannot be unpacked, naming the layer."""
    if document.get("schemaVersion") == 1:
        raise Refused(
            f"{FIELD}: {name} is of Docker's old schema 1",
            reason="ImageFormat",
            resolution="push it again with a tool of this decade",
        )
    config = document.get("config")
    if not isinstance(config, dict):
        raise _bad(name, "its manifest has no config")
    layers = []
    for number, entry in enumerate(_objects(document.get("layers"), name, "layers"), 1):
        layer = Layer(_digest(entry, name), _size(entry, name), _media_type(entry))
        if layer.media_type not in _LAYERS:
            raise Refused(
                f"{FIELD}: layer {number} of {name} is of type {layer.media_type[:100]!r}",
                reason="ImageFormat",
                resolution="layers must be tar archives, plain, gzip or zstd; push the image so",
            )
        if entry.get("urls"):
            raise Refused(
                f"{FIELD}: layer {number} of {name} is to be fetched from elsewhere",
                reason="ImageFormat",
                resolution="layers must be in the image's own registry; push the image so",
            )
        layers.append(layer)
    if len(layers) > _MOST_LAYERS:
        raise _bad(name, f"it has more than {_MOST_LAYERS} layers")
    return Manifest(digest_of(raw), _digest(config, name), tuple(layers))


def parse_config(raw: bytes, name: str, architecture: str) -> ImageConfig:
    """An image's configuration. Refused where it is for another architecture."""
    document = read(raw, name)
    found = document.get("architecture")
    if found and found != architecture:
        raise wrong_architecture(name, str(found)[:40], architecture)
    inner = document.get("config") or {}
    if not isinstance(inner, dict):
        raise _bad(name, "its config is not an object")
    return ImageConfig(
        environment=_environment(inner.get("Env"), name),
        user=_text(inner.get("User"), name, "User"),
        working_directory=_text(inner.get("WorkingDir"), name, "WorkingDir"),
        entrypoint=tuple(_texts(inner.get("Entrypoint"), name, "Entrypoint")),
        command=tuple(_texts(inner.get("Cmd"), name, "Cmd")),
    )


def diffs(raw: bytes, count: int, name: str) -> list[str]:
    """Digests of an image's `count` layers as plain archives, of its configuration. ImageError."""
    root = read(raw, name).get("rootfs")
    found = root.get("diff_ids") if isinstance(root, dict) else None
    if not isinstance(found, list) or len(found) != count:
        raise _bad(name, "its config does not name its layers")
    return [_digest({"digest": diff}, name) for diff in found]


def _environment(value: Any, name: str) -> dict[str, str]:
    """Names that no shell can set are left out, as container engines' users expect nothing else
    of them.
    """
    found = {}
    for text in _texts(value, name, "Env"):
        key, _, content = text.partition("=")
        if _NAME.fullmatch(key) and "\0" not in content:
            found[key] = content
    return found


def wrong_architecture(name: str, offered: str, wanted: str) -> DriverError:
    """Refused."""
    return Refused(
        f"{FIELD}: {name} is for {visible(offered[:200])}, this host is {wanted}",
        reason="ImageArchitecture",
        resolution=f"push an image for linux/{wanted}",
    )


def _objects(value: Any, name: str, field: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise _bad(name, f"its {field} are no list of objects")
    return value


def _texts(value: Any, name: str, field: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(_is_text(v) for v in value):
        raise _bad(name, f"its config's {field} is no list of texts")
    return value


def _text(value: Any, name: str, field: str) -> str:
    if value is None:
        return ""
    if not _is_text(value):
        raise _bad(name, f"its config's {field} is no text")
    return str(value)[:1024]


def _is_text(value: Any) -> bool:
    """JSON can say halves of characters, which no record and no message can hold."""
    return isinstance(value, str) and not _HALF.search(value)


def _digest(entry: dict[str, Any], name: str) -> str:
    digest = entry.get("digest")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise _bad(name, f"it names {str(digest)[:80]!r}, which is no sha256 digest")
    return digest


def _size(entry: dict[str, Any], name: str) -> int:
    size = entry.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise _bad(name, "a layer has no size")
    return size


def _media_type(entry: dict[str, Any]) -> str:
    return str(entry.get("mediaType", ""))


def _bad(name: str, problem: str) -> ImageError:
    return ImageError(
        f"image {name} cannot be used: {problem}",
        resolution="push the image again",
    )
