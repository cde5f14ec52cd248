"""Extensions that follow the phases of any driver, as the machinery sees them."""

from __future__ import annotations

import logging
from functools import partial

from vmdriver.errors import DriverError
from vmdriver.lifecycle.engine.ledger import Held, Scope
from vmdriver.lifecycle.extending.call_points import HOLDING, CallPoint
from vmdriver.lifecycle.extending.draft import Draft, PlanDraft
from vmdriver.lifecycle.extending.notes import PHASES, Mark, hold_of, is_hold
from vmdriver.lifecycle.extending.participants import Part, Site
from vmdriver.lifecycle.extending.phases import Context, Extension, phases_of
from vmdriver.lifecycle.extending.plan_changes import shape
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.runs import Reason, RestoreKind

_audit = logging.getLogger("vmdriver.extension")


class ByPhases:
    """One of them. What it does not define is never called."""

    language = PHASES

    def __init__(self, extension: Extension) -> None:
        self.extension, self.name = extension, extension.name
        self.required, self.configuration = extension.required, extension.configuration
        self.defined = tuple(p.value for p in CallPoint if p in phases_of(extension))
        observes = type(extension).observe is not Extension.observe
        self.observer = extension if observes else None
        self._parts: dict[str, Part] = {
            "note_create": self._note_create,
            "configure_launch": self._shape,
            "before_launch": self._begin_run,
            "before_restore": self._restore,
            **{name: partial(self._call, CallPoint(name)) for name in self.defined},
        }

    def part(self, moment: str) -> Part | None:
        """Its phase, or what stands for one on the VM driver."""
        return self._parts.get(moment)

    async def _call(
        self, point: CallPoint, site: Site, draft: Draft | None = None
    ) -> None:
        context = await self._context(point, site)
        method = getattr(self.extension, point)
        if draft is not None:
            draft.on_behalf_of(self.name, point)
        drafts = () if draft is None else (draft,)
        await site.call(point.value, method(context, *drafts))

    async def _note_create(self, site: Site) -> None:
        await site.notes.begin(Mark.STAY)

    async def _shape(self, site: Site, draft: PlanDraft) -> None:
        # It was asked at create, for every launch.
        shape((c for c in site.subject.changes if c.extension == self.name), draft)

    async def _begin_run(self, site: Site, *_: LaunchPlan | PlanDraft) -> None:
        await site.notes.begin(Mark.RUN)
        if CallPoint.BEFORE_START in self.defined:
            await self._call(CallPoint.BEFORE_START, site)

    async def _restore(self, site: Site, kind: RestoreKind) -> None:
        if kind in {RestoreKind.RESUMED, RestoreKind.SNAPSHOT}:  # no launch follows
            await self._begin_run(site)

    async def undo(self, site: Site, held: Held, _reason: Reason) -> None:
        """Tell it of the end, once; then give back what it held. Only an error of that keeps the
        entry.
        """
        mark, end = Mark.STAY, CallPoint.AFTER_DELETE
        told = end if site.subject.accepted else CallPoint.ON_CREATE_FAILED
        if held.scope is Scope.RUNTIME:
            mark, end, told = Mark.RUN, CallPoint.AFTER_STOP, CallPoint.AFTER_STOP
        if site.notes.is_untold(mark):
            try:
                if told in self.defined:
                    await self._call(told, site)
            except DriverError as error:
                site.tell(error.text())
            await site.notes.told(mark)
        if is_hold(held):
            context = await self._context(end, site)
            await site.call("undo", self.extension.undo(context, hold_of(held)))

    async def _context(self, point: CallPoint, site: Site) -> Context:
        subject, notes = site.subject, site.notes
        parameters, state_dir = await site.given()
        words = {"sandbox": subject.sandbox.id, "extension": self.name}
        return Context(
            phase=point,
            sandbox=subject.sandbox,
            driver=site.driver,
            base_driver=site.base_driver,
            config=site.config,
            parameters=parameters,
            state_dir=state_dir,
            log=logging.LoggerAdapter(_audit, {**words, "phase": point.value}),
            trace=subject.trace,
            restore=subject.restore,
            held=notes.holds(),
            keep=notes.keep if notes.ledger and point in HOLDING else None,
            look_around=site.others,
        )
