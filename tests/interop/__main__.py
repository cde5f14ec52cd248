"""See scripts/interop."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fakes.leftovers import leftovers
from tests.fakes.registry import push, registry
from tests.fakes.serve import ROOT, WORK
from tests.interop.life import Life, host_service
from tests.interop.report import Report
from tests.interop.stack import Programs, Stack, wait

WAYS = ("operated", "launched")
_TOOLS = ("openssl", "docker-registry", "skopeo", "qemu-img", "nft", "ip")
_LOGS = ("gateway", "driver")


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="interop", description=__doc__)
    for name in ("gateway", "cli", "supervisor"):
        parser.add_argument(f"--{name}", type=Path, metavar="BIN")
    parser.add_argument("--way", action="append", choices=WAYS, help="default: both")
    parser.add_argument("--keep", action="store_true", help="keep logs and state")
    return parser.parse_args(arguments)


def missing(options: argparse.Namespace) -> list[str]:
    """What cannot be done without, in words."""
    found = []
    for name in ("gateway", "cli", "supervisor"):
        path = getattr(options, name)
        if path is None:
            found.append(f"--{name}: no program was named")
        elif not (path.is_file() and os.access(path, os.X_OK)):
            found.append(f"--{name}: {path} is no program")
    if os.geteuid() != 0:
        found.append("root: machines and their network need it")
    tools = (tool for tool in _TOOLS if shutil.which(tool) is None)
    found += [f"{tool}: run scripts/prepare-host --test" for tool in tools]
    return found


def build() -> None:
    """Boot files and the image; nothing if they are up to date."""
    for script, target in (
        ("build-boot-files", "boot"),
        ("build-demo-image", "demo-image"),
    ):
        subprocess.run([str(ROOT / "images" / script), str(WORK / target)], check=True)


def processes_of(base: Path) -> list[str]:
    """Whatever still runs with something below `base` on its command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        words = text.decode(errors="replace")
        if str(base) in words and int(process.name) != os.getpid():
            found.append(f"process {process.name}: {words[:120]}")
    return found


def one_way(way: str, programs: Programs, base: Path, report: Report) -> None:
    """A stack of its own, from nothing to nothing."""
    folder = Path(tempfile.mkdtemp(prefix=f"{way}-", dir=base))
    folder.chmod(0o755)
    with registry(base / f"registry-{way}") as address, host_service() as port:
        push(WORK / "demo-image", "demo", f"{address}/demo:latest")
        stack = Stack(programs, folder, address, launched=way == "launched")
        fine = False
        try:
            fine = report.run(way, Life(stack, port).steps())
        finally:
            stack.close()
            if not fine:
                for name in _LOGS:
                    print(f"--- {way}: {name}.log\n{stack.tail(name, 40)}", flush=True)
                stack.give_back()
    # A driver's guardian looks on for some seconds after it.
    with contextlib.suppress(TimeoutError):
        wait("its processes have ended", lambda: not processes_of(folder), 15)
    left = leftovers(stack.instance, stack.state) + processes_of(folder)
    report.leftovers += [f"{way}: {item}" for item in left]


def main(arguments: list[str]) -> int:
    """0: all is well; 1: not; 2: something is missing."""
    options = parsed(arguments)
    lacking = missing(options)
    if lacking:
        for item in lacking:
            print(f"missing: {item}", file=sys.stderr)
        return 2
    build()
    named = (options.gateway, options.cli, options.supervisor)
    programs = Programs(*(path.resolve() for path in named))
    # Short, since a Unix socket's path is; and open to QEMU's user.
    base = Path(tempfile.mkdtemp(prefix="vmi-", dir="/tmp"))
    base.chmod(0o755)
    report = Report()
    for way in options.way or WAYS:
        one_way(way, programs, base, report)
    for link in Path("/run/vmdriver").glob("*"):  # libvirt's short way into it
        if link.is_symlink() and link.readlink().is_relative_to(base):
            link.unlink()
    if options.keep or not report.ok:
        print(f"logs and state: {base}")
    else:
        shutil.rmtree(base)
    print(report.table())
    for item in report.leftovers:
        print(f"left over: {item}")
    print(report.line(), flush=True)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
