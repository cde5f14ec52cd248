"""bench/report.html: what was measured last, and in the runs before. One file; nothing of it is fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from tests.bench import history
from tests.bench.goals import Judged, judged, quantity
from tests.bench.history import Run
from tests.bench.parts import BY_NAME, PARTS
from tests.bench.steps import TITLES

REPORT = history.FOLDER / "report.html"
_RUNS = 10
"""So many earlier values of a figure are shown."""
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .15em .8em .15em 0 }
tr { border-bottom: 1px solid #ddd } .met { color: #2a7f62 } .missed { color: #b8433a; font-weight: 600 }
figure { margin: 1em 0 } figure svg { width: 100%; height: auto } td svg { display: block } .quiet { color: #777 }
nav a { margin-right: 1em; white-space: nowrap } summary { cursor: pointer } h2 { margin-top: 2em }
"""
_ABOUT = """
What this driver was measured at, part by part, against what was to be reached. A ratio is of two sides that took turns in one
run. A bar is a figure's share of its goal, which is the line at 1: shorter is better, green is met, red is missed. In
waterfalls, what the guest does is grey. Beside a figure stand the run before and a line of the last runs, the goal dotted.
"""


@dataclass(frozen=True)
class Shown:
    """A part's last run, and what came of its goals in that and the ones before, oldest first."""

    run: Run
    measured: Run
    """The last one that came to figures: that run, unless it has failed."""
    before: Run | None
    """The one before that."""
    goals: tuple[Judged, ...]
    earlier: dict[str, list[float]]
    """Goal -> its values, this one last."""

    @property
    def met(self) -> int:
        return sum(each.met for each in self.goals)


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
        good = [run for run in own if run.figures]
        measured = good[-1] if good else own[-1]
        before = good[-2] if len(good) > 1 else None
        goals = tuple(judged(part.name, measured.figures))
        found.append(Shown(own[-1], measured, before, goals, last))
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
    every = sum(len(part.goals) for part in parts)
    met = sum(part.met for part in parts)
    body = [
        f"<h1>vmdriver: bench</h1><p>{met} of {every} goals are met.</p>",
        f"<p class=quiet>{_ABOUT}</p>",
        _index(parts),
        *(_part(part) for part in parts),
    ]
    head = (
        f'<meta charset="utf-8"><title>vmdriver: bench</title><style>{_STYLE}</style>'
    )
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(body)}</body></html>\n"


def _index(parts: Sequence[Shown]) -> str:
    """The parts, and how many goals of each are met."""
    links = []
    for part in parts:
        words = f" {part.met}/{len(part.goals)}" if part.goals else ""
        words += " failed" if part.run.failed else ""
        name = escape(part.run.part)
        links.append(f'<a href="#{name}">{name}{words}</a>')
    return f"<nav>{' '.join(links)}</nav>"


def _part(part: Shown) -> str:
    run, measured = part.run, part.measured
    name = escape(run.part)
    text = [
        f'<h2 id="{name}">{name}</h2>',
        f"<p>{escape(BY_NAME[run.part].says)}</p>",
        f"<p class=quiet>{escape(described(run))}</p>",
    ]
    if run.failed:
        text.append(f"<p class=missed>failed: {escape(run.failed)}</p>")
        if measured is not run:
            text.append(
                f"<p>Figures are of the last that did not: {escape(described(measured))}</p>"
            )
    if part.goals:
        text += [_goals(part), _figure("bars", list(part.goals))]
    text += _waterfalls(measured.figures)
    return "".join([*text, _all_figures(part)])


def _waterfalls(figures: dict[str, Any]) -> Iterator[str]:
    for kind, steps in figures.get("steps", {}).items():
        yield f"<h3>{escape(TITLES[kind])}</h3>"
        yield _figure("waterfall", steps)
    for shape, found in figures.get("resume", {}).items():
        spans = [[name, 1e3 * b, 1e3 * e] for name, (b, e) in found["steps"].items()]
        spans.sort(key=lambda span: (span[1], -span[2]))
        yield f"<h3>A resume, {escape(shape)} MiB</h3>"
        yield _figure("waterfall", spans)


def _numbers(figures: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number with the keys that lead to it."""
    if isinstance(figures, dict):
        for key, value in figures.items():
            yield from _numbers(value, f"{name} / {key}" if name else str(key))
    elif isinstance(figures, int | float) and not isinstance(figures, bool):
        yield name, figures


def _all_figures(part: Shown) -> str:
    """What has no goal is there too, folded away."""
    before = dict(_numbers(part.before.figures)) if part.before else {}
    rows = []
    for name, value in _numbers(part.measured.figures):
        earlier = quantity(before[name], "") if name in before else ""
        cells = (escape(name), quantity(value, ""), earlier)
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    if not rows:
        return ""
    head = "<tr><th>figure</th><th>measured</th><th>run before</th></tr>"
    table = f"<table>{head}{''.join(rows)}</table>"
    return f"<details><summary>all {len(rows)} figures</summary>{table}</details>"


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
        several = len(before) > 1
        last = _figure("line", before, each.goal.bound) if several else ""
        earlier = quantity(before[-2], each.goal.unit) if several else ""
        cells = (escape(each.goal.name), each.shown(), escape(each.bound()))
        rows.append(
            "<tr>"
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + f'<td class="{words[0]}">{words[1]}</td><td>{earlier}</td><td>{last}</td></tr>'
        )
    names = ("figure", "measured", "goal", "", "run before", "last runs")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _figure(kind: str, *what: object) -> str:
    from tests.bench import plots  # where nobody draws, it is not needed

    drawn: str = getattr(plots, kind)(*what)
    return drawn if kind == "line" else f"<figure>{drawn}</figure>"
