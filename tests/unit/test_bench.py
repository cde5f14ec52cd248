"""The bench: parts in processes of their own, goals, histories, the page and the documents' tables."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bench import __main__ as command
from tests.bench import documents, goals, history, report, running
from tests.bench.history import Run
from tests.bench.parts import BY_NAME, PARTS, Part
from tests.fakes.waiting import until

MACHINE = {
    "cores": 2,
    "cpu": "a <fast> one",
    "memory_gib": 8,
    "kernel": "6",
    "system": "Debian",
    "accelerator": "tcg",
    "load": 0.1,
}
STARTS = {
    "starts": {
        "start_ms": 160.0,
        "start_asked_ms": 400.0,
        "start_ratio": 0.4,
        "load_ms": 200.0,
        "load_asked_ms": 400.0,
        "load_ratio": 0.5,
    }
}


def run_of(
    part: str, figures: dict[str, Any], at: str = "2026-11-26", **more: Any
) -> Run:
    return Run(f"{at}T10:00:00Z", part, "abc", MACHINE, 5, 12.0, figures, **more)


# --- parts, each in a process of its own


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a program in the place of `tests.bench.one`, that knows what its part does by its name."""
    (tmp_path / "tests" / "bench").mkdir(parents=True)
    for folder in ("tests", "tests/bench"):
        (tmp_path / folder / "__init__.py").touch()
    program = tmp_path / "tests" / "bench" / "one.py"
    monkeypatch.setattr(history, "ROOT", tmp_path)
    monkeypatch.setattr(history, "HISTORY", tmp_path / "history.jsonl")

    def be(text: str, minutes: float = 1) -> None:
        program.write_text("import json, os, sys, time\npart = sys.argv[1]\n" + text)
        for name in ("good", "bad"):
            monkeypatch.setitem(BY_NAME, name, Part(name, "", minutes))

    return be


def test_a_part_that_fails_takes_no_other_one_along(
    parts: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts(
        "if part == 'bad': sys.exit(3)\nprint('a table')\nprint(json.dumps({'a': 1}))"
    )
    noted: list[Run] = []
    monkeypatch.setattr(history, "note", noted.append)
    monkeypatch.setattr(report, "write", lambda: "somewhere")
    assert command.measure(["bad", "good"], 5, [], keep=False) == 1
    assert [(run.part, run.figures, run.failed) for run in noted] == [
        ("bad", {}, "it ended with 3"),
        ("good", {"a": 1}, ""),
    ]
    assert "bad: it ended with 3" in capsys.readouterr().err
    assert command.measure(["good"], 5, [], keep=False) == 0


def test_what_prints_no_figures_has_failed(parts: Any) -> None:
    parts("print('done')")
    assert running.run("good", "now", 5).failed == "it printed no figures"


def test_a_part_that_takes_too_long_is_asked_to_end_and_then_ended(
    parts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(running, "limit_s", lambda *_: 1.5)
    given_back = tmp_path / "given-back"
    parts(f"""
try:
    time.sleep(60)
finally:
    open({str(given_back)!r}, "w")
""")
    found = running.run("good", "now", 5)
    assert "longer than" in found.failed
    assert given_back.exists()
    monkeypatch.setattr(running, "GRACE_S", 0.2)
    parts("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)")
    assert "longer than" in running.run("good", "now", 5).failed


def test_what_a_part_leaves_running_is_ended(parts: Any, tmp_path: Path) -> None:
    """As libvirt leaves machines: without a parent."""
    left = tmp_path / "left"
    parts(f"""
import subprocess
subprocess.run(["setsid", "sh", "-c", "sleep 60 & echo $! >{left}"], stdout=2)
sys.exit(1)
""")
    assert running.run("good", "now", 5).failed == "it ended with 1"
    with pytest.raises(ProcessLookupError):
        os.kill(int(left.read_text()), 0)


@pytest.mark.parametrize("how", ["print('{}')", "time.sleep(60)"])
def test_what_holds_a_parts_output_is_ended_as_well(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It kept the bench from seeing that the part had ended, and itself from being ended."""
    left = tmp_path / "left"
    monkeypatch.setattr(running, "limit_s", lambda *_: 2.0)
    monkeypatch.setattr(running, "GRACE_S", 0.2)
    monkeypatch.setattr(running, "REST_S", 1.0)
    parts(f"""
import signal, subprocess
signal.signal(signal.SIGINT, signal.SIG_IGN)
subprocess.run(["setsid", "sh", "-c", "sleep 30 & echo $! >{left}"])
{how}
""")
    begun = time.monotonic()
    found = running.run("good", "now", 5)
    assert time.monotonic() - begun < 20
    assert ("longer than" in found.failed) == ("sleep" in how)
    with pytest.raises(ProcessLookupError):
        os.kill(int(left.read_text()), 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("deaf", [True, False])
def test_a_bench_that_is_interrupted_leaves_nothing(
    tmp_path: Path, number: signal.Signals, *, deaf: bool
) -> None:
    """Whoever is told alone passes it on, once; who does not hear it is ended."""
    left, told = tmp_path / "left", tmp_path / "told"
    # As tests.bench.one: whoever runs the tests may have it ignored.
    how = "SIG_IGN" if deaf else "default_int_handler"
    hear = f"signal.signal(signal.SIGINT, signal.{how})"
    part = tmp_path / "part.py"
    part.write_text(f"""
import signal, subprocess, time
{hear}
subprocess.run(["setsid", "sh", "-c", "sleep 60 & echo $! >{left}.part; mv {left}.part {left}"])
try:
    time.sleep(60)
finally:
    open({str(told)!r}, "w")
""")
    program = f"""
import runpy, sys
from tests.bench import running
running.GRACE_S = {0.5 if deaf else 60}
command = running.subprocess.Popen
running.subprocess.Popen = lambda words, **more: command([sys.executable, {str(part)!r}], **more)
sys.argv = ["bench", "wall"]
runpy.run_module("tests.bench", run_name="__main__")
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=history.ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as bench:
        try:
            until(left.exists, "nothing has begun")
            bench.send_signal(number)
            _, said = bench.communicate(timeout=60)
        finally:
            bench.kill()
    assert bench.returncode == 1
    assert "interrupted" in said.splitlines()[-1]
    assert "tests/bench" not in said, "a trace of the bench's own"
    assert told.exists() is not deaf
    with pytest.raises(ProcessLookupError):
        os.kill(int(left.read_text()), 0)


# --- goals


def test_every_part_is_a_module_with_what_it_takes_and_every_goal_is_of_one() -> None:
    for part in PARTS:
        module = importlib.import_module(f"tests.bench.{part.name}")
        assert callable(module.measure)
        assert callable(module.show)
    assert {goal.part for goal in goals.GOALS} <= set(BY_NAME)
    names = [(goal.part, goal.name) for goal in goals.GOALS]
    assert len(names) == len(set(names))


def test_every_module_that_measures_is_a_part() -> None:
    """Else nobody would run it."""
    folder = history.ROOT / "tests" / "bench"
    measuring = {
        path.stem
        for path in folder.glob("*.py")
        if "\ndef measure(" in path.read_text()
    }
    assert measuring - {"__main__"} == set(BY_NAME)
    assert not list((history.ROOT / "scripts").glob("bench_*.py")), (
        "see CONTRIBUTING.md"
    )


def test_a_goal_is_met_at_its_bound_and_missed_beyond_it() -> None:
    start, load = goals.judged("starts", STARTS)
    assert (start.met, load.met) == (True, False)
    assert load.share == pytest.approx(1.25)
    assert load.text() == "0.50 (≤ 0.4): MISSED"


def test_of_at_least_more_is_better() -> None:
    figures = {"events_direct": 100.0, "events_composed": 160.0}
    (events,) = goals.judged("compose", figures)
    assert events.met
    assert events.share == pytest.approx(0.5)


def test_what_was_not_measured_is_neither() -> None:
    assert goals.judged("restore", {"shapes": {}}) == []


# --- histories


def test_a_line_that_was_cut_off_is_no_run(tmp_path: Path) -> None:
    path = tmp_path / "bench" / "history.jsonl"
    runs = [run_of("starts", STARTS), run_of("wall", {}, failed="it ended with 1")]
    for run in runs:
        history.note(run, path)
    with path.open("a") as file:
        file.write('{"run": "2026')
    assert history.noted(path) == runs


def test_what_documents_say_of_other_parts_stays(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    history.keep([run_of("starts", STARTS)], path)
    failed = run_of("starts", {}, failed="it ended with 1")
    history.keep([run_of("wall", {"wall_ms": {"user": 1 / 3}}), failed], path)
    found = history.measured(path)
    assert found["starts"] == run_of("starts", STARTS)
    assert found["wall"].figures == {"wall_ms": {"user": 0.333333}}


# --- the page


def test_the_page_has_the_last_run_of_each_part_beside_the_ones_before(
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib", reason="scripts/prepare-host --test installs it")
    slower = json.loads(json.dumps(STARTS))
    slower["starts"]["start_ratio"] = 0.7
    steps = {"steps": {"boot": [["tap", 0.0, 8.0], ["guest starts", 8.0, 90.0]]}}
    for run in (
        run_of("starts", slower, "2026-11-25"),
        run_of("starts", STARTS),
        run_of("steps", steps),
        run_of("wall", {}, failed="it ended with <1>"),
    ):
        history.note(run, tmp_path / "history.jsonl")
    written = report.write(tmp_path / "report.html", tmp_path / "history.jsonl")
    text = written.read_text()
    assert "1 of 2 goals are met" in text
    start = "<td>libvirt&#x27;s start: of it asking</td><td>0.40</td>"
    assert start in text, "it is the last run's"
    (row,) = re.findall(f"{start}.*?</tr>", text, re.DOTALL)
    assert '<td class="met">met</td><td>0.70</td><td><svg' in row
    assert "<td>starts / start_ratio</td><td>0.40</td><td>0.70</td>" in text
    assert text.count("0.70") == 2, "only as what was measured before"
    assert '<a href="#starts">starts 1/2</a> <a href="#steps">steps</a>' in text
    assert "A cold boot" in text
    assert "failed: it ended with &lt;1&gt;" in text
    assert text.count("<svg") == 1 + 2 + 1, (
        "bars, two lines of earlier runs, a waterfall"
    )
    for fetched in ("<script", "src=", "@import", "<link", "url(http"):
        assert fetched not in text


def test_a_part_that_has_failed_shows_what_it_came_to_before(tmp_path: Path) -> None:
    for run in (
        run_of("wall", {"wall_ms": {"box": 2.5}}, "2026-11-25"),
        run_of("wall", {}, failed="it ended with 1"),
    ):
        history.note(run, tmp_path / "history.jsonl")
    written = report.write(tmp_path / "report.html", tmp_path / "history.jsonl")
    text = written.read_text()
    assert "failed: it ended with 1" in text
    assert "Figures are of the last that did not: 2026-11-25" in text
    assert "<td>wall_ms / box</td><td>2.50</td><td></td>" in text


def test_without_any_run_the_page_is_there_and_says_nothing(tmp_path: Path) -> None:
    written = report.write(tmp_path / "report.html", tmp_path / "history.jsonl")
    assert "0 of 0 goals" in written.read_text()


def test_earlier_values_of_a_figure_end_with_this_one() -> None:
    slower = json.loads(json.dumps(STARTS))
    slower["starts"]["start_ratio"] = 0.7
    runs = [
        run_of("starts", slower),
        run_of("starts", {}, failed="no"),
        run_of("starts", STARTS),
    ]
    (found,) = report.shown(runs)
    assert found.earlier["libvirt's start: of it asking"] == [0.7, 0.4]


# --- documents


def test_a_block_says_what_was_measured_and_the_text_around_it_stays() -> None:
    text = "before\n<!-- measured: starts -->\nold\n<!-- measured: end -->\nafter\n"
    filled = documents.fill(text, {"starts": run_of("starts", STARTS)})
    assert filled.startswith("before\n<!-- measured: starts -->\n| ")
    assert filled.endswith("\n<!-- measured: end -->\nafter\n")
    assert "0.50 (≤ 0.4, missed)" in filled
    assert "old" not in filled
    assert documents.fill(filled, {"starts": run_of("starts", STARTS)}) == filled


def test_a_block_of_what_was_not_measured_says_so_and_an_unknown_one_is_an_error() -> (
    None
):
    text = "<!-- measured: {} -->\n<!-- measured: end -->"
    assert "Not measured yet" in documents.fill(text.format("wall"), {})
    with pytest.raises(KeyError):
        documents.fill(text.format("nonsense"), {})


def test_a_block_of_what_was_measured_in_part_says_what_is_missing() -> None:
    text = "<!-- measured: starts -->\n<!-- measured: end -->"
    some = {"starts": {**STARTS["starts"]}}
    del some["starts"]["load_asked_ms"]
    filled = documents.fill(text, {"starts": run_of("starts", some)})
    assert "load_asked_ms is missing" in filled


# --- the command


def test_help_says_how_long_it_takes_and_what_parts_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=history.ROOT,
    )
    for part in PARTS:
        assert part.name in done.stdout
    assert "minutes with 5 rounds" in done.stdout
    assert "at the very most" in done.stdout


@pytest.mark.parametrize(
    ("words", "parts", "more"),
    [
        (["resume", "--shapes", "256:64"], ["resume"], ["--shapes", "256:64"]),
        (["wall", "starts", "--rounds", "7"], ["wall", "starts"], []),
        ([], list(BY_NAME), []),
    ],
)
def test_options_of_one_part_reach_it(
    words: list[str], parts: list[str], more: list[str]
) -> None:
    chosen, found = command.arguments(words)
    assert (chosen.parts, found) == (parts, more)


@pytest.mark.parametrize("words", [["nonsense"], ["wall", "starts", "--shapes", "1:1"]])
def test_what_no_part_understands_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        command.arguments(words)
