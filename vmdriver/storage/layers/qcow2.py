"""The headers of our qcow2 layers (QEMU's docs/interop/qcow2.txt; all numbers are big-endian).

A machine's QEMU writes to its layer, so once a guest has taken it over the header is the guest's
word: it could name any file of the host as the disk's data or as what is below it, and whoever
opens the layer with more rights would read and write that file. So no program opens one of them
before `read` has found that its header is exactly such as `new_layer` writes it: nothing in it is
optional, and whatever it does not know is refused. It follows no name, reads 4 KiB, and needs no
right but to read.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vmdriver.errors import StorageError
from vmdriver.host.plain_file import open_plain

MAGIC = b"QFI\xfb"
CLUSTER = 1 << 16
REFUSED = "LayerRefused"
"""Reason of the errors."""
_VERSION, _CLUSTER_BITS, _REFCOUNT_ORDER = 3, 16, 4
_CORRUPT, _EXTERNAL_DATA, _SUB_CLUSTERS = 1 << 1, 1 << 2, 1 << 4
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII8x")
"""Up to the fields of version 3 that there were in 2022; the last 8 bytes are the compression type,
and padding: they are zero.
"""
_L2_BYTES = CLUSTER // 16 * CLUSTER
"""What an entry of the L1 table stands for: a cluster of L2 entries of 16 bytes."""
_END, _BACKING_FORMAT, _FEATURE_NAMES = 0, 0xE2792ACA, 0x6803F857
_READ = 4096
"""A header of ours has 112 bytes, 16 to 24 of the format's name, 392 of the features' names if QEMU
has written it anew, and the path.
"""
_LONGEST_NAME = 1023
_LARGEST = 1 << 50

Format = Literal["raw", "qcow2"]


@dataclass(frozen=True)
class Header:
    """What a layer of ours says of itself."""

    virtual_bytes: int
    backing: str
    """The absolute path of what it stands on."""
    backing_format: Format


@dataclass(frozen=True)
class _Fields:
    magic: bytes
    version: int
    name_at: int
    name_size: int
    cluster_bits: int
    virtual_bytes: int
    encryption: int
    l1_entries: int
    l1_at: int
    refcounts_at: int
    refcount_clusters: int
    snapshots: int
    snapshots_at: int
    incompatible: int
    compatible: int
    autoclear: int
    refcount_order: int
    header_bytes: int


def _l1_entries(virtual_bytes: int) -> int:
    return -(-virtual_bytes // _L2_BYTES)


def read(path: Path | str) -> Header:
    """A layer's header. StorageError when it cannot be read, or is not such as this driver writes
    it: the text says what of it is not.
    """
    descriptor = _open(Path(path))
    try:
        data, size = os.pread(descriptor, _READ, 0), os.fstat(descriptor).st_size
    except OSError as error:
        raise _unreadable(Path(path), error) from error
    finally:
        os.close(descriptor)
    try:
        return parse(data, size)
    except ValueError as error:
        raise StorageError(
            f"layer {Path(path).name} is not as this driver writes it: {error}",
            detail=str(path),
            reason=REFUSED,
            resolution="it is left as it is, and nothing opens it; return to a snapshot, "
            "or delete the sandbox",
        ) from error


def _open(path: Path) -> int:
    try:
        return open_plain(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"layer {path.name} cannot be read: {error.strerror}", detail=str(error)
    )


def is_marked_corrupt(data: bytes) -> bool:
    """Whether QEMU has given a layer up, whose first 80 bytes these are."""
    return bool(int.from_bytes(data[72:80], "big") & _CORRUPT)


def parse(data: bytes, file_bytes: int) -> Header:
    """The header in a layer's first 4096 bytes; the file has `file_bytes`. ValueError says what is
    not as it should be.
    """
    if len(data) < _HEADER.size:
        raise ValueError("it is shorter than a header")
    fields = _Fields(*_HEADER.unpack_from(data))
    _check_kind(fields)
    if any(data[104 : fields.header_bytes]):
        raise ValueError("its clusters are compressed in some other way")
    _check_tables(fields, file_bytes)
    kind = _backing_format(data, fields)
    return Header(fields.virtual_bytes, _name(data, fields), kind)


def _check_kind(fields: _Fields) -> None:
    if fields.magic != MAGIC:
        raise ValueError("it is no qcow2 file")
    if not fields.name_at:
        raise ValueError("it does not say what it stands on")
    if fields.incompatible & _EXTERNAL_DATA:
        raise ValueError("it has its data in another file")
    if fields.incompatible & _CORRUPT:
        raise ValueError("QEMU has marked it as corrupt")
    for what, found, ours in (
        ("version", fields.version, _VERSION),
        ("cluster size", fields.cluster_bits, _CLUSTER_BITS),
        ("encryption", fields.encryption, 0),
        ("number of internal snapshots", fields.snapshots, 0),
        ("place of internal snapshots", fields.snapshots_at, 0),
        ("set of incompatible features", fields.incompatible, _SUB_CLUSTERS),
        ("set of compatible features", fields.compatible, 0),
        ("set of auto-clear features", fields.autoclear, 0),
        ("width of reference counts", fields.refcount_order, _REFCOUNT_ORDER),
    ):
        if found != ours:
            raise ValueError(f"its {what} is {found}, not {ours}")
    if fields.header_bytes not in {104, _HEADER.size}:
        raise ValueError(f"its header has {fields.header_bytes} bytes")


def _check_tables(fields: _Fields, file_bytes: int) -> None:
    size = fields.virtual_bytes
    if not 0 < size <= _LARGEST or size % 512:
        raise ValueError(f"its disk has {size} bytes")
    if fields.l1_entries != _l1_entries(size):
        raise ValueError(f"its table has {fields.l1_entries} entries")
    counts = fields.refcount_clusters * CLUSTER
    for what, at, length, most in (
        ("table", fields.l1_at, fields.l1_entries * 8, file_bytes),
        # QEMU may not have come to write the end of it.
        ("reference counts", fields.refcounts_at, counts, file_bytes + CLUSTER),
    ):
        if at % CLUSTER or at < CLUSTER or length <= 0 or at + length > most:
            raise ValueError(f"its {what} are at {at:#x}, where there is no room")


def _backing_format(data: bytes, fields: _Fields) -> Format:
    """The header's extensions go up to where the name of what is below begins."""
    at, seen = fields.header_bytes, dict[int, bytes]()
    while True:
        if at + 8 > min(len(data), fields.name_at):
            raise ValueError("its header has no end")
        kind, size = struct.unpack_from(">II", data, at)
        if kind == _END and not size:
            break
        if kind not in {_BACKING_FORMAT, _FEATURE_NAMES} or kind in seen:
            raise ValueError(f"its header has an extension {kind:#010x}")
        seen[kind] = data[at + 8 : at + 8 + size]
        after = at + 8 + -(-size // 8) * 8
        if any(data[at + 8 + size : after]):
            raise ValueError("its header has something between extensions")
        at = after
    match seen.get(_BACKING_FORMAT):
        case b"raw":
            return "raw"
        case b"qcow2":
            return "qcow2"
        case other:
            raise ValueError(f"what is below it has the format {other!r}")


def _name(data: bytes, fields: _Fields) -> str:
    at, size = fields.name_at, fields.name_size
    if not 0 < size <= _LONGEST_NAME or at + size > len(data):
        raise ValueError("it does not say what it stands on")
    try:
        name = data[at : at + size].decode()
    except UnicodeDecodeError:
        name = ""
    # No other scheme begins with a slash: "json:", "nbd:" and the rest are none of ours.
    if not name.startswith("/") or "\0" in name or os.path.normpath(name) != name:
        raise ValueError("what it stands on is no path of a file")
    return name


@dataclass(frozen=True)
class Blank:
    """An empty layer's content: `size` bytes, of which `parts`, by offset, are not zero. The
    header is the last of them: without it, it is no layer yet.
    """

    size: int
    parts: tuple[tuple[int, bytes], ...]


def blank(virtual_bytes: int, backing: str, backing_format: Format) -> Blank:
    """What `qemu-img create -o extended_l2=on,cluster_size=64k` makes, but for the features' names;
    it opens nothing for it, and so nobody else's header. With sub-clusters a small write allocates
    2 KiB, not 64 KiB, and does not copy from the base (see DECISIONS.md). ValueError where it could
    not say what is below.
    """
    entries = _l1_entries(virtual_bytes)
    table_clusters = -(-entries * 8 // CLUSTER)
    kind, name = backing_format.encode(), backing.encode()
    extensions = struct.pack(">II8s8x", _BACKING_FORMAT, len(kind), kind)
    header = _HEADER.pack(
        *(MAGIC, _VERSION, _HEADER.size + len(extensions), len(name), _CLUSTER_BITS),
        *(virtual_bytes, 0, entries, 3 * CLUSTER, CLUSTER, 1, 0, 0),
        *(_SUB_CLUSTERS, 0, 0, _REFCOUNT_ORDER, _HEADER.size),
    )
    size, first = 3 * CLUSTER + entries * 8, header + extensions + name
    if parse(first, size) != Header(virtual_bytes, backing, backing_format):
        raise ValueError("it would not say what it stands on")
    counted = b"\0\1" * (3 + table_clusters)
    parts = ((CLUSTER, struct.pack(">Q", 2 * CLUSTER)), (2 * CLUSTER, counted))
    return Blank(size, (*parts, (0, first)))
