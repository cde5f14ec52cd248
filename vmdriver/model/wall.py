"""The wall around a machine: its parts, by name."""

from __future__ import annotations

from typing import Literal

WallPart = Literal[
    "uid", "namespace", "box", "seccomp", "limits", "sealed-memory", "cgroup"
]
"""uid: a host user of its own. namespace: a network namespace of its own. box: QEMU sees its own
files only. seccomp: QEMU's system calls are filtered. limits: on processes, files, memory of QEMU.
sealed-memory: what it maps of a template cannot be changed. cgroup: memory, processes, CPU
and I/O are limited by the kernel.
"""
