"""Implements lifecycle.ports.network_guard.NetworkGuard: the kernel says that something was
changed, what there is now is compared with what was made, and made again.

Nothing is polled, and nothing that we do ourselves is taken for somebody's change: what counts is
not who has said something, but whether what there is differs from what was made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from vmdriver.errors import NetworkError
from vmdriver.host.threads import Threads, finished
from vmdriver.lifecycle.ports.network_guard import NetworkNews
from vmdriver.model.plan import NetworkPlan
from vmdriver.network.host_network import HostNetwork
from vmdriver.network.kept import Kept, Watched
from vmdriver.network.listener import Heard, Listener
from vmdriver.network.picture import Picture, Scene, differences, look, only
from vmdriver.network.ruleset import table_name
from vmdriver.network.table_prints import INET, Table

_log = logging.getLogger(__name__)
_FEW = 8
"""So many are looked at one by one; of more, all that there is is read once."""
_AGAIN_S = 0.5
_LOADS = 4
"""Programs that load at a time: a flush concerns every machine."""
_EVERYTHING = Scene(tables=None, interfaces=None)


class NetworkGuard:
    """Of one driver's machines. `open` before anything else."""

    def __init__(self, network: HostNetwork, threads: Threads) -> None:
        self.looks = 0
        """How often it was looked at what there is."""
        self._network, self._threads = network, threads
        self._kept: dict[str, Kept] = {}
        self._suspects: set[Watched] = set()
        self._woken = asyncio.Event()
        self._at_once = asyncio.Semaphore(_LOADS)
        self._told: Callable[[NetworkNews], None] = lambda _: None
        self._host: Listener | None = None
        self._checker: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to listen to the host. NetworkError."""
        try:
            self._host = Listener()
        except OSError as error:
            raise NetworkError(f"netlink: {error.strerror}") from error
        self._host.start(self._heard)
        self._checker = asyncio.create_task(self._check_all(), name="network guard")

    async def close(self) -> None:
        """Restore nothing any more; what there is stays."""
        for tap in list(self._kept):
            await self.leave(tap)
        if self._checker is not None:
            self._checker.cancel()
            await asyncio.wait({self._checker})
        if self._host is not None:
            self._host.close()

    # --- ports.NetworkGuard

    async def keep(self, plan: NetworkPlan, mark: str) -> None:
        tap = plan.lease.tap
        await self.leave(tap)
        make = partial(self._load, plan, mark)
        kept = self._kept[tap] = Kept(tap, self._watched(plan), make, self._tell)
        try:
            await kept.make()
        except NetworkError as error:
            kept.restore(f"its rules could not be loaded ({error})", failures=1)
            raise
        except BaseException:
            self._kept.pop(tap, None)  # whoever wants it kept asks once more
            raise

    async def leave(self, tap: str) -> None:
        kept = self._kept.pop(tap, None)
        if kept is not None:
            self._suspects.difference_update(kept.watched)
            await finished(kept.close())

    def keeps(self, tap: str) -> bool:
        return tap in self._kept

    def why_broken(self, tap: str) -> str:
        kept = self._kept.get(tap)
        return kept.broken if kept is not None else ""

    def on_news(self, told: Callable[[NetworkNews], None]) -> None:
        self._told = told

    def _tell(self, news: NetworkNews) -> None:
        self._told(news)

    # --- what is kept

    async def _load(self, plan: NetworkPlan, mark: str) -> None:
        async with self._at_once:
            await self._network.load_rules(plan, mark)

    def _watched(self, plan: NetworkPlan) -> tuple[Watched, ...]:
        """Where there is something of it."""
        assert self._host is not None  # noqa: S101 - opened before anything is kept
        tap = plan.lease.tap
        tables = frozenset({Table(INET, table_name(tap))})
        scene = Scene(tables=tables, interfaces=frozenset({tap}))
        return (Watched(tap, scene, self._host, self._look_at_host),)

    async def _look_at_host(self, scene: Scene) -> tuple[Picture, frozenset[int]]:
        try:
            picture, names = await self._threads.run(look, scene)
        except OSError as error:
            raise NetworkError(f"netlink: {error.strerror or error}") from error
        return picture, frozenset(names)

    # --- what is heard

    def _heard(self, heard: Heard) -> None:
        """Who may have been changed is looked at."""
        everybody = (one for kept in self._kept.values() for one in kept.watched)
        self._suspect(one for one in everybody if one.concerns(heard))

    async def _check_all(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            suspects, self._suspects = self._suspects, set()
            try:
                await self._check([s for s in suspects if s.made is not None])
            except Exception:  # noqa: BLE001 - nothing is restored on a guess: it is looked again
                _log.exception("machines' networks cannot be looked at")
                await asyncio.sleep(_AGAIN_S)
                self._suspect(suspects)

    def _suspect(self, watched: Iterable[Watched]) -> None:
        kept = {one for known in self._kept.values() for one in known.watched}
        self._suspects |= kept.intersection(watched)
        if self._suspects:
            self._woken.set()

    async def _check(self, suspects: Sequence[Watched]) -> None:
        self.looks += bool(suspects)
        at_once: Picture | None = None
        if len(suspects) > _FEW:
            at_once, _ = await self._look_at_host(_EVERYTHING)
        for one in suspects:
            made = one.made
            now = only(one.scene, at_once) if at_once is not None else await one.look()
            if made is None or one.made is not made:
                continue  # it was loaded anew meanwhile
            words, kept = differences(made, now), self._kept.get(one.tap)
            if words and kept is not None and one in kept.watched:
                kept.restore(one.in_words(words))
