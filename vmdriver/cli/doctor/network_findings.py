"""What `vmdriver doctor` says of networks: addresses, names, and others' firewalls."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator

from vmdriver.app import Driver
from vmdriver.cli.doctor.finding import Finding, failed
from vmdriver.errors import DriverError
from vmdriver.host import resolv_conf
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.ipv6 import WayToIpv6
from vmdriver.network.names.asking import Asking
from vmdriver.network.names.query import question_of

_ROOT_SERVERS = struct.pack(">6H", 0, 0x0100, 1, 0, 0, 0) + b"\0\0\2\0\1"
"""A question that every resolver has an answer to."""


async def network_findings(driver: Driver) -> AsyncIterator[Finding]:
    """A line for each."""
    try:
        await driver.network.check_pool()
        yield Finding("address pool", "ok", driver.config.network.address_pool)
    except DriverError as error:
        yield failed("address pool", error)
    yield await names_finding(driver.settings, resolv_conf.read().servers)
    if driver.settings.egress_ipv6:
        try:
            yield ipv6_finding(driver.settings, await driver.network.way_to_ipv6())
        except DriverError as error:
            yield failed("IPv6", error)
    for name in await driver.network.foreign_drops():
        yield Finding(
            "firewall",
            "warn",
            f"{name} drops forwarded packets by default",
            "sandboxes reach the gateway but nothing else, unless that table "
            "accepts their addresses",
        )


def ipv6_finding(settings: Settings, way: WayToIpv6) -> Finding:
    """Whether guests have the IPv6 that the operator wants."""
    if way.lack:
        text = f"guests get none: {way.lack}"
        return Finding("IPv6", "warn", text, "or set egress_ipv6 = false")
    pool = settings.address_pool_ipv6
    return Finding("IPv6", "ok", f"guests have addresses of {pool}, masqueraded")


async def names_finding(settings: Settings, servers: tuple[str, ...]) -> Finding:
    """Whom guests ask for names. `servers`: the host's."""
    check = "names"
    if settings.egress == "none" and not settings.dns_without_egress:
        return Finding(check, "ok", "none for guests: egress is none")
    if settings.host_alias not in settings.dns:
        named = ", ".join(settings.dns) or "nobody"
        return Finding(check, "ok", f"guests ask {named} themselves")
    question, named = question_of(_ROOT_SERVERS), ", ".join(servers)
    answer = question and await Asking(lambda: servers).datagram(question)
    if not answer:
        text = f"none of the host's name servers answers ({named}): guests get no names"
        return Finding(check, "warn", text, "see /etc/resolv.conf, or set dns")
    text = f"guests ask the host's own name servers ({named}) through the driver"
    return Finding(check, "ok", text)
