"""The command `scripts/bench`: measures parts, notes what came of them, writes the report and the documents."""

from __future__ import annotations

import argparse
import datetime
import itertools
import signal
import sys
from collections.abc import Sequence

from tests.bench import documents, history, one, report
from tests.bench.one import FEWEST_ROUNDS
from tests.bench.parts import BY_NAME, PARTS
from tests.bench.running import limit_s, run


def described() -> str:
    """The parts, and how long all of it takes."""
    width = max(len(part.name) for part in PARTS)
    lines = [
        f"  {part.name.ljust(width)}  {part.minutes:4.1f} min  {part.says}"
        for part in PARTS
    ]
    total = sum(part.minutes for part in PARTS)
    most = sum(limit_s(part.name, FEWEST_ROUNDS) for part in PARTS) / 60
    lines += [
        "",
        f"All of them take some {total:.0f} minutes with {FEWEST_ROUNDS} rounds on 2 cores under TCG that nobody else uses, and",
        f"{most:.0f} at the very most: a part that takes three times as long as it should (5 minutes at least) is ended,",
        "and has failed. One part alone takes options of its own: bench PART --help.",
        "It ends with 1 if a part failed. A goal that is missed is shown, and is no failure.",
    ]
    return "\n".join(lines)


def arguments(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Measures this driver, in turn with what it stands on, and what came of it against goals.",
        epilog=described(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.usage = "bench [part]... [--rounds N] [--keep] [options of that part]"
    parser.add_argument("--rounds", type=int, default=FEWEST_ROUNDS, metavar="N")
    parser.add_argument(
        "--report", action="store_true", help="only write bench/report.html anew"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="have the documents say what was measured: docs/measured.json, and the blocks that are made of it",
    )
    parser.add_argument(
        "--documents",
        action="store_true",
        help="only make those blocks anew; with --keep: from what was measured last",
    )
    parts = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    chosen, more = parser.parse_known_args(words[len(parts) :])
    if unknown := [part for part in parts if part not in BY_NAME]:
        parser.error(f"no such part: {', '.join(unknown)}")
    if more and len(parts) != 1:
        parser.error(f"these belong to one part alone: {' '.join(more)}")
    chosen.parts = parts or list(BY_NAME)
    return chosen, more


def measure(
    parts: Sequence[str], rounds: int, options: Sequence[str], *, keep: bool
) -> int:
    """0, or 1 if some failed: then the others have been measured all the same."""
    run_id = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    done = []
    for part in parts:
        print(f"\n=== {part}", flush=True)
        done.append(run(part, run_id, rounds, options))
        history.note(done[-1])
    if keep:
        history.keep(done)
        documents.write()
    try:
        print(f"\nreport: {report.write()}")
    except ModuleNotFoundError as missing:  # what was measured is noted all the same
        print(
            f"bench: no report: {missing}: scripts/prepare-host --test", file=sys.stderr
        )
    failed = [each for each in done if each.failed]
    for each in failed:
        print(f"bench: {each.part}: {each.failed}", file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    if len(sys.argv) > 2 and sys.argv[2] in {"-h", "--help"}:
        return one.main()
    chosen, more = arguments(sys.argv[1:])
    if chosen.documents:
        if chosen.keep:
            history.keep([run for run in history.noted() if run.part in chosen.parts])
        documents.write()
        return 0
    if chosen.report:
        print(report.write())
        return 0
    return measure(chosen.parts, chosen.rounds, more, keep=chosen.keep)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Also where whoever began us has it ignored, as shells do for what runs in the background.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(
        signal.SIGTERM, _interrupt
    )  # machines of the part under way are ended
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("bench: interrupted; parts that had come to their end are noted")
