"""Measures one part in this process: `python -m tests.bench.one PART [--rounds N] [its options]`.

Prints tables, then what was reached of each goal, then one line of JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys

from tests.bench import goals
from tests.bench.parts import PARTS
from tests.bench.printing import table

FEWEST_ROUNDS = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description="Measure one part.")
    parser.add_argument("part", choices=[part.name for part in PARTS])
    parser.add_argument("--rounds", type=int, default=FEWEST_ROUNDS)
    part = parser.parse_known_args()[0].part
    module = importlib.import_module(f"tests.bench.{part}")
    if hasattr(module, "options"):
        module.options(parser)
    chosen = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench: must run as root")
    figures = module.measure(max(FEWEST_ROUNDS, chosen.rounds), chosen)
    line = json.dumps(figures)
    figures = json.loads(line)  # with the keys that everybody reads
    module.show(figures)
    reached = goals.judged(part, figures)
    if reached:
        table("Goals", [(each.goal.name, each.text()) for each in reached])
    print(line, flush=True)
    return 0


if __name__ == "__main__":
    # Also where whoever began us has it ignored, as shells do for what runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
