"""First packets of connections, as a guest sends them, and what is said to them (RFC 791, 9293,
768, 792). Pure.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from vmdriver.network.reach.explained import Destination

_IPV4, _TCP, _UDP, _ICMP = 0x0800, 6, 17, 1
_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_UNREACHABLE = 3
_ETHERNET, _LEAST_IP, _ICMP_HEAD = 14, 20, 8
_NUMBERS = {"tcp": _TCP, "udp": _UDP}


@dataclass(frozen=True)
class Seen:
    """An IPv4 packet, as far as it matters."""

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
    number = _NUMBERS[to.protocol]
    ends = socket.inet_aton(source) + socket.inet_aton(to.address)
    if number == _TCP:
        body = struct.pack(">HHIIBBHHH", port, to.port, 1, 0, 5 << 4, _SYN, 64240, 0, 0)
        place = 16
    else:
        body = struct.pack(">HHHH", port, to.port, 12, 0) + b"test"
        place = 6
    checked = ends + struct.pack(">BBH", 0, number, len(body)) + body
    body = body[:place] + struct.pack(">H", _sum(checked)) + body[place + 2 :]
    length = _LEAST_IP + len(body)
    head = struct.pack(">BBHHHBBH", 0x45, 0, length, 1, 0x4000, 64, number, 0) + ends
    head = head[:10] + struct.pack(">H", _sum(head)) + head[12:]
    ethernet = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs)
    return ethernet + struct.pack(">H", _IPV4) + head + body


def seen(frame: bytes) -> Seen | None:
    """What it is; None for whatever has no ports and is about none."""
    if len(frame) < _ETHERNET or frame[12:14] != b"\x08\x00":
        return None
    packet = _packet(frame[_ETHERNET:])
    if packet is None:
        return None
    protocol, destination, body = packet
    if protocol == _ICMP and len(body) > _ICMP_HEAD and body[0] == _UNREACHABLE:
        about = _packet(body[_ICMP_HEAD:])
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


def _ports(body: bytes) -> tuple[int, int] | None:
    if len(body) < 4:
        return None
    source, destination = struct.unpack_from(">HH", body)
    return source, destination
