"""What an attack from a machine's process should come to, and where it came to something else.
Pure: each piece of evidence belongs to one control, and speaks of what that alone decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vmdriver.host.target import Facts, Identity

_DEVICES = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (10, 232)}
"""null, zero, full, random, urandom, tty, ptmx, kvm: major, minor."""
_HARMLESS = {"/etc/ld.so.cache", "/user-namespaces"}
"""The second is a number of the kernel's, which the box is closed with."""
_SHOWN = 5
_LIMITED = ("Max processes", "Max open files", "Max file size", "Max address space")
_MOST = {"Max processes": 4096, "Max open files": 4096}
"""What is more is no limit."""


@dataclass(frozen=True)
class Evidence:
    """One thing that was tried. level: ok; warn: a part that this host does not have; fail."""

    control: str
    level: str
    text: str


@dataclass(frozen=True)
class Golden:
    """What the process is meant to be, and to have."""

    uid: int | None
    gid: int | None
    own: frozenset[Identity]
    """Its own files."""
    shared: frozenset[Identity]
    """Files that it reads and others have, too."""
    own_name: str
    """What the names of its own sockets hold: its domain's."""
    parts: frozenset[str]
    """Of the wall, in this run."""
    oom_score_adj: int
    """At least."""


def evidence(
    golden: Golden,
    facts: Facts,
    inside: Mapping[str, Any],
    outside: Mapping[str, Any],
    private: Iterable[str],
) -> list[Evidence]:
    """`inside`, `outside`: what the intruder said, from in the process's own namespaces, and as its
    user in the host's. `private`: the paths among those asked for outside that are others'.
    """
    return [
        *_uid(golden, facts, outside, frozenset(private)),
        *_namespace(facts, inside),
        *_box(golden, inside),
        *_seccomp(facts),
        *_limits(golden, facts, inside["exhaust"]),
        *_sealed(golden, facts, outside, frozenset(private)),
        *_cgroup(golden, facts),
    ]


def _one(control: str, wrong: Iterable[object], right: str, what: str) -> Evidence:
    """`what` with examples, where anything is wrong."""
    wrong = list(wrong)
    if not wrong:
        return Evidence(control, "ok", right)
    shown = ", ".join(str(one) for one in wrong[:_SHOWN])
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return Evidence(control, "fail", f"{what}: {shown}{more}")


def _uid(
    golden: Golden,
    facts: Facts,
    outside: Mapping[str, Any],
    private: frozenset[str],
) -> Iterator[Evidence]:
    control = "uid"
    if golden.uid is None:
        yield Evidence(control, "fail", "no user of its own was planned for this run")
    meant = {golden.uid} if golden.uid is not None else facts.uids - {0}
    strangers = [f"user {uid}" for uid in facts.uids - meant]
    groups = facts.gids - ({golden.gid} if golden.gid is not None else facts.gids)
    strangers += [f"group {gid}" for gid in groups]
    name = ", ".join(str(uid) for uid in sorted(facts.uids))
    yield _one(control, strangers, f"runs as user {name}", "runs as")
    yield _one(
        control,
        facts.same_user,
        "no other process has that user",
        "other processes have the same user",
    )
    others = set(outside["signal"]).difference(facts.family, facts.same_user)
    yield _one(
        control, sorted(others), "no other process can be signalled", "can be signalled"
    )
    ways = outside["open"]
    found = [f"{path} ({ways[path]})" for path in sorted(private & set(ways))]
    found += [f"{path} (a socket)" for path in outside["unix"]]
    text = f"none of {len(private)} files of the driver and of other machines opens"
    yield _one(control, found, text, "files of others open")


def _namespace(facts: Facts, inside: Mapping[str, Any]) -> Iterator[Evidence]:
    control = "namespace"
    shared = [] if facts.own_network else ["the host's"]
    yield _one(
        control, shared, "has a network namespace of its own", "network namespace"
    )
    answered = [f"{address}:{port}" for address, port in inside["tcp"]]
    answered += [name for name in inside["unix"] if name.startswith("@")]
    text = "no service of the host's loopback and no abstract socket answers"
    yield _one(control, answered, text, "reached")


def _box(golden: Golden, inside: Mapping[str, Any]) -> Iterator[Evidence]:
    control, walk = "box", inside["walk"]
    known = golden.own | golden.shared
    strange = [
        path
        for path, device, inode, owner, kind in walk["files"]
        if (device, inode) not in known
        and owner != golden.uid
        and path not in _HARMLESS
        and not (kind == "c" and (device >> 8, device & 0xFF) in _DEVICES)
    ]
    text = (
        f"sees its own files, what it shares, and devices: {len(walk['files'])} in all"
    )
    yield _one(control, strange, text, "sees files that are not its own")
    other = [f"{walk['processes']} processes"] if walk["processes"] else []
    other += ["/sys"] if walk["sys"] else []
    yield _one(control, other, "sees no process and no /sys", "sees")
    sockets = [
        name
        for name in inside["unix"]
        if name.startswith("/") and golden.own_name not in name
    ]
    yield _one(
        control, sockets, "no socket of others can be reached", "sockets reached"
    )


def _seccomp(facts: Facts) -> Iterator[Evidence]:
    control = "seccomp"
    missing = [] if facts.filtered else ["a filter of system calls on each thread"]
    yield _one(control, missing, "each thread's system calls are filtered", "lacks")
    rights = ["capabilities"] if facts.capabilities else []
    rights += [] if facts.no_new_privileges else ["new privileges by executing"]
    yield _one(control, rights, "has no capability and can get none", "has")


def _limits(
    golden: Golden, facts: Facts, exhausted: Mapping[str, bool]
) -> Iterator[Evidence]:
    control = "limits"
    lacking = []
    for name in _LIMITED:
        value = facts.limits[name]
        if value is None or value > _MOST.get(name, value):
            lacking.append(f"{name[4:]} ({value or 'unlimited'})")
    if facts.limits["Max core file size"] != 0:
        lacking.append("core files")
    numbers = ", ".join(f"{name[4:]} {facts.limits[name]}" for name in _LIMITED)
    yield _one(control, lacking, f"limits: {numbers}", "without limit")
    endless = [name for name, ended in exhausted.items() if not ended]
    text = "opening files and asking for memory come to an end"
    yield _one(control, endless, text, "could be had without end")
    score = facts.oom_score_adj
    late = [score] if score < golden.oom_score_adj else []
    text = f"ends before the driver where memory is short ({score})"
    yield _one(control, late, text, "oom_score_adj")


def _sealed(
    golden: Golden,
    facts: Facts,
    outside: Mapping[str, Any],
    private: frozenset[str],
) -> Iterator[Evidence]:
    control = "sealed-memory"
    writing = {
        held.path
        for held in facts.held
        if held.for_writing and held.identity in golden.shared
    }
    yield _one(
        control,
        sorted(writing),
        "holds nothing for writing that others have, too",
        "holds for writing",
    )
    opened = outside["open"].items()
    found = [path for path, way in opened if "w" in way and path not in private]
    text = "nothing that others have, too, can be opened for writing"
    yield _one(control, sorted(found), text, "opens for writing")


def _cgroup(golden: Golden, facts: Facts) -> Iterator[Evidence]:
    control = "cgroup"
    if control not in golden.parts:
        text = "this host or this run has no cgroup for the machine (vmdriver doctor)"
        yield Evidence(control, "warn", text)
        return
    names = ("memory.max", "pids.max")
    endless = [name for name in names if facts.cgroup.get(name, "max") == "max"]
    numbers = ", ".join(f"{name} {value}" for name, value in facts.cgroup.items())
    yield _one(control, endless, numbers, "without limit")
