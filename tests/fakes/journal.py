"""Ledgers as lines of JSON, so that what cannot be stored is noticed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.fakes.world import World
from vmdriver.errors import StorageError


class FakeJournal:
    def __init__(self, world: World, sandbox_id: str) -> None:
        self._world, self._id = world, sandbox_id

    def read(self) -> list[Mapping[str, Any]]:
        lines = self._world.journals.get(self._id, [])
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise StorageError(f"ledger of {self._id} is damaged: {error}") from error

    async def append(self, *lines: Mapping[str, Any]) -> None:
        self._world.act("append to journal")
        texts = [json.dumps(line) for line in lines]
        self._world.journals.setdefault(self._id, []).extend(texts)

    async def rewrite(self, lines: list[Mapping[str, Any]]) -> None:
        self._world.act("rewrite journal" if lines else "empty journal")
        self._world.journals[self._id] = [json.dumps(line) for line in lines]
