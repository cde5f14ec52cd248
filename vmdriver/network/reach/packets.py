"""First packets of connections, as a guest sends them, and what is said to them (RFC 791, 8200,
9293, 768, 792, 4443). Pure.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from vmdriver.network.reach.explained import Destination

_IPV4, _TCP, _UDP, _ICMP = 0x0800, 6, 17, 1
_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_IPV6, _ICMPV6 = 0x86DD, 58
_UNREACHABLE, _UNREACHABLE_IPV6 = 3, 1
_ETHERNET, _LEAST_IP, _LEAST_IPV6, _ICMP_HEAD = 14, 20, 40, 8
_NUMBERS = {"tcp": _TCP, "udp": _UDP}


@dataclass(frozen=True)
class Seen:
    """A packet, as far as it matters."""

    destination: str
    ports: tuple[int, int]
    """From and to; of the packet that it is about, where it is ICMP's word on one."""
    refuses: bool = False
    """A reset, or ICMP's word that it is not to be had."""
    answers: bool = False
    """Somebody has taken the connection."""


def _sum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def first_frame(
    to: Destination, *, source: str, port: int, macs: tuple[str, str]
) -> bytes:
    """From that address and port. `macs`: of the receiver, and of the sender."""
    number, six = _NUMBERS[to.protocol], ":" in to.address
    family = socket.AF_INET6 if six else socket.AF_INET
    ends = socket.inet_pton(family, source) + socket.inet_pton(family, to.address)
    if number == _TCP:
        body = struct.pack(">HHIIBBHHH", port, to.port, 1, 0, 5 << 4, _SYN, 64240, 0, 0)
        place = 16
    else:
        body = struct.pack(">HHHH", port, to.port, 12, 0) + b"test"
        place = 6
    # The same sum as over IPv6's wider fields: there are zeros in between.
    checked = ends + struct.pack(">BBH", 0, number, len(body)) + body
    body = body[:place] + struct.pack(">H", _sum(checked)) + body[place + 2 :]
    head = (
        _head_ipv6(number, len(body), ends) if six else _head(number, len(body), ends)
    )
    ethernet = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs)
    return ethernet + struct.pack(">H", _IPV6 if six else _IPV4) + head + body


def _head(number: int, size: int, ends: bytes) -> bytes:
    length = _LEAST_IP + size
    head = struct.pack(">BBHHHBBH", 0x45, 0, length, 1, 0x4000, 64, number, 0) + ends
    return head[:10] + struct.pack(">H", _sum(head)) + head[12:]


def _head_ipv6(number: int, size: int, ends: bytes) -> bytes:
    return struct.pack(">IHBB", 6 << 28, size, number, 64) + ends


def seen(frame: bytes) -> Seen | None:
    """What it is; None for whatever has no ports and is about none."""
    if len(frame) < _ETHERNET:
        return None
    kind = struct.unpack_from(">H", frame, 12)[0]
    read = {_IPV4: _packet, _IPV6: _packet_ipv6}.get(kind)
    packet = None if read is None else read(frame[_ETHERNET:])
    if read is None or packet is None:
        return None
    protocol, destination, body = packet
    said = (protocol, body[0]) if len(body) > _ICMP_HEAD else None
    if said in {(_ICMP, _UNREACHABLE), (_ICMPV6, _UNREACHABLE_IPV6)}:
        about = read(body[_ICMP_HEAD:])
        ports = None if about is None else _ports(about[2])
        return None if ports is None else Seen(destination, ports, refuses=True)
    ports = _ports(body) if protocol in {_TCP, _UDP} else None
    if ports is None:
        return None
    flags = body[13] if protocol == _TCP and len(body) >= 20 else 0
    return Seen(
        destination,
        ports,
        refuses=bool(flags & _RST),
        answers=flags & (_SYN | _ACK) == _SYN | _ACK,
    )


def _packet(data: bytes) -> tuple[int, str, bytes] | None:
    """Protocol, destination and what is in it."""
    if len(data) < _LEAST_IP:
        return None
    size = (data[0] & 0x0F) * 4
    return data[9], socket.inet_ntoa(data[16:20]), data[size:]


def _packet_ipv6(data: bytes) -> tuple[int, str, bytes] | None:
    """The same; what has more headers than one is none of ours."""
    if len(data) < _LEAST_IPV6:
        return None
    to = socket.inet_ntop(socket.AF_INET6, data[24:_LEAST_IPV6])
    return data[6], to, data[_LEAST_IPV6:]


def _ports(body: bytes) -> tuple[int, int] | None:
    if len(body) < 4:
        return None
    source, destination = struct.unpack_from(">HH", body)
    return source, destination
