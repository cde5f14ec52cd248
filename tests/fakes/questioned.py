"""A libvirt whose machines begin with questions, without them, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import libvirt

CAPABILITIES = """<domainCapabilities><path>/usr/bin/qemu</path><machine>virt-7.2</machine><cpu>
<mode name='host-model' supported='yes'><model>EPYC</model><feature policy='require' name='umip'/>
<feature policy='disable' name='vme'/></mode></cpu></domainCapabilities>"""


class _Machine:
    def __init__(self, text: str) -> None:
        self.text = text

    def XMLDesc(self) -> str:
        return self.text


class FakeQuestioned:
    """A hypervisor.connection.Connection, as far as a trial needs it. `how`: what comes of beginning a machine, by
    whether libvirt asks.
    """

    def __init__(self) -> None:
        self.begun: list[bool] = []
        self.how: Callable[[bool], None] = lambda _asked: None
        self.version = 9_000_000
        self.lanes = None

    def getType(self) -> str:
        return "QEMU"

    def getDomainCapabilities(self, *_about: Any) -> str:
        return CAPABILITIES

    def getLibVersion(self) -> int:
        return self.version

    def getVersion(self) -> int:
        return 7_002_022

    def lookupByName(self, _name: str) -> Any:
        class Nobody(libvirt.libvirtError):  # type: ignore[misc]
            def __init__(self) -> None:
                Exception.__init__(self, "no domain")

            def get_error_code(self) -> int:
                return int(libvirt.VIR_ERR_NO_DOMAIN)

        raise Nobody

    def createXML(self, text: str, _flags: int) -> _Machine:
        asked = "cpu-unavailable-features" not in text
        self.begun.append(asked)
        self.how(asked)
        return _Machine(text)

    def place(self, _domain: str) -> Any:
        return nullcontext()

    async def call(
        self, what: str, function: Callable[[Any], Any], *_rest: Any, **_more: Any
    ) -> Any:
        return function(self)
