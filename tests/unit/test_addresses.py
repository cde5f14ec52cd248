"""The address pool."""

from __future__ import annotations

import pytest

from vmdriver.errors import Exhausted
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.ports.host import Taken
from vmdriver.model.ids import tap_name


def test_each_sandbox_gets_a_block_of_its_own_and_keeps_it() -> None:
    addresses = AddressPool("i", "10.0.128.0/28")
    leases = [addresses.take(f"s{n}", Taken()) for n in range(4)]
    assert [lease.index for lease in leases] == [0, 1, 2, 3]
    assert leases[1].host_ip == "10.0.128.5"
    assert addresses.take("s2", Taken()) == leases[2]
    with pytest.raises(Exhausted, match=r"10\.0\.128\.0/28"):
        addresses.take("s4", Taken())
    addresses.free("s1")
    assert addresses.take("s4", Taken()).index == 1


def test_a_freed_block_is_the_last_to_be_used_again() -> None:
    addresses = AddressPool("i", "10.0.128.0/28")
    addresses.take("a", Taken())
    addresses.free("a")
    assert addresses.take("b", Taken()).index == 1


def test_blocks_and_names_of_others_on_this_host_are_left_alone() -> None:
    addresses = AddressPool("i", "10.0.128.0/28")
    lease = addresses.take(
        "a",
        Taken(
            frozenset({tap_name("i", "a")}),
            frozenset({"10.0.128.1", "10.0.128.6", "192.0.2.1"}),
        ),
    )
    assert lease.index == 2
    assert lease.tap != tap_name("i", "a")


def test_leases_from_ledgers_count() -> None:
    addresses, other = (
        AddressPool("i", "10.0.128.0/28"),
        AddressPool("i", "10.0.128.0/28"),
    )
    addresses.adopt("x", other.take("x", Taken()))
    assert addresses.take("y", Taken()).index == 1


def test_a_pool_that_has_become_larger_knows_who_has_its_addresses() -> None:
    """It begins before the former one: what was that one's first block is its fifth."""
    former, addresses = (
        AddressPool("i", "10.0.128.16/28"),
        AddressPool("i", "10.0.128.0/27"),
    )
    for name in ("a", "b", "c", "d"):
        addresses.adopt(name, former.take(name, Taken()))
    held = {lease.host_ip for lease in addresses.owned.now.values()}
    with pytest.raises(Exhausted):  # their numbers are theirs, too
        assert addresses.take("e", Taken()).host_ip not in held
    assert addresses.left() == 0
    addresses.free("b")
    assert addresses.take("e", Taken()).host_ip == "10.0.128.21"
    assert addresses.left() == 1


def test_a_pool_that_has_become_smaller_has_none_left_and_not_less() -> None:
    former, addresses = (
        AddressPool("i", "10.0.128.0/24"),
        AddressPool("i", "10.0.128.0/28"),
    )
    for n in range(9):
        addresses.adopt(f"s{n}", former.take(f"s{n}", Taken()))
    assert addresses.left() == 0


def test_drivers_of_one_host_begin_in_different_places() -> None:
    def first(instance: str) -> int:
        addresses = AddressPool(instance, "10.0.128.0/17", spread=True)
        return addresses.take("s1", Taken()).index

    assert len({first(f"driver{n}") for n in range(20)}) > 15
    assert first("driver1") == first("driver1")
