"""Does several things at one time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from vmdriver.errors import DriverError

K = TypeVar("K")
T = TypeVar("T")


async def side_by_side(
    works: Mapping[K, Awaitable[object]],
) -> tuple[set[K], list[BaseException]]:
    """Which of them came to their end, and what the others raised, the first first. All are waited
    for, whatever happens to one.

    Cancelled, all that are under way are cancelled, and waited for as well: then a CancelledError
    is among the errors. Never raises.
    """
    under_way = {asyncio.ensure_future(work): key for key, work in works.items()}
    ended, errors = set[K](), list[BaseException]()
    while under_way:
        try:
            await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as error:
            errors.append(error)
            for task in under_way:
                task.cancel()
            continue
        for task in [task for task in under_way if task.done()]:
            key = under_way.pop(task)
            if (failed := _error_of(task)) is None:
                ended.add(key)
            else:
                errors.append(failed)
    return ended, errors


def most_urgent(errors: Sequence[BaseException]) -> BaseException:
    """The one of these that is to be raised: a cancellation, else the first that was expected
    (it says what to do), else the first.
    """
    for kind in (asyncio.CancelledError, DriverError):
        for error in errors:
            if isinstance(error, kind):
                return error
    return errors[0]


async def together(*works: Awaitable[object]) -> None:
    """Do them side by side. What one raises is raised when all have ended."""
    _, errors = await side_by_side(dict(enumerate(works)))
    if errors:
        raise most_urgent(errors)


async def beside(work: Awaitable[T], other: Awaitable[None]) -> T:
    """What `work` gives, with another one done meanwhile. Errors as with `together`."""
    found = asyncio.ensure_future(work)
    await together(found, other)
    return found.result()


def _error_of(task: asyncio.Future[object]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()
