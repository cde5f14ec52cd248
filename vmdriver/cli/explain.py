"""vmdriver explain: what a reason means, and what to do about it."""

from __future__ import annotations

import difflib
import json
import sys

from vmdriver.model.reasons import Explanation, explanation, sections

_OTHERS = (
    "an extension's own reasons (`other` in metrics), and those of a driver behind a composed one, "
    "are in their documents"
)


def explain(reason: str, *, as_json: bool) -> int:
    """Print one, or all for "". 1: there is none of that name."""
    every = [entry for entries in sections().values() for entry in entries]
    if not reason:
        found = every
    elif one := explanation(reason):
        found = [one]
    else:
        names = {entry.reason.casefold(): entry.reason for entry in every}
        near = difflib.get_close_matches(reason.casefold(), names)
        text = (
            f"perhaps {' or '.join(names[name] for name in near)}" if near else _OTHERS
        )
        print(f"there is no reason {reason!r}; {text}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps([entry.model_dump() for entry in found], indent=2))
        return 0
    print("\n\n".join(_text(entry) for entry in found))
    return 0


def _text(entry: Explanation) -> str:
    lines = [entry.reason, f"  {entry.means}"]
    return "\n".join([*lines, f"  {entry.what_to_do}"] if entry.what_to_do else lines)
