"""Bounded thread pools that lift blocking calls off the event loop, without losing
their effect when cancelled.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


async def finished(work: Awaitable[T], patience_s: float | None = None) -> T:
    """Wait for `work` even when cancelled meanwhile; the cancellation is raised when it
    has ended. With `patience_s`, it is cancelled itself so long after that.

    An effect on the host that was begun goes on whether or not anybody waits, so
    whoever books it must wait.
    """
    task = asyncio.ensure_future(work)
    cancelled, timer = False, None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                break
            cancelled = True
            if patience_s is not None and timer is None:
                loop = asyncio.get_running_loop()
                timer = loop.call_later(patience_s, task.cancel)
        except Exception:  # noqa: BLE001 - raised below, from the task itself
            break
    if timer is not None:
        timer.cancel()
    if cancelled:
        if not task.cancelled():
            task.exception()
        raise asyncio.CancelledError
    return task.result()


async def alone(name: str, function: Callable[..., T], *arguments: object) -> T:
    """Run a short blocking call in a thread that does nothing else before or after it: what the
    call changes of its thread goes with it. See `finished` for cancellation.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()
    context = copy_context()

    def work() -> None:
        try:
            result = context.run(function, *arguments)
        except BaseException as error:  # noqa: BLE001 - handed over to whoever waits
            loop.call_soon_threadsafe(answer.set_exception, error)
        else:
            loop.call_soon_threadsafe(answer.set_result, result)

    threading.Thread(target=work, name=f"vmdriver-{name}", daemon=True).start()
    return await finished(answer)


class Threads:
    """Threads for one outside world, so that a slow disk cannot starve the hypervisor."""

    def __init__(self, name: str, size: int) -> None:
        self._executor = ThreadPoolExecutor(size, thread_name_prefix=f"vmdriver-{name}")

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a blocking call in one of them; see `finished` for cancellation."""
        loop = asyncio.get_running_loop()
        run = copy_context().run
        return await finished(
            loop.run_in_executor(self._executor, run, function, *arguments)
        )

    def close(self) -> None:
        """Give the threads back; calls under way are not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)
