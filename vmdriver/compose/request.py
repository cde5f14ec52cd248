"""Create requests on their way to the base driver: what extensions see of them, and what they
have changed. What nobody changes is passed on byte for byte, fields that we do not know included.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.errors import DriverError, InvalidRequest, Refused
from vmdriver.lifecycle.extending.activation import is_for
from vmdriver.lifecycle.extending.draft import Draft
from vmdriver.lifecycle.extending.hooks import SandboxView
from vmdriver.model.ids import check_sandbox_id
from vmdriver.model.quantity import parse_resources
from vmdriver.model.spec import Resources

_CONFIG = "template.driver_config"
_RESOURCES = ("cpu_request", "cpu_limit", "memory_request", "memory_limit")


@dataclass(frozen=True)
class Incoming:
    """One request. `message` is the parsed one, `raw` what came."""

    raw: bytes
    message: Any
    sandbox: SandboxView
    blocks: Mapping[str, Any]
    """template.driver_config.extensions, by extension."""
    enveloped: bool
    """There is a driver_config, whose "base" the base driver is given."""

    def draft(self) -> Draft:
        """What extensions may change."""
        template, spec = self.message.sandbox.spec.template, self.message.sandbox.spec
        values: dict[str, Any] = {
            "template.image": template.image,
            "template.labels": dict(template.labels),
            "template.environment": dict(template.environment),
            "spec.environment": dict(spec.environment),
            "spec.log_level": spec.log_level,
            _CONFIG: _plain_base(template),
        }
        for name in _RESOURCES:
            values[f"template.resources.{name}"] = getattr(template.resources, name)
        return Draft(values)

    def outgoing(self, draft: Draft, keys: Collection[str]) -> bytes:
        """What the base driver is sent. `keys`: what labels call our own extensions; those
        labels end here. Refused for a value of the wrong type.
        """
        changes = draft.changes()
        ours = [label for label in self.sandbox.labels if is_for(label, keys)]
        if not changes and not self.enveloped and not ours:
            return self.raw
        message = type(self.message)()
        message.CopyFrom(self.message)
        template = message.sandbox.spec.template
        for label in ours:
            del template.labels[label]
        if self.enveloped:
            _unwrap(template)
        for change in changes:
            _apply(message.sandbox.spec, change.field, change.key, change.value)
        return bytes(message.SerializeToString())


def _plain_base(template: Any) -> dict[str, Any]:
    base = template.driver_config.fields.get("base")
    return {} if base is None else dict(_plain(base))


def _plain(value: Any) -> Any:
    """As JSON has it; with numbers that are none, which JSON has not and a base may take."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {k: _plain(v) for k, v in value.struct_value.fields.items()}
    if kind == "list_value":
        return [_plain(each) for each in value.list_value.values]
    return None if kind in {None, "null_value"} else getattr(value, kind)


def _unwrap(template: Any) -> None:
    base = template.driver_config.fields.get("base")
    if base is None:
        template.ClearField("driver_config")
    else:
        inner = type(template.driver_config)()
        inner.CopyFrom(base.struct_value)
        template.driver_config.CopyFrom(inner)


def _apply(spec: Any, field: str, key: str, value: Any) -> None:
    *path, last = field.removeprefix("spec.").split(".")
    owner = spec
    for name in path:
        owner = getattr(owner, name)
    try:
        if field == _CONFIG:
            spec.template.driver_config.update({key: value})
        elif key:
            getattr(owner, last)[key] = value
        else:
            setattr(owner, last, value)
    except (TypeError, ValueError) as error:
        raise Refused(
            f"an extension set {field}{f'[{key}]' if key else ''} to what it cannot be",
            detail=str(error),
            reason="ExtensionRefused",
        ) from error


def _envelope(template: Any) -> tuple[dict[str, Any], bool]:
    """{"base": {...}, "extensions": {"<name>": {...}}}; anything else is an error."""
    if not template.HasField("driver_config"):
        return {}, False
    fields = template.driver_config.fields
    for key in fields:
        if key not in {"base", "extensions"}:
            raise InvalidRequest(
                f"{_CONFIG}.{key}",
                "a composed driver does not know this key",
                resolution='settings of the driver behind it go into "base": '
                f'{{"base": {{"{key}": ...}}, "extensions": {{"<name>": {{...}}}}}}',
            )
    for key in ("base", "extensions"):
        if key in fields and fields[key].WhichOneof("kind") != "struct_value":
            raise InvalidRequest(f"{_CONFIG}.{key}", "must be an object")
    if "extensions" not in fields:
        return {}, True
    try:
        blocks = json_format.MessageToDict(fields["extensions"].struct_value)
    except ValueError as error:
        raise InvalidRequest(
            f"{_CONFIG}.extensions", "holds a number that is not finite"
        ) from error
    return dict(blocks), True


def _resources(asked: Any) -> Resources:
    """As we understand them; other drivers may understand more."""
    try:
        return parse_resources(*(getattr(asked, name) for name in _RESOURCES))
    except DriverError:
        return Resources()


def read(kind: Any, raw: bytes) -> Incoming:
    """A create or validate request. InvalidRequest."""
    message = kind()
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise InvalidRequest("request", "is not a message of this contract") from error
    if not message.HasField("sandbox") or not message.sandbox.HasField("spec"):
        raise InvalidRequest("sandbox", "is missing, or has no spec")
    sandbox: pb.DriverSandbox = message.sandbox
    template = sandbox.spec.template
    blocks, enveloped = _envelope(template)
    view = SandboxView(
        check_sandbox_id(sandbox.id),
        sandbox.name,
        sandbox.workspace,
        template.image,
        dict(template.labels),
        _resources(template.resources),
    )
    return Incoming(raw, message, view, blocks, enveloped)
