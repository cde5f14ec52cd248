"""Records as JSON texts, so that what cannot be stored is noticed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from pydantic import SecretStr

from tests.fakes.world import World
from vmdriver.errors import AlreadyExists, StorageError
from vmdriver.model.record import SandboxRecord, parse_record, stored_form
from vmdriver.model.set_aside import Salvage, salvage


class FakeRecords:
    def __init__(
        self, world: World, crash_point: Callable[[str], Awaitable[None]]
    ) -> None:
        self._world, self._crash_point = world, crash_point
        self._unreadable: dict[str, str] = {}

    async def create(self, record: SandboxRecord, token: SecretStr | None) -> None:
        await self._crash_point("record:before-create")
        if record.id in self._world.records:
            raise AlreadyExists(record.id)
        self._world.records[record.id] = stored_form(record).decode()
        self._world.deleted.discard(record.id)
        if token is not None:
            self._world.tokens[record.id] = token
        await self._crash_point("record:after-create")

    async def save(self, record: SandboxRecord) -> None:
        await self._crash_point("record:before-save")
        self._world.act("save record")
        if record.id not in self._world.records:
            raise StorageError(f"there is no sandbox {record.id}")
        self._world.records[record.id] = stored_form(record).decode()
        await self._crash_point("record:after-save")

    async def load_all(self) -> list[SandboxRecord]:
        found = []
        self._unreadable = {}
        for sandbox_id, text in self._world.records.items():
            try:
                found.append(parse_record(text.encode()))
            except ValueError as error:
                self._unreadable[sandbox_id] = f"record.json cannot be read: {error}"
        return found

    def unreadable(self) -> Mapping[str, str]:
        return self._unreadable

    def all_there(self) -> bool:
        return self._world.records_there

    async def salvage(self, sandbox_id: str) -> Salvage:
        lines = self._world.journals.get(sandbox_id, [])
        return salvage(self._world.records.get(sandbox_id, ""), "\n".join(lines))

    async def give_up(self, record: SandboxRecord) -> None:
        await self.save(record)

    async def token(self, sandbox_id: str) -> SecretStr | None:
        return self._world.tokens.get(sandbox_id)

    async def remove(self, sandbox_id: str, *, noted: bool) -> None:
        await self._crash_point("record:before-remove")
        self._world.act("remove record")
        if self._world.records.pop(sandbox_id, None) is not None and noted:
            self._world.deleted.add(sandbox_id)
        for directory in list(self._world.checkpoints):
            if directory.startswith(f"{sandbox_id}/"):
                del self._world.checkpoints[directory]
        self._world.tokens.pop(sandbox_id, None)
        self._world.journals.pop(sandbox_id, None)
        await self._crash_point("record:after-remove")

    async def deleted(self, for_s: float) -> Mapping[str, float]:
        assert for_s > 0
        self._world.deleted -= self._world.records.keys()
        return dict.fromkeys(self._world.deleted, 0.0)

    async def forget_deleted(self, for_s: float) -> None:
        assert for_s > 0  # none gets that old in a test
