"""A host without KVM."""

from __future__ import annotations

from vmdriver.model.plan import Accelerator


class FakeAccelerator:
    async def chosen(self) -> Accelerator:
        return "tcg"
