"""Whether a checkpoint may be given to a machine, and what a checkpoint is made with. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass

from vmdriver.model.checkpoint import (
    FileIdentity,
    MemoryManifest,
    MemoryRef,
    Versions,
    is_expanded,
)
from vmdriver.model.plan import LaunchPlan, Processor

_WHAT = {
    "size": "its size",
    "inode": "the file itself",
    "modified_ns": "its content",
    "changed_ns": "its content or rights",
}

_MOST_WORDS = 8
_SAME = ("vcpus", "memory_mib", "accelerator", "boot_digest", "image_digest")


@dataclass(frozen=True)
class HostNow:
    """What is true at the moment of a restore."""

    versions: Versions
    processor: Processor
    files: tuple[FileIdentity, ...]
    time_s: float
    """Seconds since 1970."""
    available_memory_bytes: int


def token_expiry(token: str) -> int | None:
    """The exp of a JWT in seconds since 1970; None where there is none (or 0: no end). The
    signature is the gateway's to check.
    """
    try:
        body = token.split(".")[1]
        padded = body + "=" * (-len(body) % 4)
        claims = json.loads(base64.urlsafe_b64decode(padded))
        expiry = claims.get("exp", 0)
        return int(expiry) or None
    except (IndexError, ValueError, AttributeError, TypeError, binascii.Error):
        return None


def file_differences(
    was: Sequence[FileIdentity], now: Sequence[FileIdentity], plan: LaunchPlan
) -> list[str]:
    """What of these files of the plan's machine is not as it was, in words."""
    # An earlier driver's machine had no user of its own. Its files change hands at its next
    # start, which is their last change.
    handed_over = plan.user is None
    current = {identity.path: identity for identity in now}
    found = []
    for identity in was:
        other = current.get(identity.path)
        name = identity.path.rpartition("/")[2]
        if other is None:
            found.append(f"{name} is gone")
            continue
        for key, text in _WHAT.items():
            if key == "changed_ns" and handed_over:
                continue
            if getattr(identity, key) != getattr(other, key):
                found.append(f"{name} was changed after the capture ({text})")
                break
    return found


def _machine_differences(
    was: LaunchPlan, now: LaunchPlan, keys: Sequence[str]
) -> list[str]:
    return [
        f"the plan's {key} was {getattr(was, key)} and is {getattr(now, key)}"
        for key in keys
        if getattr(was, key) != getattr(now, key)
    ]


def differences(
    manifest: MemoryManifest,
    digest: str,
    ref: MemoryRef,
    plan: LaunchPlan,
    now: HostNow,
) -> list[str]:
    """Everything that stands in the way of loading the checkpoint, in words; none: it may be
    loaded. The parts' own digests are checked by whoever reads them.
    """
    if digest != ref.digest:
        return ["its manifest is not the one that was written at the capture"]
    found = []
    if ref.consumed:
        found.append("its machine has gone on from it before")
    if manifest.sandbox_id != plan.sandbox_id and manifest.kind != "template":
        found.append(f"it is of sandbox {manifest.sandbox_id}")
    for key, was in manifest.versions.model_dump().items():
        is_now = getattr(now.versions, key)
        if was != is_now:
            found.append(f"{key} was {was} and is {is_now}")
    # A sandbox may have been started anew since a snapshot; the snapshot's own plan counts.
    keys = _SAME if manifest.kind == "suspended" else ("image_digest",)
    found += _machine_differences(manifest.plan, plan, keys)
    found += file_differences(manifest.files, now.files, manifest.plan)
    if manifest.token_expires_at is not None and manifest.token_expires_at < now.time_s:
        found.append("the sandbox's token has expired meanwhile")
    return found


def processor_differences(manifest: MemoryManifest, now: Processor) -> list[str]:
    """In what the guest would find another processor, in words. libvirt compares where it has
    recorded what the guest's can do; of memory of an earlier driver nobody else has.
    """
    was = manifest.plan.processor
    if was is None or is_expanded(manifest.cpu):
        return []
    found = []
    if was.model != now.model:
        found.append(f"the processor was {was.model} and is {now.model}")
    if was.microcode != now.microcode:
        old, new = was.microcode or "none", now.microcode or "none"
        found.append(f"the processor's microcode was {old} and is {new}")
    before, after = set(was.flags), set(now.flags)
    for words, flags in (
        ("lacks", before - after),
        ("has besides", after - before),
    ):
        if flags:
            found.append(f"the processor {words} {_some(sorted(flags))}")
    return found


def _some(words: Sequence[str]) -> str:
    more = len(words) - _MOST_WORDS
    text = ", ".join(words[:_MOST_WORDS])
    return f"{text} and {more} more" if more > 0 else text


def shortage(manifest: MemoryManifest, now: HostNow) -> str:
    """What the host has too little of at the moment, in words, or ""."""
    if manifest.stored_bytes <= now.available_memory_bytes:
        return ""
    needed, free = manifest.stored_bytes >> 20, now.available_memory_bytes >> 20
    return f"the host has {free} MiB of memory left, {needed} are needed"
