"""Names derived from a sandbox id. All are pure functions, so that a restarted driver
finds the same names.
"""

from __future__ import annotations

import hashlib
import re
import uuid

from vmdriver.errors import InvalidRequest

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_INSTANCE = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
_NAMESPACE = uuid.UUID("8f7c0f0c-57a5-5f0e-9a3e-6d0b5b1f4b53")
IFNAMSIZ = 15
"""Longest interface name in bytes, without the terminating NUL (Linux <net/if.h>,
IFNAMSIZ - 1).
"""


def is_sandbox_id(value: str) -> bool:
    """Whether a sandbox can have that id."""
    return bool(_ID.fullmatch(value)) and value not in {".", ".."}


def check_sandbox_id(value: str, field: str = "sandbox.id") -> str:
    """Return the id, or raise InvalidRequest: it becomes a directory's name."""
    if not is_sandbox_id(value):
        raise InvalidRequest(
            field,
            "must be 1 to 128 characters of A-Z a-z 0-9 . _ - and not '.' or '..'",
        )
    return value


def check_instance(value: str) -> str:
    """Return the driver instance's name, or raise ValueError."""
    if not _INSTANCE.fullmatch(value):
        raise ValueError("must be 1 to 31 characters of a-z 0-9 - and not begin with -")
    return value


def _digest(instance: str, sandbox_id: str, salt: int) -> bytes:
    return hashlib.sha256(f"{instance}\0{sandbox_id}\0{salt}".encode()).digest()


def tap_name(instance: str, sandbox_id: str, salt: int = 0) -> str:
    """`vmd` and 12 hexadecimal digits: exactly IFNAMSIZ. Another `salt` gives another
    name.

    >>> tap_name("vmdriver", "s1"), tap_name("vmdriver", "s1", salt=1)
    ('vmdf5ba51f3a5a2', 'vmde9e50ad6f146')
    """
    return "vmd" + _digest(instance, sandbox_id, salt).hex()[:12]


def mac_address(instance: str, sandbox_id: str, salt: int = 0) -> str:
    """A locally administered unicast address.

    >>> mac_address("vmdriver", "s1")
    'a6:1c:3b:5d:81:b3'
    """
    raw = bytearray(_digest(instance, sandbox_id, salt)[6:12])
    raw[0] = (raw[0] & 0xFC) | 0x02
    return raw.hex(":")


def host_mac(guest_mac: str) -> str:
    """The tap's own address: the guest's with one bit of its first byte changed.

    >>> host_mac("a6:1c:3b:5d:81:b3")
    'e6:1c:3b:5d:81:b3'
    """
    first, rest = guest_mac.split(":", 1)
    return f"{int(first, 16) ^ 0x40:02x}:{rest}"


def domain_name(instance: str, sandbox_id: str) -> str:
    """The libvirt domain's name. Short: libvirt puts it into socket paths of at most
    107 bytes.

    >>> domain_name("vmdriver", "s1")
    'vmdriver-f5ba51f3a5a2a51c'
    """
    return f"{instance}-{_digest(instance, sandbox_id, 0).hex()[:16]}"


def domain_uuid(instance: str, sandbox_id: str) -> str:
    """A UUIDv5, so that defining the same sandbox's domain twice is the same
    definition.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{instance}/{sandbox_id}"))


def mark(instance: str, sandbox_id: str) -> str:
    """What every host object of a sandbox carries: link alias, table comment, domain
    metadata.
    """
    return f"vmdriver/{instance}/{sandbox_id}"


def is_anothers(text: str | None, mark: str, *, made: bool) -> bool:
    """Whether what bears that text in place of a mark is not the one's whose mark is this. `made`:
    it was made by us under its name; then only another sandbox's mark says otherwise.
    """
    if text is None or text == mark:
        return False
    return not made or text.startswith("vmdriver/")


def parse_mark(text: str, instance: str) -> str | None:
    """The sandbox id in a mark of this instance, else None.

    >>> parse_mark(mark("vmdriver", "s1"), "vmdriver")
    's1'
    >>> parse_mark(mark("another", "s1"), "vmdriver") is None
    True
    """
    prefix = f"vmdriver/{instance}/"
    return text.removeprefix(prefix) if text.startswith(prefix) else None
