"""Plots as text of SVG, for a page that stands alone."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.bench.goals import Judged

GOOD, BAD, OUR, GUEST = "#2a7f62", "#b8433a", "#3b6ea5", "#b9b9c0"
_WIDTH = 9.0
"""Inches, of 72 points."""
_MOST = 3.0
"""Times the goal: longer bars are cut off there."""
mpl.rcParams.update({"svg.fonttype": "none", "font.size": 9, "svg.hashsalt": "bench"})


def bars(found: Sequence[Judged]) -> str:
    """Each figure as a share of its goal, which is the line at 1."""
    figure, axes = _axes(len(found))
    names = [each.goal.name for each in found]
    lengths = [min(each.share, _MOST) for each in found]
    colours = [GOOD if each.met else BAD for each in found]
    axes.barh(range(len(found)), lengths, color=colours, height=0.7)
    for place, (each, length) in enumerate(zip(found, lengths, strict=True)):
        text = f" {each.shown()}" + (" →" if each.share > _MOST else "")
        axes.text(length, place, text, va="center", fontsize=8)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(found)), names)
    axes.set_xlim(0, _MOST * 1.15)
    axes.set_xlabel("of the goal")
    axes.invert_yaxis()
    return _svg(figure)


def waterfall(steps: Sequence[Sequence[Any]]) -> str:
    """Name, begin and end of each step in milliseconds. What the guest does is grey."""
    figure, axes = _axes(len(steps))
    for place, (name, begun, ended) in enumerate(steps):
        colour = GUEST if str(name).startswith("guest") else OUR
        axes.barh(place, ended - begun, left=begun, color=colour, height=0.75)
        axes.text(ended, place, f" {ended - begun:.0f}", va="center", fontsize=8)
    axes.set_yticks(range(len(steps)), [str(step[0]) for step in steps])
    axes.set_xlim(0, max((step[2] for step in steps), default=1) * 1.08)
    axes.set_xlabel("ms")
    axes.invert_yaxis()
    return _svg(figure)


def line(values: Sequence[float], bound: float) -> str:
    """Small: one figure in the last runs, and its goal."""
    figure = Figure(figsize=(1.6, 0.3))
    axes = figure.add_axes((0.02, 0.05, 0.96, 0.9))
    axes.plot(range(len(values)), values, color=OUR, linewidth=1.2, marker=".")
    axes.axhline(bound, color="black", linewidth=0.6, linestyle=":")
    axes.axis("off")
    return _svg(figure)


def _axes(rows: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(_WIDTH, 0.7 + 0.22 * max(rows, 1)), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    # What belongs to a file of its own, and says where it may be looked up.
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text[text.index("<svg") :]
