"""Tables of the documents, made from docs/measured.json: no number in them is typed by hand.

A block begins with `<!-- measured: NAME -->` and ends with `<!-- measured: end -->`, each on a line of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts import capacity
from tests.bench import history
from tests.bench.at_once import KINDS
from tests.bench.goals import GOALS, Judged, judged
from tests.bench.history import Run
from tests.bench.parts import PARTS as BENCH
from tests.bench.resident import PARTS
from tests.bench.steps import TITLES
from vmdriver.cli.waterfall import waterfall
from vmdriver.model.timing import TimedStep

_BLOCK = re.compile(
    r"(<!-- measured: (?!end )([\w-]+) -->\n).*?(<!-- measured: end -->)", re.DOTALL
)


def documents(root: Path = history.ROOT) -> list[Path]:
    """Where blocks may be."""
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").glob("*.md"))]


def write(root: Path = history.ROOT) -> None:
    """Make all blocks anew."""
    runs = history.measured(root / "docs" / history.MEASURED.name)
    for path in documents(root):
        text = path.read_text()
        filled = fill(text, runs)
        if filled != text:
            path.write_text(filled)


def fill(text: str, runs: Mapping[str, Run]) -> str:
    """The document with its blocks as these runs have it. KeyError: no block is called that."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}{made(match[2], runs)}\n{match[3]}"

    return _BLOCK.sub(block, text)


def made(name: str, runs: Mapping[str, Run]) -> str:
    """The text of one block."""
    part, make = BLOCKS[name]
    if part is None:
        return "\n".join(make(runs))
    if part not in runs:
        return f"Not measured yet (`scripts/bench {part} --keep`)."
    try:
        lines = [*make(runs[part].figures)]
    except KeyError as missing:
        return f"Not measured as a whole (`scripts/bench {part} --keep`): {missing.args[0]} is missing."
    return "\n".join([*lines, "", _where(runs[part])])


def _where(run: Run) -> str:
    machine = run.machine
    return (
        f"Measured by `scripts/bench {run.part}`: {run.run[:10]}, commit {run.commit.rstrip('+')}, medians, {run.rounds} rounds asked for, "
        f"{machine['cores']} cores, {machine['accelerator'].upper()}, {machine['system']}; load before it {machine['load']}."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _goal(part: str, name: str) -> str:
    """A goal's bound, as everywhere."""
    found = next(goal for goal in GOALS if (goal.part, goal.name) == (part, name))
    return Judged(found, found.bound).bound()


def _judged(each: Judged) -> str:
    return f"{each.shown()} ({each.bound()}{'' if each.met else ', missed'})"


def _reached(part: str, figures: Any) -> dict[str, str]:
    """Goal -> what was reached, and the goal."""
    return {each.goal.name: _judged(each) for each in judged(part, figures)}


def _goals(runs: Mapping[str, Run]) -> Iterator[str]:
    rows = []
    for part in BENCH:
        for each in (
            judged(part.name, runs[part.name].figures) if part.name in runs else ()
        ):
            said = "met" if each.met else "missed"
            rows.append((part.name, each.goal.name, each.shown(), each.bound(), said))
    yield from _table(("part", "figure", "measured", "goal", ""), rows)
    missing = [part.name for part in BENCH if part.name not in runs]
    for part in BENCH:
        if part.name in runs:
            yield from ("", _where(runs[part.name]))
    if missing:
        yield from ("", f"Not measured yet: {', '.join(missing)}.")


def _driver(v: Any) -> Iterator[str]:
    lives = v["lives"]
    yield (
        f"From CreateSandbox to the running workload a machine with the whole wall takes {lives['ratio']:.2f} times what `virsh start` takes for the same machine "
        f"without any of it ({lives['create_to_running_s']:.2f} and {lives['virsh_start_to_running_s']:.2f} s)."
    )


def _speed(v: Any) -> Iterator[str]:
    """A paragraph: the first page is short."""
    rpc, scale, lives = v["rpc_ms"], v["scale"], v["lives"]
    own = ", ".join(f"{name} {ms:.0f} ms" for name, ms in lives["driver_ms"].items())
    yield (
        f"A new sandbox takes {lives['ratio']:.2f} times what plain libvirt takes to start the same domain XML, from the call to the running workload. "
        f"The driver's own time: {own}. With 1,000 sandboxes Get takes {rpc['1000']['get']:.1f} ms and List {rpc['1000']['list']:.1f} ms, "
        f"a driver starts in {scale['start_1000_s']:.1f} s and has {scale['rss_1000_mib']:.0f} MiB of memory ({scale['rss_0_mib']:.0f} without any), "
        f"and 10 watchers get {v['watch_events_per_s']:.0f} events a second."
    )


def _wall(v: Any) -> list[str]:
    rows = [(name, f"{value:.1f} ms") for name, value in v["wall_ms"].items()]
    return _table(("part of the wall, by itself", "takes"), rows)


def _starts(v: Any) -> list[str]:
    found, reached = v["starts"], _reached("starts", v)
    rows = []
    for key, name in (("start", "start"), ("load", "restore")):
        both = (f"{found[f'{key}_{side}']:.0f} ms" for side in ("ms", "asked_ms"))
        rows.append(
            (f"libvirt's {name}", *both, reached[f"libvirt's {name}: of it asking"])
        )
    return _table(("", "without questions", "asking", ""), rows)


def _shapes(v: Any) -> list[str]:
    shapes, reached = v["shapes"], _reached("restore", v)

    def row(name: str, cell: Callable[[str, Any], str]) -> list[str]:
        return [name, *(cell(shape, found) for shape, found in shapes.items())]

    return _table(
        ["RAM / touched by the workload", *shapes],
        [
            row(
                "resume (StartSandbox to Running)", lambda _, f: f"{f['resume']:.2f} s"
            ),
            row("against its cold boot", lambda _, f: f"{f['resume'] / f['cold']:.2f}"),
            row(
                "against virsh restore",
                lambda _, f: f"{f['resume'] / f['restore']:.2f}",
            ),
            row("suspend", lambda _, f: f"{f['suspend']:.2f} s"),
            row(
                "against QEMU's write",
                lambda s, _: reached[f"suspend, {s}: of QEMU's write"],
            ),
            row("against virsh save", lambda _, f: f"{f['suspend'] / f['save']:.2f}"),
            row(
                "snapshot of a machine that has booted: stands still",
                lambda s, _: reached[f"standstill, {s}, booted"],
            ),
            row(
                "snapshot of one that was resumed: stands still",
                lambda s, _: reached[f"standstill, {s}, resumed"],
            ),
            row(
                "stored, against QEMU's file",
                lambda s, _: reached[f"stored, {s}: of QEMU's file"],
            ),
        ],
    )


def _forks(v: Any) -> list[str]:
    found, reached = v["fork_steps"], _reached("forks", v)
    rows = [("cold", f"{found['cold_s']:.2f} s", "", "")]
    for key, of, name in (
        ("fork", "fork of a template", "from a template"),
        ("claim", "fork of the pool", "from the warm pool"),
    ):
        both = (reached[f"{of}: of cold"], reached[f"{of}: our share"])
        rows.append((name, f"{found[f'{key}_s']:.2f} s", *both))
    head = "a new sandbox, CreateSandbox to supervisor started (512 MiB)"
    return _table((head, "measured", "of cold", "ours and libvirt's"), rows)


def _at_once(v: Any) -> list[str]:
    found, reached = v["at_once"], _reached("at_once", v)
    cores, rows = found["cores"], []
    for kind in KINDS:
        one, eight = found[f"one {kind}"], found[f"eight {kind}"]
        least = eight["cpu_s"] / cores / one["s"]
        goal = reached[f"8 {kind}s at once: of one"]
        rows.append(
            (
                f"{kind}s",
                *(f"{each['s']:.2f} s" for each in (one, eight)),
                goal,
                f"{least:.1f}",
            )
        )
    head = ("512 MiB", "one", "8 at once", "of one", "their CPU time alone")
    return _table(head, rows)


def _number(item: tuple[str, Any]) -> int:
    """To sort by keys that are numbers."""
    return int(item[0])


def _density(v: Any) -> Iterator[str]:
    found, size = v["density"], v["density"]["memory_mib"]
    kinds = {"booted": found["cold"], "forked": found["fork"]}
    rows: list[Sequence[str]] = []
    for kind, of in kinds.items():
        for count, each in sorted(of["at"].items(), key=_number):
            rows.append((kind, count, *(f"{each[part]:.1f} MiB" for part in PARTS)))
    yield from _table((f"PSS of one idle {size} MiB machine", "of", *PARTS), rows)
    name, compared = (
        "idle fork's PSS without translated code: of cold",
        found["compared"],
    )
    ratio = _reached("density", v)[name]
    both = f"{found['fork_mib']:.1f} of {found['cold_mib']:.1f} MiB"
    less = [found[f"{kind}_untranslated_mib"] for kind in ("fork", "cold")]
    yield ""
    yield (
        f"Without translated code, {compared} of each: {both} = {ratio}; without what TCG notes about it besides (QEMU's heap as "
        f"in a machine that waits before its first instruction): {less[0]:.1f} of {less[1]:.1f} MiB = {less[0] / less[1]:.2f}. "
        f"A machine that waits takes {sum(found['waiting'].values()):.1f} MiB, as one of few."
    )
    names = ("own", "code", "helpers", "driver", "kernel")
    rows = []
    for kind, of in kinds.items():
        taken = (f"{of['each_mib'][name]:.1f} MiB" for name in names)
        fit = (str(of["fit"]), str(of["fit_without_code"]))
        common = f"{of['shared_mib']:.0f} MiB"
        rows.append((kind, str(of["count"]), *taken, common, *fit))
    words = {"own": "its QEMU's own", "code": "of that translated code"}
    head = (f"{size} MiB machines", "measured", *(words.get(n, n) for n in names))
    yield ""
    yield from _table(
        (*head, "in common", "in 16 GiB", "without translated code"), rows
    )
    minute = found["first_minute"]
    rows = [
        (f"after {seconds} s", f"{mib:.1f} MiB")
        for seconds, mib in sorted(minute["mib"].items(), key=_number)
    ]
    causes = sorted(minute["causes"].items(), key=lambda item: -item[1])
    rows += [(f"then: {cause}", f"{mib:.1f} MiB") for cause, mib in causes]
    yield ""
    yield from _table(("what a fork has written to", ""), rows)


def _resume(v: Any) -> list[str]:
    reached = _reached("resume", v)
    rows = []
    by_size = sorted(v["resume"].items(), key=lambda s: [*map(int, s[0].split(":"))])
    for shape, found in by_size:
        ram, touched = shape.split(":")
        seconds = [f"{found[key]:.2f} s" for key in ("thawed_s", "cold_s", "restore_s")]
        names = (
            f"resume, {shape} MiB: of {what}"
            for what in ("a cold boot", "virsh restore")
        )
        rows.append(
            (
                f"{ram} / {touched} MiB",
                str(found["rounds"]),
                *seconds,
                *(reached[name] for name in names),
            )
        )
    head = (
        *("RAM / touched", "rounds"),
        *("StartSandbox to thawed", "cold boot", "virsh restore"),
    )
    return _table((*head, "of a cold boot", "of virsh restore"), rows)


def _steps(v: Any) -> Iterator[str]:
    yield "```"
    for kind in TITLES:
        steps = v["steps"].get(kind, ())
        yield f"{TITLES[kind]}:"
        yield from waterfall(
            [TimedStep(name=n, begun_ms=b, ended_ms=e) for n, b, e in steps], 100
        )
    yield "```"


def _control(v: Any) -> list[str]:
    names = {
        "create": "created, all run and are known",
        "list": "lists of 200",
        "get": "GetSandbox, 32 at a time",
        "event": "events, all have read them",
        "delete": "deleted, all know",
    }
    rows = [
        [
            watching,
            name,
            f"{found[f'{what}_per_s']:.0f}",
            f"{found[f'{what}_cpu_ms']:.2f} ms",
            f"{found[f'{what}_lag_p99_ms']:.1f} ms",
            f"{found[f'{what}_lag_own_p99_ms']:.1f} ms",
        ]
        for watching, found in v["control"].items()
        for what, name in names.items()
    ]
    head = ("watch", "200 sandboxes", "a second", "CPU of each", "loop late, p99")
    kib = max(found["kib_per_sandbox"] for found in v["control"].values())
    return [
        *_table((*head, "while it had a CPU"), rows),
        "",
        f"A running sandbox takes {kib:.0f} KiB of the driver's memory.",
    ]


def _compose(v: Any) -> list[str]:
    def row(
        name: str, call: str, goal: str = "", through: str = "composed"
    ) -> list[str]:
        direct, other = v[f"{call}_direct_ms"], v[f"{call}_{through}_ms"]
        bound = _goal("compose", goal) if goal else ""
        return [
            name,
            f"{direct:.2f} ms",
            f"{other:.2f} ms",
            f"+ {other - direct:.2f} ms",
            bound,
        ]

    direct, other = v["events_direct"], v["events_composed"]
    events = [f"{direct:.0f}", f"{other:.0f}", f"{other / direct:.2f}"]
    bound = _goal("compose", "events to a watcher: of the base's")
    ten = "Validate, 10 extensions: added"
    p99 = "Get, p99 of 32 at a time: added"
    passed = "the same, passed on and nothing else"
    bare = [row(passed, "crowd_p99", "", "bare")] if "crowd_p99_bare_ms" in v else []
    return [
        *_table(
            ("", "directly", "through it", "", "goal"),
            [
                row("GetSandbox", "get", "Get: added"),
                row("ListSandboxes", "list"),
                row("ValidateSandboxCreate", "validate"),
                row("the same, 10 no-op extensions", "validate", ten, "10_extensions"),
                row("GetSandbox, p99 of 32 at a time", "crowd_p99", p99),
                *bare,
                ["events a second to one watcher", *events, bound],
            ],
        ),
        "",
        f"Its memory with these sandboxes is {v['rss_mib']:.0f} MiB.",
    ]


def _images(v: Any) -> list[str]:
    reached = _reached("images", v)
    rows = []
    for key, name, of in (
        ("small", "demo image (a Debian minbase)", "demo image"),
        ("large", "1 GiB in 50,000 files", "1 GiB, 50,000 files"),
    ):
        if f"{key}_ratio" not in v:
            continue
        took = f"{v[f'{key}_driver_s']:.1f} s; by hand {v[f'{key}_by_hand_s']:.1f} s; minima {v[f'{key}_minima_ratio']:.2f}"
        rows += [
            (f"{name}, first time", took, reached[f"{of}: of by hand"]),
            (
                "its disk against the unpacked tree",
                "",
                reached[f"{of}: disk, of the tree"],
            ),
            ("its warm cache, tag looked up lately", "", reached[f"{of}: warm"]),
        ]
    if "new_ratio" in v:
        seconds = (v[f"new_{key}_s"] for key in ("create", "first_bytes", "known"))
        text = "{:.1f} s; {:.1f} s from the first bytes; {:.1f} s where it is there"
        new, ratio = text.format(*seconds), f"{v['new_ratio']:.2f} x"
        rows.append(("a new image, CreateSandbox to Running", new, ratio))
    for name, goal in (
        (
            "8 at once of one new image: last against first",
            "8 at once: last, of the first",
        ),
        (
            "driver's memory while it prepares the large one",
            "memory for the large one: added",
        ),
    ):
        if goal in reached:
            rows.append((name, "", reached[goal]))
    return _table(("what", "measured", "against the goal"), rows)


def _scale(runs: Mapping[str, Run]) -> list[str]:
    """What scripts/capacity.py makes of these figures."""
    try:
        measured = capacity.Measured.of({part: asdict(r) for part, r in runs.items()})
    except KeyError as missing:
        return [f"Not measured yet: {missing.args[0]}."]
    used = ("density", "at_once", "forks", "images")
    return [
        *capacity.table(measured),
        *(t for u in used for t in ("", _where(runs[u]))),
    ]


BLOCKS: dict[str, tuple[str | None, Callable[[Any], Iterable[str]]]] = {
    "goals": (None, _goals),
    "scale": (None, _scale),
    "speed": ("driver", _speed),
    "driver": ("driver", _driver),
    "wall": ("wall", _wall),
    "starts": ("starts", _starts),
    "steps": ("steps", _steps),
    "shapes": ("restore", _shapes),
    "forks": ("forks", _forks),
    "at_once": ("at_once", _at_once),
    "density": ("density", _density),
    "resume": ("resume", _resume),
    "control": ("control", _control),
    "compose": ("compose", _compose),
    "images": ("images", _images),
}
"""Name -> the part whose figures it says (none: all of them), and its lines."""
