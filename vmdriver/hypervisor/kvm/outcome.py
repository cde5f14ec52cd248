"""What is known about KVM on this host, and for how long it counts.

A verdict holds as long as everything that it depends on is what it was. What is no verdict
(nobody could be asked, the host was too busy to tell) is kept for `vmdriver doctor` alone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from vmdriver.host.plain_file import read_start
from vmdriver.model.plan import Accelerator
from vmdriver.model.spec import Frozen

_MOST = 2**20
SCHEMA_VERSION = 2
"""1 (not written any more) held reasons without saying whether they were KVM's fault."""


class Circumstances(Frozen):
    """Whatever of these changes, KVM is asked again."""

    device: str
    """/dev/kvm: number, mode, owner (facts.device_identity)."""
    kernel: str
    """Release and build of the host's kernel."""
    processor: str
    """Model, microcode and flags, and whether the KVM module nests (facts.processor)."""
    qemu: str
    """Version, and the program's size and time."""
    boot_files: str
    """Digest of the guest's kernel and initramfs."""
    cpu: str = "host-model"
    """How machines get the host's (domain_xml.cpu_mode)."""


class Outcome(Frozen):
    """One try."""

    schema_version: int = SCHEMA_VERSION
    decided: bool
    """False: it says nothing about KVM, and is tried again."""
    works: bool
    reason: str = ""
    """Why not."""
    about: Circumstances | None = None
    host_boot: str = ""
    """Boot id. A virtual host's hypervisor may do better after the next start."""

    def holds(self, about: Circumstances, host_boot: str) -> bool:
        """Whether it need not be asked again."""
        same = self.decided and self.about == about
        return same and (self.works or self.host_boot == host_boot)


def undecided(reason: str) -> Outcome:
    """Not KVM's fault, as far as anybody can tell."""
    return Outcome(decided=False, works=False, reason=reason)


def load(path: Path) -> Outcome | None:
    """The last one; None when there is none, or one that an earlier version wrote."""
    try:
        data = json.loads(read_start(os.path.realpath(path), _MOST))
        if data.get("schema_version") != SCHEMA_VERSION:
            return None
        return Outcome.model_validate(data)
    except (OSError, ValueError, AttributeError, ValidationError):
        return None


def likely(wanted: Literal["auto", "kvm", "tcg"], path: Path) -> Accelerator:
    """What a machine would have, as far as is known without a try: KVM until one has failed."""
    if wanted != "auto":
        return wanted
    known = load(path)
    return "kvm" if known is None or known.works else "tcg"


def store(path: Path, outcome: Outcome) -> None:
    """Keep it, in the place of the one before. OSError."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(outcome.model_dump_json(indent=1) + "\n")
    part.chmod(0o600)  # nobody else's business, as all notes of the driver
    part.replace(path)
