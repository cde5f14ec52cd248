"""What Python's collector of garbage need not look at."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_YOUNG = 10_000
"""So many more objects than before, and the young ones are looked at (700 by default). A call makes
hundreds, and few of them last: looked at after a dozen calls, nearly all have gone by themselves.
"""


@contextmanager
def none_meanwhile() -> Iterator[None]:
    """For imports alone: all of it stays, and looking for some takes an eighth of that time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def leave_out_what_stays() -> None:
    """Have full collections, which stop the loop, pass over all that exists now. Called once by a
    process that serves, when everything is imported and nothing is done yet: 70,000 modules,
    functions and classes, 30 ms each time, which every call that is under way would wait for.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
