"""bench/report.html: what was measured last, and in the runs before. One file; nothing of it is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tests.bench import history
from tests.bench.goals import Judged, judged
from tests.bench.history import Run
from tests.bench.parts import PARTS
from tests.bench.steps import TITLES

REPORT = history.FOLDER / "report.html"
_RUNS = 10
"""So many earlier values of a figure are shown."""
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .15em .8em .15em 0 }
tr { border-bottom: 1px solid #ddd } .met { color: #2a7f62 } .missed { color: #b8433a; font-weight: 600 }
figure { margin: 1em 0 } figure svg { width: 100%; height: auto } td svg { display: block } .quiet { color: #777 }
"""


@dataclass(frozen=True)
class Shown:
    """A part's last run, and what came of its goals in that and the ones before, oldest first."""

    run: Run
    goals: tuple[Judged, ...]
    earlier: dict[str, list[float]]
    """Goal -> its values, this one last."""


def shown(runs: Sequence[Run]) -> list[Shown]:
    """The last run of each part, in the parts' order."""
    found = []
    for part in PARTS:
        own = [run for run in runs if run.part == part.name]
        if not own:
            continue
        values: dict[str, list[float]] = {}
        for run in own:
            for each in judged(part.name, run.figures):
                values.setdefault(each.goal.name, []).append(each.value)
        last = {name: some[-_RUNS:] for name, some in values.items()}
        goals = tuple(judged(part.name, own[-1].figures))
        found.append(Shown(own[-1], goals, last))
    return found


def write(path: Path = REPORT, source: Path = history.HISTORY) -> Path:
    """From what is noted. Where that is."""
    text = page(shown(history.noted(source)))
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text)
    return part.replace(path)


def page(parts: Sequence[Shown]) -> str:
    """The whole document."""
    every = [each for part in parts for each in part.goals]
    met = sum(each.met for each in every)
    body = [
        f"<h1>bench</h1><p>{met} of {len(every)} goals are met.</p>",
        *(_part(part) for part in parts),
    ]
    head = f'<meta charset="utf-8"><title>bench</title><style>{_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(body)}</body></html>\n"


def _part(part: Shown) -> str:
    run = part.run
    text = [
        f"<h2>{escape(run.part)}</h2>",
        f"<p class=quiet>{escape(described(run))}</p>",
    ]
    if run.failed:
        text.append(f"<p class=missed>failed: {escape(run.failed)}</p>")
    if part.goals:
        text += [_goals(part), _figure("bars", list(part.goals))]
    for kind, steps in run.figures.get("steps", {}).items():
        text += [f"<h3>{escape(TITLES[kind])}</h3>", _figure("waterfall", steps)]
    for shape, found in run.figures.get("resume", {}).items():
        spans = [[name, 1e3 * b, 1e3 * e] for name, (b, e) in found["steps"].items()]
        spans.sort(key=lambda span: (span[1], -span[2]))
        text += [f"<h3>A resume, {escape(shape)} MiB</h3>", _figure("waterfall", spans)]
    return "".join(text)


def described(run: Run) -> str:
    """When and where."""
    machine = run.machine
    return (
        f"{run.run}, commit {run.commit or 'unknown'}, {run.rounds} rounds in {run.took_s:.0f} s; "
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, "
        f"{machine['system']}, {machine['accelerator']}, load {machine['load']} before it"
    )


def _goals(part: Shown) -> str:
    rows = []
    for each in part.goals:
        words = ("met", "met") if each.met else ("missed", "missed")
        before = part.earlier[each.goal.name]
        last = _figure("line", before, each.goal.bound) if len(before) > 1 else ""
        cells = (escape(each.goal.name), each.shown(), escape(each.bound()))
        rows.append(
            "<tr>"
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + f'<td class="{words[0]}">{words[1]}</td><td>{last}</td></tr>'
        )
    head = "".join(
        f"<th>{name}</th>" for name in ("figure", "measured", "goal", "", "last runs")
    )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _figure(kind: str, *what: object) -> str:
    from tests.bench import plots  # where nobody draws, it is not needed

    drawn: str = getattr(plots, kind)(*what)
    return drawn if kind == "line" else f"<figure>{drawn}</figure>"
