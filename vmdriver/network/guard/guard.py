"""Implements lifecycle.ports.network_guard.NetworkGuard: the kernel says that something was
changed, what there is now is compared with what was made, and made again.

Nothing is polled, and nothing that we do ourselves is taken for somebody's change: what counts is
not who has said something, but whether what there is differs from what was made.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import ExitStack
from functools import partial

from vmdriver.errors import NetworkError
from vmdriver.host.confined import netns
from vmdriver.host.side_by_side import together
from vmdriver.host.threads import Threads, alone, finished
from vmdriver.lifecycle.ports.network_guard import NetworkNews
from vmdriver.model.plan import NetworkPlan
from vmdriver.network.guard.joint_look import JointLook, Seen
from vmdriver.network.guard.kept import Kept, Watched
from vmdriver.network.guard.listener import Heard, Listener
from vmdriver.network.guard.picture import Picture, Scene, differences, look
from vmdriver.network.guard.table_prints import INET, Table
from vmdriver.network.host_network import HostNetwork, outside_sysctls
from vmdriver.network.namespace import settings
from vmdriver.network.rules import nft
from vmdriver.network.rules.joint_load import JointLoader
from vmdriver.network.rules.machine_rules import Rules
from vmdriver.network.rules.shared_rules import table_name

_log = logging.getLogger(__name__)
_LOOKS = 4
"""Into namespaces at a time: after events were lost, or a driver's start, all are looked at."""
_AGAIN_S = 0.5
_UNSEEN = 2
"""So often at most it is not known what there is: then it is made anew."""
_QUIET_S = 10.0
"""So often it is told, at most, that something of the host's was restored."""


class NetworkGuard:
    """Of one driver's machines. `open` before anything else."""

    def __init__(self, network: HostNetwork, threads: Threads) -> None:
        self.looks = 0
        """How often it was looked at what there is."""
        self._network, self._threads = network, threads
        self._kept: dict[str, Kept] = {}
        self._suspects: set[Watched] = set()
        self._woken = asyncio.Event()
        self._inside_at_once = asyncio.Semaphore(_LOOKS)
        self._loads_at_once = asyncio.Semaphore(_LOOKS)
        self._addresses: tuple[str, ...] | None = None
        """Of the host, as machines' rules have them; those in `_stale` have earlier ones."""
        self._stale: set[str] = set()
        self._readdressed = self._settings = False
        """Those of the host may have been changed."""
        self._told_at = -_QUIET_S
        self._joint_look = JointLook(self._look_once)
        self._joint = JointLoader(nft.load)
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

    async def keep(
        self, plan: NetworkPlan, mark: str, *, mend: bool = False, broken: str = ""
    ) -> None:
        tap, known = plan.lease.tap, self._kept.get(plan.lease.tap)
        parts: Sequence[Watched] = ()
        if known is not None and _same_places(known.parts, plan):
            parts = known.parts
            await finished(known.close())
        else:
            await self.leave(tap)
            await self._network.find(plan, mark)
            if self._addresses is None:
                self._addresses = await self._network.lasting_addresses()
            parts = await self._watched(plan)
        kept = self._kept[tap] = Kept(
            tap,
            parts,
            make=partial(self._make, plan, mark),
            shut=partial(self._network.shut, plan),
            tell=self._tell,
        )
        try:
            await kept.make(parts, mend=mend)
        except NetworkError as error:
            what = f"its rules could not be loaded ({error.text()})"
            kept.broken = broken
            kept.begin(what, parts, mend=True, failures=1)
            raise
        except BaseException:
            await finished(self.leave(tap))  # whoever wants it kept asks once more
            raise

    async def leave(self, tap: str) -> None:
        kept = self._kept.pop(tap, None)
        if kept is not None:
            self._suspects.difference_update(kept.parts)
            await finished(self._let_go(kept))

    async def _let_go(self, kept: Kept) -> None:
        await kept.close()
        for part in kept.parts:
            if part.listener is not self._host:
                part.listener.close()

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

    async def _make(
        self, plan: NetworkPlan, mark: str, parts: Sequence[Watched], mend: bool
    ) -> None:
        if mend:  # its namespace may have lost its name
            await self._network.find(plan, mark)
        places = {part.namespace for part in parts}
        inside = plan.namespace in places
        found = await self._network.rules(plan, mark, inside=inside)
        await together(*(self._load(r) for r in found if r.namespace in places))
        # Afterwards: what is shut, as it is in the beginning, is opened behind its rules.
        if mend:
            await self._network.mend(plan, mark)
        elif any(part.known is None for part in parts):
            await self._network.connect(plan)

    async def _load(self, rules: Rules) -> None:
        if rules.namespace is None:
            await self._joint.load(rules.text)
            return
        # In there nothing else has any business.
        async with self._loads_at_once:
            await nft.load(f"flush ruleset\n{rules.text}", rules.namespace)

    async def _watched(self, plan: NetworkPlan) -> tuple[Watched, ...]:
        """Where there is something of it. NetworkError."""
        assert self._host is not None  # noqa: S101 - opened before anything is kept
        tap, within = plan.lease.tap, plan.namespace
        scene = Scene(
            tables=frozenset({Table(INET, table_name(tap))}),
            interfaces=frozenset({tap}),
            sysctls=frozenset(outside_sysctls(plan)),
        )
        outside = Watched(tap, None, scene, self._host, self._look_at_host)
        if within is None:
            return (outside,)
        scene = Scene(None, None, frozenset(settings(plan)))
        try:
            with ExitStack() as unwanted:
                listener = await alone("listener", _listener_in, within, unwanted)
                unwanted.pop_all()
        except OSError as error:
            raise NetworkError(f"network namespace {within}: {error}") from error
        listener.start(self._heard_in(tap))
        look_at = partial(self._look_inside, within)
        return Watched(tap, within, scene, listener, look_at), outside

    async def _look_at_host(self, scene: Scene) -> tuple[Picture, frozenset[int]]:
        picture, names = await self._joint_look.look(scene)
        return picture, frozenset(names)

    async def _look_once(self, scene: Scene) -> Seen:
        return await _looked(self._threads.run(look, scene))

    async def _look_inside(
        self, within: str, scene: Scene
    ) -> tuple[Picture, frozenset[int]]:
        async with self._inside_at_once:
            picture, names = await _looked(alone("look", _look_in, within, scene))
        return picture, frozenset(names)

    # --- what is heard

    def _heard(self, heard: Heard) -> None:
        """On the host: who may have been changed is looked at."""
        if (heard.settings or heard.everything) and self._kept:
            self._settings = True
            self._woken.set()
        if (heard.addresses or heard.everything) and self._kept:
            self._readdressed = True
            self._woken.set()
        here = (p for p in self._parts() if p.listener is self._host)
        self._suspect(part for part in here if part.concerns(heard))

    def _heard_in(self, tap: str) -> Callable[[Heard], None]:
        """All in there is that machine's."""

        def heard(_: Heard) -> None:
            kept = self._kept.get(tap)
            self._suspect(kept.parts[:1] if kept is not None else ())

        return heard

    def _parts(self) -> Iterator[Watched]:
        return (part for kept in self._kept.values() for part in kept.parts)

    async def _check_all(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            suspects, self._suspects = self._suspects, set()
            try:
                await self._check([s for s in suspects if s.made is not None])
                await self._check_forwarding()
                await self._check_addresses()
            except Exception:  # noqa: BLE001 - nothing is restored on a guess: it is looked again
                _log.exception("machines' networks cannot be looked at")
                await asyncio.sleep(_AGAIN_S)
                self._readdressed = True
                self._woken.set()
                self._suspect(suspects.intersection(self._parts()))

    async def _check_forwarding(self) -> None:
        """It concerns all of them. Without it nothing comes or goes: nobody is stopped for it."""
        # Who had no IPv6 to forward may have it with other addresses or routes.
        changed, self._settings = self._settings or self._readdressed, False
        if not (changed and self._kept) or not await self._network.forward():
            return
        now = time.monotonic()
        if now - self._told_at > _QUIET_S:
            self._told_at = now
            text = "this host did not forward any more; that was restored"
            for tap in self._kept:
                self._tell(NetworkNews(tap, text, restored=True))

    async def _check_addresses(self) -> None:
        """What the host is reached at by now is denied inside too."""
        wanted, self._readdressed = self._readdressed, False
        if not wanted:
            return
        now = await self._network.lasting_addresses()
        if now != self._addresses:
            self._addresses = now
            self._stale.update(self._kept)
            self._renew()

    def _renew(self) -> None:
        for tap in list(self._stale):
            kept = self._kept.get(tap)
            inside = [p for p in kept.parts if p.namespace] if kept is not None else []
            if kept is None or not inside or kept.renew(inside):
                self._stale.discard(tap)
        if self._stale:
            asyncio.get_running_loop().call_later(_AGAIN_S, self._renew)

    def _suspect(self, watched: Iterable[Watched]) -> None:
        self._suspects.update(watched)
        if self._suspects:
            self._woken.set()

    async def _check(self, suspects: Sequence[Watched]) -> None:
        self.looks += bool(suspects)
        made = [part.made for part in suspects]
        looks = (part.look() for part in suspects)
        pictures = await asyncio.gather(*looks, return_exceptions=True)
        for part, known, now in zip(suspects, made, pictures, strict=True):
            kept = self._kept.get(part.tap)
            if known is None or part.made is not known or kept is None:
                continue  # it is or was made anew meanwhile, or is nobody's any more
            if part not in kept.parts:
                continue
            words = (
                self._not_seen(part, now)
                if isinstance(now, BaseException)
                else differences(known, now)
            )
            if words:
                kept.restore(part, words)

    def _not_seen(self, part: Watched, error: BaseException) -> list[str]:
        """One that cannot be looked at holds up nobody else. What of it is to be restored."""
        if not isinstance(error, NetworkError):
            _log.error("network of %s: a bug", part.tap, exc_info=error)
        part.unseen += 1
        if part.unseen >= _UNSEEN:
            text = error.text() if isinstance(error, NetworkError) else "a bug"
            return [f"it cannot be looked at: {text}"]
        loop = asyncio.get_running_loop()
        loop.call_later(_AGAIN_S, self._suspect_still, part)
        return []

    def _suspect_still(self, part: Watched) -> None:
        if part in self._parts():
            self._suspect([part])


def _listener_in(within: str, unwanted: ExitStack) -> Listener:
    with netns.entered(within):
        listener = Listener()
    unwanted.callback(listener.close)
    return listener


def _look_in(within: str, scene: Scene) -> Seen:
    with netns.entered(within):
        return look(scene)


async def _looked(work: Awaitable[Seen]) -> Seen:
    try:
        return await work
    except OSError as error:
        raise NetworkError(f"netlink: {error.strerror or error}") from error


def _same_places(parts: Sequence[Watched], plan: NetworkPlan) -> bool:
    return parts[0].namespace == plan.namespace
