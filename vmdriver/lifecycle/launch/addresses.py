"""Which /30 of the pool belongs to whom. In memory; the ledgers are what is on disk."""

from __future__ import annotations

import hashlib
import ipaddress
from itertools import islice

from vmdriver.errors import Exhausted
from vmdriver.lifecycle.engine.owned import Owned
from vmdriver.lifecycle.launch.ways import Ways
from vmdriver.lifecycle.ports.host import Taken
from vmdriver.model.ids import mac_address, tap_name
from vmdriver.model.plan import Lease


class AddressPool:
    """Hands out leases. A block that was given back is not used again before the
    others: late packets find nobody.
    """

    def __init__(self, instance: str, pool: str, *, spread: bool = False) -> None:
        self._instance = instance
        self._network = ipaddress.IPv4Network(pool)
        self._size: int = 2 ** (30 - self._network.prefixlen)
        self.ways, self.owned = Ways(), Owned[Lease]()
        # Several drivers of one host begin in different places: a stopped sandbox has a block that
        # no other driver can see.
        begin = int.from_bytes(hashlib.sha256(instance.encode()).digest()[:4])
        self._next = begin % self._size if spread else 0

    def adopt(self, sandbox_id: str, lease: Lease) -> None:
        """Note a lease that a ledger holds."""
        self.owned.adopt(sandbox_id, lease)
        self._next = max(self._next, lease.index + 1)

    @property
    def size(self) -> int:
        """How many blocks there are."""
        return self._size

    def left(self) -> int:
        """How many blocks nobody has."""
        return self._size - sum(0 <= n < self._size for n in self._used())

    def holder(self, index: int) -> str | None:
        """Whose that block is."""
        held = (name for name, lease in self.owned.now.items() if lease.index == index)
        return next(held, None)

    def free(self, sandbox_id: str) -> None:
        """Give a lease back that no ledger holds."""
        self.owned.free(sandbox_id)

    def take(self, sandbox_id: str, taken: Taken, *, modest: bool = False) -> Lease:
        """A lease with a free block, but for the last if `modest`, and names that nobody has. The
        one it has, if it has one. Exhausted.

        >>> pool = AddressPool("vmdriver", "10.0.128.0/17")
        >>> lease = pool.take("s1", Taken(addresses=frozenset({"10.0.128.1"})))
        >>> lease.index, lease.host_ip, lease.guest_ip
        (1, '10.0.128.5', '10.0.128.6')
        """
        if (present := self.owned.now.get(sandbox_id)) is not None:
            return present
        index = self._free_block(taken.addresses, modest=modest)
        base = int(self._network.network_address) + 4 * index
        salt = self._free_salt(sandbox_id, taken.names)
        lease = Lease(
            index=index,
            host_ip=str(ipaddress.IPv4Address(base + 1)),
            guest_ip=str(ipaddress.IPv4Address(base + 2)),
            mac=mac_address(self._instance, sandbox_id, salt),
            tap=tap_name(self._instance, sandbox_id, salt),
        )
        self.adopt(sandbox_id, lease)
        return lease

    def _free_block(self, taken: frozenset[str], *, modest: bool) -> int:
        used = self._used() | {self._block(address) for address in taken}
        turns = ((self._next + step) % self._size for step in range(self._size))
        free = list(islice((i for i in turns if i not in used), 1 + modest))
        if len(free) > modest:
            return free[0]
        raise Exhausted(
            f"all {self._size} address blocks of {self._network} are in use",
            reason="AddressPoolExhausted",
            resolution="delete sandboxes or configure a larger address_pool",
        )

    def _used(self) -> set[int]:
        """Also by address: the pool may have begun elsewhere when a lease was made."""
        leases = self.owned.now.values()
        return {n for x in leases for n in (x.index, self._block(x.host_ip))}

    def _block(self, address: str) -> int:
        begin = int(self._network.network_address)
        return (int(ipaddress.IPv4Address(address)) - begin) // 4

    def _free_salt(self, sandbox_id: str, taken: frozenset[str]) -> int:
        names = taken | {lease.tap for lease in self.owned.now.values()}
        macs = {lease.mac for lease in self.owned.now.values()}
        salt = 0
        while (
            tap_name(self._instance, sandbox_id, salt) in names
            or mac_address(self._instance, sandbox_id, salt) in macs
        ):
            salt += 1
        return salt
