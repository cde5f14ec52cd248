"""Pages whose facts are the code's. Started by scripts/generate-docs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from scripts import commands_page, example_screens, settings_page
from scripts.dashboard import dashboard
from tests.bench import documents, history
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.reasons import sections
from vmdriver.telemetry.catalogue import EVERY
from vmdriver.telemetry.machines import TOP

_NONE = "\N{EN DASH}"
ROOT = Path(__file__).resolve().parent.parent
_BY = "<!-- Written by scripts/generate-docs: change {source}, not this page. -->\n\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def reasons() -> str:
    """Every reason, by section."""
    lines = [
        "# Reasons",
        "",
        "Conditions, events and errors carry a reason: one word that stays the same while messages "
        "get better. `vmdriver explain REASON` prints what is here. Not here are those of "
        "extensions of yours (in metrics they are `other`), and of the driver behind a composed one: "
        "their own documents have them.",
    ]
    for title, entries in sections().items():
        lines += ["", f"## {title}", "", "| reason | means | what to do |"]
        lines.append("|---|---|---|")
        for entry in entries:
            cells = (f"`{entry.reason}`", entry.means, entry.what_to_do or _NONE)
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return _BY.format(source="vmdriver/model/reasons.toml") + "\n".join(lines) + "\n"


def configuration() -> str:
    """Every setting of both drivers."""
    page = settings_page.configuration()
    return (
        _BY.format(source="the models in vmdriver/config and vmdriver/compose") + page
    )


def _words(labels: tuple[str, ...]) -> str:
    return ", ".join(f"`{label}`" for label in labels) or _NONE


def metrics() -> str:
    """Every metric, and how to have it."""
    lines = [
        "# Metrics and traces",
        "",
        '`metrics_listen = "unix:/run/vmdriver/metrics.sock"` (or `127.0.0.1:9464`) serves them as '
        "Prometheus reads them, at `/metrics`; a port is open to every user of the host, a socket to "
        "root alone. `otlp_endpoint` sends them each minute to an OpenTelemetry collector, by gRPC, "
        "with a span for each call that changes something (below the caller's traceparent), below it "
        "those of what it led to and its steps, and of each call of an extension. Both may be "
        "set; without either the SDK is not loaded. Prometheus writes a name with underscores and "
        "its unit: `vmdriver.step.duration` is `vmdriver_step_duration_seconds`.",
        "",
        f"What is of one machine has a series for each of the {TOP} that used most CPU since the "
        "last look, and one for all together; where there are many, their memory is added up in turn, and "
        "may be some looks old. A sum begins at nothing with its driver. Nobody waits for a driver that is held up: it shows "
        "what it showed last, and `vmdriver.loop.lag`; one that has not taken up its sandboxes yet shows "
        "`vmdriver.ready` 0 and nothing of them. A composed driver (`vmdriver compose`) has both settings, "
        "too: it shows `vmdriver.composed.…`, and of the others calls of extensions, events, watchers and "
        "its loop's lag. A driver's own processor time, memory and open "
        "files are `process_…`, its version is on `target_info`. `dashboards` has a dashboard for "
        "Grafana and alert rules for Prometheus ([how](operating.md#watch-it)).",
        "",
        "| metric | unit | kind | labels | meaning |",
        "|---|---|---|---|---|",
        *(
            f"| `{m.name}` | {m.unit} | {m.kind} | {_words(m.labels)} | {m.description} |"
            for m in EVERY
        ),
    ]
    return _BY.format(source="vmdriver/telemetry") + "\n".join(lines) + "\n"


def commands() -> str:
    """Every command of `vmdriver`, with what it takes."""
    return (
        _BY.format(source="the command's --help, or scripts/commands_page.py")
        + commands_page.commands()
    )


def screens() -> str:
    """Pictures of what is on a terminal."""
    plan = (ROOT / "tests" / "golden" / "plan.json").read_text()
    pictures = {
        "vmdriver top": example_screens.top(),
        "vmdriver ls": example_screens.ls(),
        "vmdriver inspect id-builder": example_screens.inspect(
            LaunchPlan.model_validate_json(plan)
        ),
    }
    lines = [
        "# On a terminal",
        "",
        "What some commands show; the sandboxes are made up. Colours are left out here, as they are "
        "with `NO_COLOR` and where standard output is no terminal. `ls --watch` draws its table "
        "anew when something changes; where there are more sandboxes than lines, it has those that "
        "changed last. Into a pipe it writes a line for each change.",
        "",
        "`vmdriver top` shows of each machine: CPU in percent of one processor, memory that is its "
        "own and that it shares with others (templates, programs), what its own layers take on "
        "disk, and bytes a second of disk and network. Keys (`?` lists them) inspect, show the "
        "console, suspend, resume, take a snapshot, delete (it asks), filter and sort. Times are UTC. It needs no "
        "mouse and 80 columns by 24 lines; a smaller terminal has fewer columns and events, a larger "
        "one more. Ctrl-Z stops it, as it does other programs. The driver looks once for all who "
        "watch, for at most a twentieth of one processor's time.",
    ]
    for command, picture in pictures.items():
        lines += ["", f"## `{command}`", "", "```text", picture, "```"]
    return _BY.format(source="scripts/example_screens.py") + "\n".join(lines) + "\n"


def scale() -> str:
    """The page as it is, with its table as scripts/capacity.py makes it of docs/measured.json."""
    return documents.fill((ROOT / "docs/scale.md").read_text(), history.measured())


PAGES: dict[str, Callable[[], str]] = {
    "docs/reasons.md": reasons,
    "docs/configuration.md": configuration,
    "docs/commands.md": commands,
    "docs/metrics.md": metrics,
    "dashboards/vmdriver.json": dashboard,
    "docs/screens.md": screens,
    "docs/scale.md": scale,
}


def main(arguments: list[str]) -> int:
    """1: with --check, a page is not what it would be."""
    stale = []
    for name, render in PAGES.items():
        page, text = ROOT / name, render()
        if not page.exists() or page.read_text() != text:
            stale.append(name)
            if arguments != ["--check"]:
                page.write_text(text)
    if arguments != ["--check"]:
        return 0
    for name in stale:
        print(f"{name} is stale: run scripts/generate-docs", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
