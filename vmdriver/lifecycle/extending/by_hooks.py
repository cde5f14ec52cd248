"""Extensions that follow the VM driver's hooks, as the machinery sees them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel

from vmdriver.lifecycle.engine.ledger import Held
from vmdriver.lifecycle.extending.call_points import CallPoint
from vmdriver.lifecycle.extending.draft import EnvironmentDraft, PlanDraft
from vmdriver.lifecycle.extending.hooks import (
    HookContext,
    LifecycleExtension,
    hooks_of,
)
from vmdriver.lifecycle.extending.notes import HOOKS, Mark, meaning
from vmdriver.lifecycle.extending.participants import Part, Site
from vmdriver.lifecycle.extending.phases import Extension
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.runs import Reason, RestoreKind

Capture = Callable[[LifecycleExtension, HookContext], Awaitable[None]]
"""Calls the hook that is asked before something is captured."""


class ByHooks:
    """One of them. Every hook is called, whether it is defined or not."""

    language = HOOKS
    configuration: type[BaseModel] | None = None
    required: frozenset[CallPoint] = frozenset()
    observer: Extension | None = None

    def __init__(self, extension: LifecycleExtension) -> None:
        self.extension, self.name = extension, extension.name
        self.defined = hooks_of(extension)

    def part(self, moment: str) -> Part | None:
        """None at the phases' call points."""
        parts: dict[str, Part] = {
            "configure_launch": self._configure,
            "before_launch": self._allocate,
            "before_restore": self._restore,
            "after_restore": self._restored,
            "before_capture": self._capture,
        }
        return parts.get(moment)

    async def _configure(self, site: Site, draft: PlanDraft) -> None:
        await self._begin(site)
        draft.on_behalf_of(self.name)
        await self._call("configure_launch", site, Mark.RUN, draft)

    async def _allocate(self, site: Site, plan: LaunchPlan, draft: PlanDraft) -> None:
        # It began before those that follow phases allocated anything.
        await site.notes.begin_last(Mark.RUN)
        draft.on_behalf_of(self.name)
        environment = EnvironmentDraft(draft)
        await self._call("before_launch", site, Mark.RUN, plan, environment)

    async def _restore(self, site: Site, kind: RestoreKind) -> None:
        if kind not in {RestoreKind.ADOPTED, RestoreKind.RELAUNCHED}:
            await self._begin(site)
        await self._call("before_restore", site, Mark.STAY, kind)

    async def _restored(self, site: Site, kind: RestoreKind) -> None:
        context = await _context(site, site.notes.saved(Mark.STAY), save=False)
        await site.call("after_restore", self.extension.after_restore(context, kind))

    async def _capture(self, site: Site, hook: str, call: Capture) -> None:
        context = await _context(site, site.notes.saved(Mark.STAY))
        await site.call(hook, call(self.extension, context))

    async def undo(self, site: Site, held: Held, reason: Reason) -> None:
        """The clean-up hook. Its error keeps the entry."""
        saved = site.notes.saved(Mark.STAY, Mark.RUN)
        context = await _context(site, saved, save=False)
        if meaning(held.key)[1] is Mark.RUN:
            work = self.extension.after_launch_failed(context, reason)
            await site.call("after_launch_failed", work)
        else:
            await site.call("after_delete", self.extension.after_delete(context))

    async def _begin(self, site: Site) -> None:
        await site.notes.begin(Mark.STAY)
        await site.notes.begin(Mark.RUN, saved=site.notes.saved(Mark.STAY))

    async def _call(self, hook: str, site: Site, mark: Mark, *arguments: Any) -> None:
        context = await _context(site, site.notes.saved(mark))
        await site.call(hook, getattr(self.extension, hook)(context, *arguments))


async def _context(
    site: Site, saved: dict[str, Any], *, save: bool = True
) -> HookContext:
    parameters, state_dir = await site.given()
    return HookContext(
        site.subject.sandbox,
        state_dir,
        site.config,
        parameters,
        saved,
        site.notes.save if save else None,
    )
