"""Manual pages, bash completion and the settings' file, of what --help and the models say.

usage: pages.py FOLDER DATE    writes vmdriver.1, vmdriver.toml.5, vmdriver (completion), config.toml
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from scripts.command_line import every_command, own, takes_settings
from vmdriver import __version__
from vmdriver.cli.commands_arguments import ENDS
from vmdriver.cli.main import EXIT_STATUS, parser
from vmdriver.config import SETTINGS
from vmdriver.config.allowed import allowed
from vmdriver.config.sources import UPSTREAM_ENVIRONMENT

_DATE = "@date@"


# --- manual pages: man(7)

_FILES = [
    line
    for path, what in (
        ("/etc/vmdriver/config.toml", "Settings; every one is in there, in comments."),
        ("/run/vmdriver/compute\\-driver.sock", "What a gateway connects to."),
        (
            "/var/lib/vmdriver",
            "All that is kept: records, disks, images, kept memory, logs of machines.",
        ),
        (
            "/usr/share/doc/vmdriver/docs",
            "The documents: operating.md first, security.md, networking.md, images.md and others.",
        ),
    )
    for line in (".TP", f"\\fI{path}\\fR", what)
]


def _text(words: str) -> str:
    """Nothing of it is a request or an escape."""
    safe = words.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "\n".join(
        f"\\&{line}" if line.startswith(".") else line for line in safe.splitlines()
    )


def _argument(action: argparse.Action) -> str:
    word = str(action.metavar or action.dest).upper()
    if action.nargs in {"+", "*", argparse.REMAINDER}:
        word += " ..."
    if not action.option_strings:
        return (
            f"[\\fI{_text(word)}\\fR]"
            if action.nargs == "?"
            else f"\\fI{_text(word)}\\fR"
        )
    flags = ", ".join(f"\\fB{_text(flag)}\\fR" for flag in action.option_strings)
    if action.nargs == 0:
        return flags
    value = f"\\fI{_text(word)}\\fR"
    return f"{flags} [{value}]" if action.nargs == "?" else f"{flags} {value}"


def _head(name: str, section: int, about: str) -> list[str]:
    return [
        '.\\" Written by packaging/pages.py.',
        f'.TH {name.upper()} {section} "{_DATE}" "vmdriver {__version__}" "vmdriver"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(about)}",
    ]


def command_page() -> str:
    """vmdriver(1)."""
    top = parser()
    lines = [
        *_head(
            "vmdriver", 1, "compute driver for OpenShell: sandboxes as virtual machines"
        ),
        ".SH SYNOPSIS",
        ".B vmdriver",
        "\\fICOMMAND\\fR [\\fIOPTION\\fR ...]",
        ".SH DESCRIPTION",
        _text(str(top.description)),
        ".SH COMMANDS",
    ]
    for name, one in every_command(top):
        actions = own(one)
        places = [_argument(a) for a in actions if not a.option_strings]
        lines += [".TP", " ".join([f"\\fBvmdriver {_text(name)}\\fR", *places])]
        lines.append(_text(_sentence(one.description or "")))
        for action in actions:
            if action.help:
                lines += [
                    ".RS",
                    ".TP",
                    _argument(action),
                    _text(_sentence(action.help)),
                    ".RE",
                ]
    lines += [
        ".SH SETTINGS",
        "Most commands also take every setting of \\fBvmdriver.toml\\fR(5) as an option, with hyphens: "
        "\\fB\\-\\-state\\-dir\\fR \\fIVALUE\\fR; and \\fB\\-\\-config\\fR \\fIFILE\\fR.",
        ".SH EXIT STATUS",
        _text(EXIT_STATUS),
        ".PP",
        _text(f"vmdriver exec ends with {ENDS}"),
        ".SH FILES",
        *_FILES,
        ".SH SEE ALSO",
        "\\fBvmdriver.toml\\fR(5), \\fBvirsh\\fR(1), \\fBip\\-netns\\fR(8)",
    ]
    return "\n".join(lines) + "\n"


def _sentence(words: str) -> str:
    """What a value is called, or has a name of its own, stays as it is written."""
    words = words.replace("%(default)s", "").strip()
    first = words.split(" ", maxsplit=1)[0]
    if first.islower() and first[-1] not in ":," and not first.startswith("libvirt"):
        words = words[:1].upper() + words[1:]
    return words + ("" if words.endswith(".") else ".")


def settings_page() -> str:
    """vmdriver.toml(5)."""
    lines = [
        *_head("vmdriver.toml", 5, "settings of vmdriver"),
        ".SH DESCRIPTION",
        "\\fI/etc/vmdriver/config.toml\\fR holds settings as TOML. The environment "
        "(\\fBVMDRIVER_\\fISETTING\\fR in capitals) goes over it, and options of "
        "\\fBvmdriver\\fR(1) over both. \\fBvmdriver config\\fR prints what is in force, and whose "
        "word it is.",
        ".SH SETTINGS",
    ]
    for name, field in SETTINGS.items():
        lines += [".TP", f"\\fB{_text(name)}\\fR"]
        lines.append(_text(_sentence(field.description or "")))
        lines.append(f"May be: {_text(allowed(field))}.")
        if (value := toml(default(name))) is not None:
            lines.append(f"Default: {_text(value)}.")
        if upstream := UPSTREAM_ENVIRONMENT.get(name):
            lines.append(f"Also read from {_text(upstream)}.")
    return "\n".join([*lines, ".SH SEE ALSO", "\\fBvmdriver\\fR(1)"]) + "\n"


# --- the settings' file


def default(name: str) -> Any:
    """None: there is none, or it is the host's."""
    field = SETTINGS[name]
    return None if field.default_factory is not None else field.default


def toml(value: Any) -> str | None:
    """As it is written in a TOML file. None: it cannot be."""
    if value is None:
        return None
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, dict):
        return "{}" if not value else None
    return json.dumps(value)


def settings_file() -> str:
    """Every setting with its default, all of it in comments."""
    lines = [
        "# Settings of vmdriver: see vmdriver.toml(5), or `vmdriver config` for what is in force.",
        "# What begins with # is the default. A change holds from the next start of the driver on",
        "# (systemctl restart vmdriver: machines go on); log_level and log_format from a reload.",
    ]
    for name in SETTINGS:
        if name in {"extension", "request_parameters"}:
            continue
        field = SETTINGS[name]
        text = f"{_sentence(field.description or '')} May be: {allowed(field)}."
        value = toml(default(name))
        lines += [
            "",
            *textwrap.wrap(text, 96, initial_indent="# ", subsequent_indent="# "),
        ]
        lines.append(f"#{name} = {value}" if value is not None else f"#{name} =")
    lines += [
        "",
        "# Extensions: `extensions` loads them, a table gives one its settings.",
        "#[extension.audit-log]",
    ]
    return "\n".join(lines) + "\n"


# --- completion


def completion() -> str:
    """For bash. A command's words by its path; settings behind them all."""
    cases = []
    top = parser()
    groups: dict[str, list[str]] = {}
    for name, one in every_command(top):
        words = name.split()
        for depth in range(len(words)):
            known = groups.setdefault(" ".join(words[:depth]), [])
            if words[depth] not in known:
                known.append(words[depth])
        flags = [f for a in own(one) for f in a.option_strings if f.startswith("--")]
        rest = " $settings" if takes_settings(one) else ""
        cases.append(f'        "{name}") words="{" ".join(flags)}{rest}" ;;')
    for name, words in groups.items():
        cases.append(f'        "{name}") words="{" ".join(words)} --help" ;;')
    settings = [
        "--config",
        *(f"--{n.replace('_', '-')}" for n in SETTINGS if n != "extension"),
    ]
    asking = "|".join(
        f'"{n}"'
        for n, one in every_command(top)
        if any(a.dest == "id" for a in own(one))
    )
    return f"""# bash completion for vmdriver; written by packaging/pages.py
_vmdriver() {{
    local word command="" words settings="{" ".join(settings)}"
    COMPREPLY=()
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $word in -*) continue ;; esac
        case " {" ".join(" ".join(w) for w in groups.values())} " in
            *" $word "*) command="${{command:+$command }}$word" ;;
        esac
    done
    case $command in
{chr(10).join(cases)}
        *) words="$settings" ;;
    esac
    word=${{COMP_WORDS[COMP_CWORD]}}
    case $word in
        -*) ;;
        *)
            case $command in
                {asking}) words=$(vmdriver ls --json 2>/dev/null | sed -n 's/^ *"id": "\\(.*\\)",$/\\1/p') ;;
            esac ;;
    esac
    # shellcheck disable=SC2207
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [ "${{#COMPREPLY[@]}}" -gt 0 ] || compopt -o default 2>/dev/null
}}
complete -F _vmdriver vmdriver
"""


PAGES = {
    "vmdriver.1": command_page,
    "vmdriver.toml.5": settings_page,
    "vmdriver": completion,
    "config.toml": settings_file,
}


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0])
    for name, render in PAGES.items():
        (folder / name).write_text(render().replace(_DATE, arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
