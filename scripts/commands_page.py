"""docs/commands.md, of the command line itself. Started by scripts/generate-docs."""

from __future__ import annotations

import argparse

from scripts.command_line import every_command, own
from vmdriver.cli.commands_arguments import ENDS
from vmdriver.cli.main import EXIT_STATUS, parser

_HEAD = """# Commands

What `--help` of a command, the manual page `vmdriver(1)` and this page say is the same. Most commands also take every setting as a flag ([configuration.md](configuration.md)) and `--config FILE`; give them what the driver was given, so that they find its `state_dir` and its sockets. ID is a sandbox's id, or a name that no other has.

* **Output.** Tables, colours and bars are for terminals (`NO_COLOR` is obeyed); a pipe gets plain lines. `--json` is for programs; all take it but {without}. What takes a while prints an event a line with it. Pictures: [screens.md](screens.md).
* **What a guest says** is text, whatever is in it: control characters are shown (`\\x1b`), everywhere. `console --raw` prints the guest's own bytes.
* **Without a running driver** work `config`, `console`, `devices ls`, `doctor`, `explain`, `inspect`, `net`, `plan`, `schema` and `sweep`; `stop-all` begins a driver where machines are left, and `serve`, `compose`, `demo` and `extensions new` ask none. The others ask the driver, on the gateway's socket or on one of its own for operators (`vmdriver.admin.v1`, `proto/vmdriver/admin/v1/admin.proto`), both of mode 0600.
* **Exit code.** {status} What doctor's mean: [operating.md](operating.md#when-something-is-wrong). `console -i` ends as the shell in the guest does, `exec` with {ends}"""

_GROUPS = {
    "A driver and its host": (
        *("serve", "config", "doctor", "demo", "stop-all", "sweep", "compose"),
    ),
    "Look": ("ls", "top", "inspect", "console", "net", "plan", "explain", "schema"),
    "Do": (
        *("suspend", "resume", "exec", "snapshot create", "snapshot ls"),
        *("snapshot show", "snapshot rm", "snapshot restore"),
    ),
    "What sandboxes are made of": (
        *("images ls", "images prefetch", "images gc", "template ls", "template rm"),
        *("volume ls", "volume create", "volume rm", "volume grow"),
        *("volume import", "volume export", "devices ls"),
    ),
    "Extensions": (
        *("extensions ls", "extensions describe", "extensions orphans"),
        "extensions new",
    ),
}
_AFTER = {
    "A driver and its host": """`vmdriver doctor --attack [ID]` does, as that machine's user and from inside its box and namespace, what an escaped QEMU could do, and flushes its firewall's rules: a line for each thing that was tried, 1 if anything got further than it should ([security.md](security.md)). It writes, sends and ends nothing; a machine goes on meanwhile.""",
    "Look": """`vmdriver inspect ID --timing` draws where the time of its last start, and of each of its snapshots, went. `vmdriver net ID HOST:PORT` tries a destination with the rules that are loaded ([networking.md](networking.md)). `vmdriver schema` prints what `driver_config` may hold.""",
    "Do": """`vmdriver suspend ID` and what follows it are in [restore.md](restore.md). `vmdriver exec ID -- CMD` runs a command in a machine that was started with `operator_exec = true` (off by default), and `vmdriver console ID -i` a shell on your terminal (Ctrl-] ends it): as the user `sandbox`, or with `--root`; exit code, input and output are the command's. It goes past the supervisor and its policy; who ran what is an event and in the log.""",
    "What sandboxes are made of": """[images.md](images.md), [restore.md](restore.md#templates-and-forks), [volumes.md](volumes.md), [devices.md](devices.md).""",
    "Extensions": """[extensions.md](extensions.md).""",
}


def _flags(action: argparse.Action) -> str:
    word = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return f"`{', '.join(action.option_strings)}{word}`"


def _place(action: argparse.Action) -> str:
    word = str(action.metavar or action.dest).upper()
    if action.nargs == "+":
        return f"-- {word}..."
    return f"[{word}]" if action.nargs == "?" else word


def _row(name: str, one: argparse.ArgumentParser) -> str:
    actions = [action for action in own(one) if action.dest != "json"]
    places = [_place(action) for action in actions if not action.option_strings]
    places += [
        f"{action.option_strings[0]} {action.metavar}"
        for action in actions
        if action.option_strings and action.required
    ]
    says = [(one.description or "").replace("%(default)s", "").strip()]
    says += [
        f"{_flags(action)}: {action.help}"
        for action in actions
        if action.option_strings
    ]
    text = "<br>".join(said.replace("|", "\\|") for said in says)
    return f"| `{' '.join(('vmdriver', name, *places))}` | {text} |"


def commands() -> str:
    """Every one, in its group. KeyError: one is in no group, or in a group and not there."""
    there = dict(every_command(parser()))
    without = ", ".join(
        f"`{name}`"
        for name, one in there.items()
        if all(action.dest != "json" for action in own(one))
    )
    lines: list[str] = [_HEAD.format(without=without, status=EXIT_STATUS, ends=ENDS)]
    for title, names in _GROUPS.items():
        lines += ["", f"## {title}", "", "| command | what it does |", "|---|---|"]
        lines += (_row(name, there.pop(name)) for name in names)
        lines += ["", _AFTER[title]]
    if there:
        raise KeyError(f"in no group: {', '.join(there)}")
    return "\n".join(lines) + "\n"
