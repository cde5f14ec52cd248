"""Every setting, by section. Flags, environment names, `vmdriver config` and docs/configuration.md
come from the sections' fields: a setting's key, type, default, bounds and description are
written there and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator
from pydantic.fields import FieldInfo

from vmdriver.config.driver import DriverSettings
from vmdriver.config.extensions import ExtensionSettings
from vmdriver.config.gateway import GatewaySettings
from vmdriver.config.guest import GuestSettings
from vmdriver.config.images import ImageSettings
from vmdriver.config.isolation import IsolationSettings
from vmdriver.config.machines import MachineSettings
from vmdriver.config.memory import MemorySettings
from vmdriver.config.network import NetworkSettings
from vmdriver.config.remote import RemoteSettings
from vmdriver.config.volumes import VolumeSettings
from vmdriver.lifecycle.launch.environment import guest_endpoint
from vmdriver.model.places import lies_in
from vmdriver.model.spec import Frozen


class Config(Frozen):
    """All sections. Operators write one flat table: see `config_of`."""

    driver: DriverSettings
    gateway: GatewaySettings
    remote: RemoteSettings
    machines: MachineSettings
    memory: MemorySettings
    volumes: VolumeSettings
    network: NetworkSettings
    isolation: IsolationSettings
    images: ImageSettings
    guest: GuestSettings
    extending: ExtensionSettings

    @model_validator(mode="after")
    def _alias_is_not_the_gateways(self) -> Self:
        alias = self.network.host_alias
        if guest_endpoint(self.gateway.openshell_endpoint).host == alias:
            raise ValueError(
                f"host_alias {alias} is the gateway's own address (openshell_endpoint)"
            )
        return self

    @model_validator(mode="after")
    def _devices_are_given_by_our_own_libvirt(self) -> Self:
        if self.machines.passthrough_devices and self.driver.connection != "embed":
            raise ValueError(
                'passthrough_devices takes connection = "embed": a daemon of libvirt\'s has rules '
                "of its own for devices, which were not tried"
            )
        return self

    @model_validator(mode="after")
    def _folders_are_none_of_the_drivers(self) -> Self:
        """A guest that reads or writes the state directory would have all sandboxes."""
        if not self.machines.host_mounts:
            return self  # nor is a disk waited for that may not answer
        own = str(self.driver.state_dir)
        led_to = os.path.realpath(own)
        for folder in self.machines.host_mounts:
            asked = folder.path
            if any(lies_in(p, asked) or lies_in(asked, p) for p in (own, led_to)):
                raise ValueError(
                    f"host_mounts: {folder.path} has state_dir in it, or is in it"
                )
        if self.driver.connection != "embed":
            raise ValueError(
                'host_mounts takes connection = "embed": machines of a libvirt daemon have their '
                "boxes made otherwise, which was not tried"
            )
        return self


_SECTIONS: Mapping[str, Mapping[str, FieldInfo]] = {
    name: field.annotation.model_fields
    for name, field in Config.model_fields.items()
    if field.annotation is not None
}
_SECTION_OF = {key: name for name, fields in _SECTIONS.items() for key in fields}
SETTINGS: Mapping[str, FieldInfo] = {
    key: field for fields in _SECTIONS.values() for key, field in fields.items()
}
"""Every key, in the order in which it is shown."""


def config_of(values: Mapping[str, Any]) -> Config:
    """The flat table of `values`, whose keys are of SETTINGS; what it leaves out has its default.
    pydantic's ValidationError names a section before the key.
    """
    sections: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
    for key, value in values.items():
        sections[_SECTION_OF[key]][key] = value
    return Config.model_validate(sections)
