"""The settings about the sandboxes' network."""

from __future__ import annotations

import ipaddress
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from vmdriver.lifecycle.launch.environment import INNER_SANDBOX_NETWORK
from vmdriver.model.egress import networks_of, of_version, within
from vmdriver.model.ipv6 import LONGEST_PREFIX
from vmdriver.model.spec import Frozen
from vmdriver.network.rules.destinations import ALWAYS_DENIED, ALWAYS_DENIED_IPV6

_HOST_ACCESS_WORDS = ("gateway", "all")
_MAX_PORT = 65535


class NetworkSettings(Frozen):
    """Where sandboxes may connect to, and which addresses are used for it."""

    egress: Literal["open", "private-denied", "none"] = Field(
        "private-denied",
        description="where sandboxes may connect to besides the gateway: open: everywhere; "
        "private-denied: everywhere but private networks and those of this host; none: nowhere "
        "(docs/networking.md)",
    )
    egress_allow: list[str] = Field(
        [],
        description="networks that are reached beside what egress allows; of IPv6 too with "
        "egress_ipv6",
    )
    egress_deny: list[str] = Field(
        [],
        description="networks that are not reached, whatever egress and egress_allow say; of "
        "IPv6 too with egress_ipv6",
    )
    egress_ipv6: bool = Field(
        False,
        description="sandboxes reach IPv6 networks too, by masquerade, where this host has a way "
        "to them; by the rules of egress; from a machine's next launch on",
    )
    host_access: Literal["gateway", "all"] | list[int] = Field(
        "gateway",
        description="TCP ports of the host's loopback that sandboxes reach at "
        "host.openshell.internal: the gateway's alone, all, or the gateway's and these "
        "(`[11434]`); from a machine's next launch on",
    )
    host_alias: str = Field(
        "192.168.127.254",
        description="the address of host.openshell.internal, the same in every sandbox; "
        "from a machine's next launch on",
    )
    address_pool: str = Field(
        "10.0.128.0/17",
        description="IPv4 network that sandboxes get /30 blocks of; best another one for each "
        "driver of a host",
    )
    address_pool_ipv6: str = Field(
        "",
        description="IPv6 network that sandboxes get their addresses of with egress_ipv6; empty: "
        "a private one (fd…/64) that is made of instance",
    )
    dns: Literal["auto", "host"] | list[str] = Field(
        "auto",
        description="name servers of the guests; host: the host's own resolver, at host_alias, "
        "by the driver; auto: the host's first, or host where that is the host itself; from a "
        "machine's next launch on",
    )
    dns_without_egress: bool = Field(
        False,
        description="sandboxes reach the name servers also with egress none: who may ask for "
        "names can send anything out in them",
    )

    @field_validator("host_access", mode="before")
    @classmethod
    def _host_access(cls, value: Any) -> Any:
        """One clear text, instead of one for each way in which a union can be wrong."""
        if value in _HOST_ACCESS_WORDS:
            return value
        if not isinstance(value, list) or not value:
            raise ValueError('is "gateway", "all" or a list of TCP ports')
        ports = [_port(item) for item in value]
        twice = sorted({port for port in ports if ports.count(port) > 1})
        if twice:
            raise ValueError(f"names port {twice[0]} twice")
        return ports

    @field_validator("egress_allow", "egress_deny")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        return list(networks_of(value, ipv6=True))

    @field_validator("host_alias")
    @classmethod
    def _host_alias(cls, value: str) -> str:
        address = ipaddress.IPv4Address(value)
        unfit = (
            address.is_loopback
            or address.is_multicast
            or address.is_unspecified
            or address.is_reserved
        )
        if unfit:
            raise ValueError(f"{value} is no address that a guest could connect to")
        return str(address)

    @field_validator("address_pool")
    @classmethod
    def _pool(cls, value: str) -> str:
        network = ipaddress.IPv4Network(value)
        if network.prefixlen > 30:
            raise ValueError("must hold at least one /30 block")
        return str(network)

    @field_validator("address_pool_ipv6")
    @classmethod
    def _pool_ipv6(cls, value: str) -> str:
        if not value:
            return value
        network = ipaddress.IPv6Network(value)
        if "%" in value:
            raise ValueError("must be a network, not one of a single link")
        if network.prefixlen > LONGEST_PREFIX:
            raise ValueError(f"must be a /{LONGEST_PREFIX} or larger")
        if within(str(network), ALWAYS_DENIED_IPV6):
            raise ValueError(f"{network} is no network that hosts have addresses of")
        return str(network)

    @field_validator("dns")
    @classmethod
    def _dns(cls, value: str | list[str]) -> str | list[str]:
        return (
            value
            if isinstance(value, str)
            else [str(ipaddress.IPv4Address(server)) for server in value]
        )

    @model_validator(mode="after")
    def _allowed_can_be_reached(self) -> Self:
        pools = [pool for pool in (self.address_pool, self.address_pool_ipv6) if pool]
        for network in self.egress_allow:
            if within(network, (*ALWAYS_DENIED, *ALWAYS_DENIED_IPV6, *pools)):
                raise ValueError(
                    f"egress_allow: {network} is never reached: link-local addresses, metadata "
                    "services, loopback, multicast, reserved networks and other sandboxes"
                )
        return self

    @model_validator(mode="after")
    def _ipv6_only_where_there_is_some(self) -> Self:
        for name in ("egress_allow", "egress_deny"):
            six = of_version(getattr(self, name), 6)
            if six and not self.egress_ipv6:
                raise ValueError(
                    f"{name}: {six[0]} is an IPv6 network, and sandboxes have no IPv6: set "
                    "egress_ipv6, or leave it out"
                )
        return self

    @model_validator(mode="after")
    def _alias_is_nobody_elses(self) -> Self:
        alias = ipaddress.IPv4Address(self.host_alias)
        if alias in ipaddress.IPv4Network(self.address_pool):
            raise ValueError(
                f"host_alias {alias} is in address_pool {self.address_pool}: it would be "
                "a sandbox's own"
            )
        if alias in INNER_SANDBOX_NETWORK:
            raise ValueError(
                f"host_alias {alias} is in {INNER_SANDBOX_NETWORK}, which the supervisor "
                "uses inside the guest"
            )
        if str(alias) in self.dns:
            raise ValueError(f"host_alias {alias} is a name server's address (dns)")
        return self


def _port(item: Any) -> int:
    """A list's item: an integer, or its text from a flag or the environment."""
    text = item.strip() if isinstance(item, str) else str(item)
    number = int(text) if text.isascii() and text.isdecimal() else 0
    if isinstance(item, bool) or not 1 <= number <= _MAX_PORT:
        raise ValueError(f"{item!r} is no TCP port: 1 to {_MAX_PORT}")
    return number
