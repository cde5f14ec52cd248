"""What each reason means that is shown to somebody: reasons.toml, read."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources

from vmdriver.model.spec import Frozen


class Explanation(Frozen):
    """Of one reason. `what_to_do`: "" where there is nothing to do."""

    reason: str
    means: str
    what_to_do: str


@cache
def sections() -> Mapping[str, tuple[Explanation, ...]]:
    """All there are, by the section of the page that they are in."""
    text = resources.files(__package__).joinpath("reasons.toml").read_text()
    return {
        title: tuple(
            Explanation(reason=reason, means=means, what_to_do=what_to_do)
            for reason, (means, what_to_do) in entries.items()
        )
        for title, entries in tomllib.loads(text).items()
    }


def explanation(reason: str) -> Explanation | None:
    """None: nobody ever sees that reason. Upper and lower case are the same."""
    for entries in sections().values():
        for entry in entries:
            if entry.reason.casefold() == reason.casefold():
                return entry
    return None
