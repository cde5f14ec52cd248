"""What a composed driver does around the calls of the driver behind it."""

from __future__ import annotations

import grpc

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.compose import request as requests
from vmdriver.compose.base import Asked, Base, BaseRejected
from vmdriver.compose.creates import Creates
from vmdriver.compose.dialect import stops_still
from vmdriver.compose.follower import is_down
from vmdriver.compose.registry import Absent, Registry, is_unsure, is_vague
from vmdriver.compose.sandbox import Composed
from vmdriver.compose.store import Record, Stage
from vmdriver.errors import AlreadyExists, DriverError, Refused, Unavailable
from vmdriver.host.threads import finished
from vmdriver.lifecycle.extending.call_points import CallPoint
from vmdriver.lifecycle.extending.runner import Runner


class ComposedDriver:
    """Each method is one call of the contract: bytes in, bytes out; BaseRejected where the base
    refuses, a DriverError where we do.
    """

    def __init__(
        self,
        base: Base,
        registry: Registry,
        runner: Runner[Record],
        name: str,
        suffix: str,
    ) -> None:
        self._base = base
        self._creates = Creates(base)
        self._registry = registry
        self._runner = runner
        self._name, self._suffix = name, suffix
        self.names = ("", "")
        """Ours and the base's, once the base has said its own."""

    async def capabilities(self, raw: bytes, asked: Asked) -> bytes:
        """The base's, under our name: the configured one, or "<base>+<suffix>"."""
        answer = await self._base.call("GetCapabilities", raw, asked)
        message = pb.GetCapabilitiesResponse.FromString(answer)
        base = message.driver_name
        message.driver_name = self._name or f"{base}+{self._suffix}"
        self.names = (message.driver_name, base)
        return bytes(message.SerializeToString())

    async def get(self, raw: bytes, asked: Asked) -> bytes:
        """The base's answer, with our own trouble added."""
        answer = await self._base.call("GetSandbox", raw, asked)
        if not self._registry.troubled():
            return answer
        message = pb.GetSandboxResponse.FromString(answer)
        changed = self._registry.add_conditions(message.sandbox)
        return bytes(message.SerializeToString()) if changed else answer

    async def listed(self, raw: bytes, asked: Asked) -> bytes:
        """As `get`."""
        answer = await self._base.call("ListSandboxes", raw, asked)
        if not self._registry.troubled():
            return answer
        message = pb.ListSandboxesResponse.FromString(answer)
        changed = [self._registry.add_conditions(s) for s in message.sandboxes]
        return bytes(message.SerializeToString()) if any(changed) else answer

    # --- create

    async def validate(self, raw: bytes, asked: Asked) -> bytes:
        """Extensions first, then the base, which sees what a create would send it."""
        incoming = requests.read(pb.ValidateSandboxCreateRequest, raw)
        record, draft, trace = self._record(incoming), incoming.draft(), asked.trace
        await self._runner.ask(CallPoint.VALIDATE_REQUEST, record, None, trace)
        await self._runner.ask(CallPoint.PREPARE_PLAN, record, None, trace, draft)
        outgoing = incoming.outgoing(draft, self._runner.keys)
        return await self._base.call("ValidateSandboxCreate", outgoing, asked)

    async def create(self, raw: bytes, asked: Asked) -> bytes:
        """Allocate, create; or give everything back and pass on the base's words."""
        incoming = requests.read(pb.CreateSandboxRequest, raw)
        sandbox_id = incoming.sandbox.id
        present = self._registry.get(sandbox_id)
        if present is not None and present.record.stage is Stage.GONE:
            text = f"sandbox {sandbox_id}: what it left is being given back; try again"
            raise Unavailable(text)
        if present is not None:
            raise AlreadyExists(f"sandbox {sandbox_id} exists")
        record = self._record(incoming)
        if not record.active:
            outgoing = incoming.outgoing(incoming.draft(), self._runner.keys)
            return await self._creates.ask(incoming.sandbox, outgoing, asked)
        sandbox = self._registry.add(record)
        sandbox.base_asked = False
        async with sandbox.lock:
            try:
                return await self._create(sandbox, incoming, asked)
            except BaseException as error:
                await finished(self._registry.create_failed(sandbox, error))
                raise

    def _record(self, incoming: requests.Incoming) -> Record:
        sandbox = incoming.sandbox
        activation = self._runner.activate(sandbox.labels, incoming.blocks)
        return Record(**vars(sandbox), **vars(activation))

    async def _create(
        self, sandbox: Composed, incoming: requests.Incoming, asked: Asked
    ) -> bytes:
        draft, trace = incoming.draft(), asked.trace
        await sandbox.update()
        await sandbox.ask(CallPoint.VALIDATE_REQUEST, trace)
        await sandbox.ask(CallPoint.PREPARE_PLAN, trace, draft)
        await sandbox.ask(CallPoint.BEFORE_CREATE, trace, draft)
        await sandbox.update(up=True)
        await sandbox.ask(CallPoint.BEFORE_START, trace)
        outgoing = incoming.outgoing(draft, self._runner.keys)
        sandbox.base_asked = True
        answer = await self._creates.ask(incoming.sandbox, outgoing, asked)
        await sandbox.update(stage=Stage.PRESENT)
        await sandbox.report(CallPoint.AFTER_CREATE)
        return answer

    # --- start, stop, delete

    async def start(self, raw: bytes, asked: Asked) -> bytes:
        """before_start only where no run is under way: a start of what runs changes nothing."""
        message = pb.StartSandboxRequest.FromString(raw)
        sandbox = self._registry.find(message.sandbox_id, message.sandbox_name)
        if sandbox is None:
            return await self._base.call("StartSandbox", raw, asked)
        async with sandbox.lock:
            if sandbox.record.stage in {Stage.DELETING, Stage.GONE}:
                text = f"sandbox {sandbox.record.id} is being deleted"
                raise Refused(text, reason="Deleting")
            begun = not sandbox.record.up
            if begun or sandbox.cut_off:
                await self._begin_run(sandbox, asked)
            try:
                answer = await self._base.call("StartSandbox", raw, asked)
            except (BaseRejected, DriverError) as error:
                if is_unsure(error):
                    self._registry.start_open(sandbox)
                elif begun:
                    await self._not_started(sandbox, error)
                raise
            self._registry.start_open(sandbox, answered=True)
            return answer

    async def _begin_run(self, sandbox: Composed, asked: Asked) -> None:
        again = sandbox.record.up
        try:
            if not again:
                await sandbox.update(up=True, ready_told=False)
            await sandbox.ask(CallPoint.BEFORE_START, asked.trace)
        except Exception:  # whatever it is, the base was not asked: not by us
            if not again:
                await sandbox.run_ended()
            raise
        sandbox.cut_off = False

    async def _not_started(self, sandbox: Composed, error: Exception) -> None:
        if is_vague(error):
            seen = await self._registry.look(sandbox.record.id)
            up = isinstance(seen, pb.DriverSandbox) and not is_down(seen)
            if up or seen is Absent.UNKNOWN:
                self._registry.start_open(sandbox)
                return
        await sandbox.run_ended()

    async def stop(self, raw: bytes, asked: Asked) -> bytes:
        """after_stop when the base says that it is down: now, or later where a stop is only
        accepted now.
        """
        message = pb.StopSandboxRequest.FromString(raw)
        sandbox = self._registry.find(message.sandbox_id, message.sandbox_name)
        if sandbox is None:
            return await self._base.call("StopSandbox", raw, asked)
        async with sandbox.lock:
            if sandbox.record.up:
                await sandbox.ask(CallPoint.BEFORE_STOP, asked.trace)
            answer = await self._base.call("StopSandbox", raw, asked)
            sandbox.start_open_until = None
            await self._stopped(sandbox)
            return answer

    async def _stopped(self, sandbox: Composed) -> None:
        """The base has answered a stop. One that is still under way then is over when an event or
        a list says so.
        """
        if sandbox.record.up:
            seen = await self._registry.look(sandbox.record.id)
            if isinstance(seen, Absent) or not stops_still(seen):
                await sandbox.run_ended()

    async def delete(self, raw: bytes, asked: Asked) -> bytes:
        """What is held is given back when the base says that the sandbox is gone."""
        message = pb.DeleteSandboxRequest.FromString(raw)
        self._creates.withdraw(message.sandbox_id, message.sandbox_name)
        sandbox = self._registry.find(message.sandbox_id, message.sandbox_name)
        if sandbox is None:
            return await self._base.call("DeleteSandbox", raw, asked)
        async with sandbox.lock:
            if sandbox.record.stage is Stage.PRESENT:
                await sandbox.ask(CallPoint.BEFORE_DELETE, asked.trace)
                await sandbox.update(stage=Stage.DELETING)
            try:
                answer = await self._base.call("DeleteSandbox", raw, asked)
            except BaseRejected as error:
                await self._not_deleted(sandbox, error)
                raise
            if not pb.DeleteSandboxResponse.FromString(answer).deleted:
                await self._absent(sandbox)
            return answer

    async def _not_deleted(self, sandbox: Composed, error: BaseRejected) -> None:
        if error.code is grpc.StatusCode.NOT_FOUND:
            await self._absent(sandbox)
        elif not is_unsure(error) and sandbox.record.stage is Stage.DELETING:
            await sandbox.update(stage=Stage.PRESENT)  # it goes on

    async def _absent(self, sandbox: Composed) -> None:
        """The base does not have it: not yet, maybe, where it has never answered the create."""
        if sandbox.record.stage is Stage.CREATING:
            await self._registry.settle_abandoned(sandbox)
        else:
            await self._registry.end(sandbox)
