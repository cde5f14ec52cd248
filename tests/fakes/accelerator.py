"""A host with KVM, or mostly without."""

from __future__ import annotations

from vmdriver.model.plan import Accelerator


class FakeAccelerator:
    def __init__(self, accelerator: Accelerator = "tcg") -> None:
        self._accelerator = accelerator

    async def chosen(self) -> Accelerator:
        return self._accelerator
