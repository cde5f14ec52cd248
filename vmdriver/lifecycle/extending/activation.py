"""Which extensions take part in a sandbox, and what the request says to them. Fail-closed:
what was asked for and cannot be given refuses the create.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from vmdriver.errors import ConfigError, InvalidRequest, Refused
from vmdriver.lifecycle.extending.call_points import CallPoint
from vmdriver.lifecycle.extending.hooks import OnRequest
from vmdriver.lifecycle.extending.participants import Participant, Registered
from vmdriver.lifecycle.extending.subject import Activation
from vmdriver.model.mistakes import first_mistake

_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}")
_YES = {"enabled", "enable", "requested", "request", "1", "true", "yes", "y", "on"}
LABEL_PREFIX = "openshell.io/extension."
CONFIG_PATH = "template.driver_config.extensions"


def check_registration(participants: Sequence[Participant]) -> None:
    """ConfigError for a bad or doubled name or key."""
    names: set[str] = set()
    keys: dict[str, str] = {}
    for participant in participants:
        name, key = participant.name, key_of(participant.extension)
        for text in (name, key):
            if not _NAME.fullmatch(text):
                raise ConfigError(
                    f"extension name or key {text!r} is not made of A-Z a-z 0-9 . - _"
                )
        if name in names:
            raise ConfigError(f"extension {name!r} is listed twice")
        if key in keys:
            raise ConfigError(
                f"extensions {keys[key]!r} and {name!r} are both called {key!r} by labels",
                resolution="list one of them",
            )
        names.add(name)
        keys[key] = name


def is_affirmative(value: str) -> bool:
    """Whether a label's value says yes; anything unrecognised means no."""
    return value.strip().lower() in _YES


def on_request(extension: Registered) -> bool:
    """Whether it takes part only where it is asked for."""
    return isinstance(extension.activation, OnRequest)


def key_of(extension: Registered) -> str:
    """What labels call it."""
    kind = extension.activation
    return kind.key if isinstance(kind, OnRequest) else extension.name


def activate(
    participants: Iterable[Participant],
    labels: Mapping[str, str],
    blocks: Mapping[str, Any],
    supported: frozenset[CallPoint],
    may_configure: frozenset[str],
    of_base: frozenset[str] = frozenset(),
) -> Activation:
    """From the policy-stamped labels and the request's own block. `may_configure`: extensions
    whose parameters may come from the block. `of_base`: keys that are for a driver behind this
    one. Refused, InvalidRequest.
    """
    by_key = {key_of(p.extension): p for p in participants}
    asked, given = _read_labels(by_key, labels, of_base)
    for name, block in blocks.items():
        _check_block(name, block, {p.name for p in by_key.values()}, may_configure)
        given.setdefault(name, {}).update(block)
    active = [
        p.name
        for p in by_key.values()
        if p.name in asked or not on_request(p.extension)
    ]
    for name in given:
        if name not in active:
            raise Refused(
                f"extension {name!r} is given parameters but is not asked for",
                reason="ExtensionNotActive",
                resolution=f"have policy set the label {LABEL_PREFIX}<key> to enabled",
            )
    for participant in by_key.values():
        if participant.name in active:
            _check_phases(participant, supported)
            parse_parameters(participant.extension, given.get(participant.name, {}))
    return Activation(tuple(active), {n: p for n, p in given.items() if p})


def is_for(label: str, keys: Iterable[str]) -> bool:
    """Whether a label asks for, or says something to, an extension of one of these keys."""
    if not label.startswith(LABEL_PREFIX):
        return False
    rest = label.removeprefix(LABEL_PREFIX)
    return rest in keys or rest.rpartition(".")[0] in keys


def _read_labels(
    by_key: Mapping[str, Participant],
    labels: Mapping[str, str],
    of_base: frozenset[str],
) -> tuple[set[str], dict[str, dict[str, Any]]]:
    asked: set[str] = set()
    given: dict[str, dict[str, Any]] = {}
    for label, value in labels.items():
        if not label.startswith(LABEL_PREFIX):
            continue
        rest = label.removeprefix(LABEL_PREFIX)
        if rest in by_key:
            if is_affirmative(value):
                asked.add(by_key[rest].name)
            continue
        key, _, parameter = rest.rpartition(".")
        if rest in of_base or key in of_base:
            continue
        if key in by_key and parameter:
            given.setdefault(by_key[key].name, {})[parameter] = value
        elif is_affirmative(value) or key:
            raise Refused(
                f"label {label}: no extension of that key is installed",
                reason="ExtensionMissing",
                resolution="install and list it in the driver's configuration, or do not "
                "ask for it",
            )
    return asked, given


def _check_block(
    name: str, block: Any, installed: set[str], may_configure: frozenset[str]
) -> None:
    path = f"{CONFIG_PATH}.{name}"
    if name not in installed:
        raise InvalidRequest(path, "no extension of that name is installed")
    if not isinstance(block, Mapping):
        raise InvalidRequest(path, "must be an object")
    if block and name not in may_configure:
        raise Refused(
            f"{path}: the operator does not let requests configure this extension",
            reason="ExtensionParametersNotAllowed",
            resolution="use policy labels, or have the operator list it in "
            "request_parameters",
        )


def _check_phases(participant: Participant, supported: frozenset[CallPoint]) -> None:
    missing = sorted(p.value for p in participant.required - supported)
    if missing:
        raise Refused(
            f"extension {participant.name!r} needs the phase {missing[0]}, which this "
            "driver does not have",
            reason="ExtensionPhaseUnsupported",
            resolution="use a driver that has it, or do not ask for the extension",
        )


def parse_parameters(extension: Registered, given: Mapping[str, Any]) -> Any:
    """As the extension's model. InvalidRequest."""
    path = f"{CONFIG_PATH}.{extension.name}"
    if extension.parameters is None:
        if given:
            raise InvalidRequest(
                f"{path}.{sorted(given)[0]}", "this extension has no parameters"
            )
        return {}
    try:
        return extension.parameters.model_validate(given)
    except ValidationError as error:
        where, what = first_mistake(error)
        raise InvalidRequest(f"{path}.{where}".rstrip("."), what) from error


def parameter_schemas(
    participants: Iterable[Participant], may_configure: frozenset[str]
) -> dict[str, dict[str, object]]:
    """JSON Schema of what requests may say, by extension."""
    found = {p.name: p.extension.parameters for p in participants}
    nothing: dict[str, object] = {"type": "object", "maxProperties": 0}
    return {
        name: model.model_json_schema() if model else nothing
        for name, model in found.items()
        if name in may_configure
    }
