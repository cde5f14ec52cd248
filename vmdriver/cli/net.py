"""vmdriver net: what a sandbox reaches, and why. Works without a running driver."""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from vmdriver.cli.files import find
from vmdriver.cli.terminal import print_json
from vmdriver.config import Loaded
from vmdriver.errors import InvalidRequest, NotFound
from vmdriver.host.confined import netns
from vmdriver.model.plan import NetworkPlan
from vmdriver.network.forwarding import IPV4, IPV6, forwards
from vmdriver.network.guard.surroundings import own_addresses
from vmdriver.network.reach.explained import (
    Destination,
    Protocol,
    Rule,
    deciding,
    rules,
)
from vmdriver.network.reach.replica import (
    HostsHalf,
    Outcome,
    hosts_half,
    live_rules,
    outcomes,
)
from vmdriver.network.rules.shared_rules import LOOPBACK, table_name
from vmdriver.storage.sandboxes.records import read_record

_MOST_ADDRESSES = 4
_PATIENCE_S = 4.0


@dataclass(frozen=True)
class Network:
    """Of one sandbox, as far as it is known here. `loaded`: what the kernel has in its namespace,
    None where there is no machine to have it for; `host`: whether the host has its half of them.
    """

    sandbox: str
    plan: NetworkPlan
    known: tuple[Rule, ...]
    loaded: str | None
    host: HostsHalf
    stuck: tuple[str, ...] = ()
    """Versions of IP that the machine has and the host does not forward."""

    @property
    def inside(self) -> bool:
        """Whether there are rules in its namespace at all."""
        return (
            self.loaded is not None and table_name(self.plan.lease.tap) in self.loaded
        )

    @property
    def whole(self) -> bool:
        """Whether both halves of its rules are there."""
        return self.inside and self.host == "whole"


@dataclass(frozen=True)
class Tried:
    """One address of a destination. `outcome`: the kernel's, None where it could not be asked.
    `host`: what came of a connection from the host itself to where the packet leads; "" it is
    there, None: none was tried.
    """

    to: Destination
    number: int
    rule: Rule
    outcome: Outcome | None
    host: str | None
    lost: bool = False
    """It leaves the machine's network, and the host does not send it on with another address."""

    @property
    def reached(self) -> bool:
        """As the rules that are loaded say, or those that would be, and the host's connection."""
        passes = self.rule.reached if self.outcome is None else self.outcome.reached
        return passes and not self.host and not self.lost


def net(loaded: Loaded, arguments: argparse.Namespace) -> int:
    """Explain all rules, or try a destination: 1 if that is not reached."""
    wanted = _destination(arguments.destination) if arguments.destination else None
    record = read_record(find(loaded, arguments.id).root)
    plan = record.plan
    if plan is None:
        raise NotFound(
            f"sandbox {record.id} has not been launched: it has no network yet",
            resolution="see what it waits for: vmdriver inspect",
        )
    known = asyncio.run(_known(record.id, plan.network))
    if wanted is None:
        _print_rules(known, as_json=arguments.json)
        return 0
    tried = asyncio.run(_tried(known, *wanted))
    _print_tried(known, arguments.destination, tried, as_json=arguments.json)
    return 0 if any(one.reached for one in tried) else 1


def _destination(text: str) -> tuple[str, Destination]:
    """The name, and its port with an address that is still to be found. InvalidRequest."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    number, _, protocol = port.partition("/")
    right = number.isascii() and number.isdecimal() and 0 < int(number) < 2**16
    if not host or not right or protocol not in {"", "tcp", "udp"}:
        raise InvalidRequest(
            "HOST:PORT",
            f"{text!r} is none, like example.org:443, 192.0.2.1:53/udp or [2001:db8::1]:443",
        )
    kind: Protocol = "udp" if protocol == "udp" else "tcp"
    return host, Destination("0.0.0.0", int(number), kind)  # noqa: S104 - not bound


async def _known(sandbox: str, plan: NetworkPlan) -> Network:
    six = plan.ipv6
    pools = (plan.pool,) if six is None else (plan.pool, six.pool)
    known = rules(plan, await own_addresses(pools, ipv6=six is not None))
    if plan.namespace is None or not netns.is_there(plan.namespace):
        return Network(sandbox, plan, known, None, "gone")
    loaded = await live_rules(plan.namespace)
    kinds = (IPV4,) if six is None else (IPV4, IPV6)
    stuck = tuple(kind.name for kind in kinds if not forwards(kind))
    return Network(sandbox, plan, known, loaded, await hosts_half(plan), stuck)


def _lost(known: Network, outcome: Outcome | None) -> bool:
    if outcome is None or outcome.leads_to is None:
        return False
    address, _ = outcome.leads_to
    kind = IPV6 if ":" in address else IPV4
    to_host = address == known.plan.lease.uplink_ip
    return known.host == "gone" or (kind.name in known.stuck and not to_host)


async def _tried(known: Network, name: str, port: Destination) -> list[Tried]:
    """NotFound: the host knows no address of that name."""
    addresses = await _addresses(name, known.plan)
    wanted = [Destination(a, port.port, port.protocol) for a in addresses]
    found: Sequence[Outcome | None] = [None] * len(wanted)
    if known.loaded is not None:
        found = await outcomes(known.plan, known.loaded, wanted)
    tried = []
    for to, outcome in zip(wanted, found, strict=True):
        place = deciding(known.known, to)
        # Half of what leads out is the host's: it is of no use to ask what is behind that.
        lost = _lost(known, outcome)
        host = None if lost else await _from_the_host(known.plan, to, outcome)
        rule = known.known[place]
        tried.append(Tried(to, place + 1, rule, outcome, host, lost))
    return tried


async def _addresses(name: str, plan: NetworkPlan) -> list[str]:
    loop = asyncio.get_running_loop()
    # An address that is given is tried, whatever becomes of it.
    six = plan.ipv6 is not None or ":" in name
    family = socket.AF_UNSPEC if six else socket.AF_INET
    try:
        found = await loop.getaddrinfo(
            name, None, family=family, type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as error:  # the latter: what can be no name
        why = error.strerror if isinstance(error, OSError) else "it is no name"
        kind = "address" if six else "IPv4 address"
        more = "" if six else "this guest has no IPv6; "
        raise NotFound(
            f"the host finds no {kind} for {name}: {why}",
            resolution=f"{more}which name servers guests ask: vmdriver net ID",
        ) from error
    every = dict.fromkeys(str(address[0]).split("%")[0] for *_, address in found)
    return list(every)[:_MOST_ADDRESSES]


async def _from_the_host(
    plan: NetworkPlan, to: Destination, outcome: Outcome | None
) -> str | None:
    if to.protocol != "tcp" or outcome is None or outcome.leads_to is None:
        return None
    address, port = outcome.leads_to
    if address == plan.lease.uplink_ip:
        address = LOOPBACK
    try:
        async with asyncio.timeout(_PATIENCE_S):
            _, writer = await asyncio.open_connection(address, port)
    except TimeoutError:
        return f"nothing came from {address}:{port} within {_PATIENCE_S:.0f} s"
    except OSError as error:
        return f"{address}:{port}: {error.strerror or error}"
    writer.transport.abort()
    return ""


# --- in words


def _print_rules(known: Network, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "sandbox": known.sandbox,
                "guest_ip": known.plan.lease.guest_ip,
                "guest_ipv6": known.plan.ipv6.guest_ip if known.plan.ipv6 else None,
                "no_ipv6": known.plan.no_ipv6,
                "namespace": known.plan.namespace,
                "loaded": known.whole,
                "hosts_half": known.host if known.loaded is not None else None,
                "name_servers": list(known.plan.dns),
                "search": list(known.plan.search),
                "rules": [asdict(rule) for rule in known.known],
            }
        )
        return
    print("\n".join(_page(known)))


def _page(known: Network) -> Iterator[str]:
    plan = known.plan
    six = f" and {plan.ipv6.guest_ip}" if plan.ipv6 is not None else ""
    yield f"{known.sandbox} is {plan.lease.guest_ip}{six}; {_state(known)}."
    names = ", ".join(plan.dns) or "nobody"
    search = f", and tries {', '.join(plan.search)}" if plan.search else ""
    yield f"It asks {names} for names{search}."
    yield "The first rule that a destination is in decides:"
    for number, rule in enumerate(known.known, 1):
        yield f"{number:3}  {_word(rule.reached)}  {_where(rule)}"
        yield f"              {rule.sentence}{_setting(rule)}"
    if plan.ipv6 is None:
        yield "Whatever is not plain IPv4 from its own address is dropped: it has no IPv6."
    else:
        yield "Whatever is not plain IPv4 or IPv6 from its own addresses is dropped."
    yield "From outside nothing reaches it but answers."
    if plan.max_connections is not None:
        yield f"It may have {plan.max_connections} connections at a time (max_connections)."


def _state(known: Network) -> str:
    if known.plan.namespace is None:
        return "its machine has no network namespace of its own: these are its rules"
    if known.loaded is None:
        return "it has no machine now: these are the rules of its last start"
    if not known.inside:
        return "ITS RULES ARE NOT LOADED: nothing passes until the driver has restored them"
    if known.host == "gone":
        return (
            "THE HOST'S HALF OF ITS RULES IS GONE: nothing that it is allowed works until the "
            "driver has restored that"
        )
    if known.host == "changed":
        return (
            "THE HOST'S HALF OF ITS RULES IS NOT AS THIS VERSION LOADS IT: what it is allowed may "
            "not work until the driver has restored that"
        )
    if known.stuck:
        kinds = " and ".join(known.stuck)
        return f"THE HOST DOES NOT FORWARD {kinds}: by that nothing is reached but the host"
    return "its rules are loaded"


def _word(reached: bool) -> str:
    return "reached" if reached else "refused"


def _where(rule: Rule) -> str:
    where = ", ".join(rule.networks)
    if rule.others:
        where = f"all but {where}" if where else "all"
    kinds = "/".join(rule.protocols) if len(rule.protocols) == 1 or rule.ports else ""
    ports = f" port {', '.join(map(str, rule.ports))}" if rule.ports else ""
    return f"{where} {kinds}{ports}".rstrip()


def _setting(rule: Rule) -> str:
    return f" ({rule.setting})" if rule.setting else ""


def _print_tried(
    known: Network, asked: str, tried: Sequence[Tried], *, as_json: bool
) -> None:
    if as_json:
        found = [
            asdict(one) | {"reached": one.reached, "as_explained": _agrees(one)}
            for one in tried
        ]
        document = {"sandbox": known.sandbox, "destination": asked, "tried": found}
        print_json(document)
        return
    for one in tried:
        print(f"{one.to}: {'not reached' if one.lost else _word(one.reached)}")
        text = f"{_word(one.rule.reached)}: {one.rule.sentence}{_setting(one.rule)}"
        print(f"  rule {one.number}, {text}")
        print(f"  {_kernels_word(known, one)}")
        if one.lost:
            print(f"  it is lost there: {_state(known)}")
        if one.host is not None:
            there = "it is there" if not one.host else one.host
            print(f"  a connection from the host itself: {there}")


def _agrees(one: Tried) -> bool | None:
    """Whether the kernel does as the rules are explained; None: it was not asked."""
    return None if one.outcome is None else one.outcome.reached == one.rule.reached


def _kernels_word(known: Network, one: Tried) -> str:
    if one.outcome is None:
        return f"not tried: {_state(known)}"
    what = {
        "leaves": "leaves the machine's network",
        "answered": "is answered within it",
        "refused": "is refused at once",
        "dropped": "is dropped without a word",
    }[one.outcome.verdict]
    leads = one.outcome.leads_to
    where = f", for {Destination(*leads).place}" if leads is not None else ""
    if leads is not None and leads[0] == known.plan.lease.uplink_ip:
        where += f", which is the host's {LOOPBACK}"
    odd = "" if _agrees(one) else "; THAT IS NOT WHAT ITS RULES SHOULD DO"
    return f"tried with the rules that are loaded: a packet of the guest's {what}{where}{odd}"
