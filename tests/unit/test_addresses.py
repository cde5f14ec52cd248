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


def test_drivers_of_one_host_begin_in_different_places() -> None:
    def first(instance: str) -> int:
        addresses = AddressPool(instance, "10.0.128.0/17", spread=True)
        return addresses.take("s1", Taken()).index

    assert len({first(f"driver{n}") for n in range(20)}) > 15
    assert first("driver1") == first("driver1")
