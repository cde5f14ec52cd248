"""What a composed driver does around the calls of the driver behind it."""

from __future__ import annotations

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.compose import request as requests
from vmdriver.compose.base import Answered, Asked, Base
from vmdriver.compose.registry import Registry
from vmdriver.compose.sandbox import Composed
from vmdriver.compose.store import Record, Stage
from vmdriver.errors import AlreadyExists, DriverError, Refused, Unavailable
from vmdriver.host.threads import finished
from vmdriver.lifecycle.extending.call_points import CallPoint
from vmdriver.lifecycle.extending.phase_runner import PhaseRunner, Subject


class ComposedDriver:
    """Each method is one call of the contract: bytes in, bytes out; Answered where the base
    refuses, a DriverError where we do.
    """

    def __init__(
        self,
        base: Base,
        registry: Registry,
        runner: PhaseRunner,
        name: str,
        suffix: str,
    ) -> None:
        self._base = base
        self._registry = registry
        self._runner = runner
        self._name, self._suffix = name, suffix

    async def capabilities(self, raw: bytes, asked: Asked) -> bytes:
        """The base's, under our name: the configured one, or "<base>+<suffix>"."""
        answer = await self._base.call("GetCapabilities", raw, asked)
        message = pb.GetCapabilitiesResponse.FromString(answer)
        self._runner.base_driver = message.driver_name
        message.driver_name = self._name or f"{message.driver_name}+{self._suffix}"
        self._runner.driver = message.driver_name
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
        activation = self._runner.activate(incoming.sandbox, incoming.blocks)
        subject = Subject(incoming.sandbox, activation, None, asked.trace)
        draft = incoming.draft()
        await self._runner.ask(CallPoint.VALIDATE_REQUEST, subject)
        await self._runner.ask(CallPoint.PREPARE_PLAN, subject, draft)
        outgoing = incoming.outgoing(draft, self._runner.keys)
        return await self._base.call("ValidateSandboxCreate", outgoing, asked)

    async def create(self, raw: bytes, asked: Asked) -> bytes:
        """Allocate, create; or give everything back and pass on the base's words."""
        incoming = requests.read(pb.CreateSandboxRequest, raw)
        sandbox = incoming.sandbox
        if self._registry.get(sandbox.id) is not None:
            raise AlreadyExists(f"sandbox {sandbox.id} exists")
        activation = self._runner.activate(sandbox, incoming.blocks)
        if not activation.active:
            outgoing = incoming.outgoing(incoming.draft(), self._runner.keys)
            return await self._base.call("CreateSandbox", outgoing, asked, repeat=False)
        record = Record(
            id=sandbox.id,
            name=sandbox.name,
            workspace=sandbox.workspace,
            image=sandbox.image,
            labels=sandbox.labels,
            resources=sandbox.resources,
            active=activation.active,
            parameters=activation.parameters,
        )
        box = self._registry.add(record)
        async with box.lock:
            try:
                return await self._create(box, incoming, asked)
            except BaseException as error:
                await finished(self._registry.create_failed(box, error))
                raise

    async def _create(
        self, box: Composed, incoming: requests.Incoming, asked: Asked
    ) -> bytes:
        draft, trace = incoming.draft(), asked.trace
        await box.update()
        await box.ask(CallPoint.VALIDATE_REQUEST, trace)
        await box.ask(CallPoint.PREPARE_PLAN, trace, draft)
        await box.ask(CallPoint.BEFORE_CREATE, trace, draft)
        await box.update(up=True)
        await box.ask(CallPoint.BEFORE_START, trace)
        outgoing = incoming.outgoing(draft, self._runner.keys)
        answer = await self._base.call("CreateSandbox", outgoing, asked, repeat=False)
        await box.update(stage=Stage.PRESENT)
        await box.report(CallPoint.AFTER_CREATE)
        return answer

    # --- start, stop, delete

    async def start(self, raw: bytes, asked: Asked) -> bytes:
        """before_start only where no run is under way: a start of what runs changes nothing."""
        message = pb.StartSandboxRequest.FromString(raw)
        box = self._registry.find(message.sandbox_id, message.sandbox_name)
        if box is None:
            return await self._base.call("StartSandbox", raw, asked)
        async with box.lock:
            if box.record.stage in {Stage.DELETING, Stage.GONE}:
                text = f"sandbox {box.record.id} is being deleted"
                raise Refused(text, reason="Deleting")
            begun = not box.record.up
            try:
                if begun:
                    await box.update(up=True, ready_told=False)
                    await box.ask(CallPoint.BEFORE_START, asked.trace)
                return await self._base.call("StartSandbox", raw, asked)
            except (Answered, DriverError) as error:
                # Of a base that went away nobody knows whether it starts: a list will tell.
                if begun and not isinstance(error, Unavailable):
                    await box.run_ended()
                raise

    async def stop(self, raw: bytes, asked: Asked) -> bytes:
        """after_stop when the base says that it is down."""
        message = pb.StopSandboxRequest.FromString(raw)
        box = self._registry.find(message.sandbox_id, message.sandbox_name)
        if box is None:
            return await self._base.call("StopSandbox", raw, asked)
        async with box.lock:
            if box.record.up:
                await box.ask(CallPoint.BEFORE_STOP, asked.trace)
            answer = await self._base.call("StopSandbox", raw, asked)
            await box.run_ended()
            return answer

    async def delete(self, raw: bytes, asked: Asked) -> bytes:
        """What is held is given back when the base says that the sandbox is gone."""
        message = pb.DeleteSandboxRequest.FromString(raw)
        box = self._registry.find(message.sandbox_id, message.sandbox_name)
        if box is None:
            return await self._base.call("DeleteSandbox", raw, asked)
        async with box.lock:
            if box.record.stage is Stage.PRESENT:
                await box.ask(CallPoint.BEFORE_DELETE, asked.trace)
                await box.update(stage=Stage.DELETING)
            answer = await self._base.call("DeleteSandbox", raw, asked)
            if not pb.DeleteSandboxResponse.FromString(answer).deleted:
                await self._registry.end(box)
            return answer
