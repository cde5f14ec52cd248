"""cgroup v2 as the kernel has it: which files there are, what they take, what may be where."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from vmdriver.hypervisor.wall.cgroups import Tree

_FILES = {
    "memory": {
        "memory.max": r"max|\d+",
        "memory.oom.group": "[01]",
        "memory.high": r"max|\d+",
    },
    "pids": {"pids.max": r"max|\d+"},
    "cpu": {"cpu.max": r"(max|\d{4,}) \d{4,7}"},
    "io": {"io.max": r"\d+:\d+( [rw](bps|iops)=(max|[1-9]\d*)){1,4}"},
}


def _error(code: int, path: Path) -> OSError:
    return OSError(code, os.strerror(code), str(path))


@dataclass
class Node:
    """One cgroup."""

    handed_out: set[str] = field(default_factory=set)
    processes: set[int] = field(default_factory=set)
    limits: dict[str, str] = field(default_factory=dict)


class FakeCgroupTree(Tree):
    """A tree whose `root` has these controllers. Every process is in `root` at first."""

    def __init__(self, root: Path, controllers: set[str], processes: set[int]) -> None:
        self.root = root
        self.nodes = {root: Node(processes=processes)}
        self._all = frozenset(controllers)
        self.deaf: set[int] = set()
        """Processes that the kernel holds: they do not end when they are killed."""
        self.refused: dict[str, int] = {}
        """A file's name -> the error that writing to it gives."""

    def of(self, pid: int) -> Path:
        """The cgroup of a process."""
        return next(p for p, node in self.nodes.items() if pid in node.processes)

    def make(self, folder: Path) -> None:
        if folder in self.nodes:
            return
        if folder.parent not in self.nodes:
            raise _error(errno.ENOENT, folder)
        self.nodes[folder] = Node()

    def _controllers(self, folder: Path) -> frozenset[str]:
        parent = self.nodes.get(folder.parent)
        return frozenset(parent.handed_out) if parent else self._all

    def remove(self, folder: Path) -> None:
        node = self._node(folder)
        if node.processes or self.folders(folder):
            raise _error(errno.EBUSY, folder)
        del self.nodes[folder]

    def folders(self, folder: Path) -> list[Path]:
        self._node(folder)
        return [path for path in self.nodes if path.parent == folder]

    def read(self, file: Path) -> str:
        node = self._node(file.parent)
        if file.name == "cgroup.controllers":
            return " ".join(sorted(self._controllers(file.parent))) + "\n"
        if file.name == "cgroup.subtree_control":
            return " ".join(sorted(node.handed_out)) + "\n"
        if file.name == "cgroup.procs":
            return "".join(f"{pid}\n" for pid in sorted(node.processes))
        return node.limits[file.name]

    def write(self, file: Path, text: str) -> None:
        node = self._node(file.parent)
        if file.name in self.refused:
            raise _error(self.refused[file.name], file)
        if file.name == "cgroup.subtree_control":
            self._hand_out(node, file, text)
        elif file.name == "cgroup.procs":
            self._move(node, file, int(text))
        elif file.name == "cgroup.kill":
            node.processes &= self.deaf
        else:
            known = {
                n: k
                for c in self._controllers(file.parent)
                for n, k in _FILES[c].items()
            }
            if file.name not in known or file.parent == self.root:
                raise _error(errno.ENOENT, file)
            if not re.fullmatch(known[file.name], text):
                raise _error(errno.EINVAL, file)
            node.limits[file.name] = text

    def _node(self, folder: Path) -> Node:
        if folder not in self.nodes:
            raise _error(errno.ENOENT, folder)
        return self.nodes[folder]

    def _hand_out(self, node: Node, file: Path, text: str) -> None:
        wanted = {word.removeprefix("+") for word in text.split()}
        if not wanted <= self._controllers(file.parent):
            raise _error(errno.ENOENT, file)
        if node.processes and file.parent != self.root:
            raise _error(errno.EBUSY, file)
        node.handed_out |= wanted

    def _move(self, node: Node, file: Path, pid: int) -> None:
        if node.handed_out and file.parent != self.root:
            raise _error(errno.EBUSY, file)
        sources = [n for n in self.nodes.values() if pid in n.processes]
        if not sources:
            raise _error(errno.ESRCH, file)
        sources[0].processes.discard(pid)
        node.processes.add(pid)
