"""What a request may say of volumes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.driver import spec
from vmdriver.errors import InvalidRequest
from vmdriver.lifecycle.control.checks import driver_config_schema
from vmdriver.model.volume import MOST_OF_ONE, PATH, Wish, volume_id, wishes_of


def wished(*volumes: Any) -> tuple[Wish, ...]:
    return wishes_of(spec(driver_config={"volumes": list(volumes)}))


def test_volumes_come_in_the_order_of_their_places() -> None:
    found = wished(
        {"name": "b", "mount": "/srv/b"},
        {"name": "a", "mount": "/data", "size_mib": 64, "read_only": True},
    )
    assert [w.name for w in found] == ["a", "b"]
    assert found[0] == Wish(name="a", mount="/data", size_mib=64, read_only=True)
    assert found[1].size_mib is None
    assert wishes_of(spec()) == ()


@pytest.mark.parametrize(
    ("volume", "field", "why"),
    [
        ("data", "[0]", "must be an object"),
        ({"mount": "/data"}, "[0].name", "not a volume's name"),
        ({"name": "../x", "mount": "/data"}, "[0].name", "not a volume's name"),
        ({"name": "a" * 64, "mount": "/data"}, "[0].name", "not a volume's name"),
        ({"name": "a\nb", "mount": "/data"}, "[0].name", "not a volume's name"),
        ({"name": "A", "mount": "/data"}, "[0].name", "not a volume's name"),
        ({"name": "a"}, "[0].mount", "absolute path"),
        ({"name": "a", "mount": "data"}, "[0].mount", "absolute path"),
        ({"name": "a", "mount": "/"}, "[0].mount", "absolute path"),
        ({"name": "a", "mount": "/data/"}, "[0].mount", "absolute path"),
        ({"name": "a", "mount": "/da ta"}, "[0].mount", "absolute path"),
        ({"name": "a", "mount": "/data\n"}, "[0].mount", "absolute path"),
        ({"name": "a", "mount": "/data/../etc"}, "[0].mount", "must not hold"),
        ({"name": "a", "mount": "/./etc"}, "[0].mount", "must not hold"),
        ({"name": "a", "mount": "/data", "size_mib": 15}, "[0].size_mib", "within"),
        ({"name": "a", "mount": "/data", "size_mib": True}, "[0].size_mib", "whole"),
        ({"name": "a", "mount": "/data", "size_mib": "9"}, "[0].size_mib", "whole"),
        ({"name": "a", "mount": "/data", "read_only": 1}, "[0].read_only", "true or"),
        ({"name": "a", "mount": "/data", "host": "/"}, "[0].host", "not a key"),
    ],
)
def test_what_is_wrong_is_refused_with_its_path(
    volume: Any, field: str, why: str
) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        wished(volume)
    assert caught.value.field == f"{PATH}{field}"


@pytest.mark.parametrize(
    "place",
    [
        *("/proc", "/proc/1", "/sys", "/dev/shm", "/run", "/tmp", "/etc", "/etc/x"),
        *("/usr", "/usr/local/bin", "/bin", "/sbin", "/lib", "/lib64/x", "/boot"),
        *("/opt", "/opt/openshell", "/opt/openshell/bin", "/root/x", "/var"),
        "/var/run/x",
    ],
)
def test_no_volume_is_mounted_over_what_is_the_systems_own(place: str) -> None:
    with pytest.raises(InvalidRequest, match="the system's own"):
        wished({"name": "a", "mount": place})


@pytest.mark.parametrize("place", ["/sandbox", "/opt/data", "/var/lib/x", "/optional"])
def test_other_places_can_be_had(place: str) -> None:
    assert wished({"name": "a", "mount": place})[0].mount == place


@pytest.mark.parametrize(
    ("first", "second"),
    [("/data", "/data"), ("/data", "/data/x"), ("/data/x/y", "/data/x")],
)
def test_no_volume_lies_within_another(first: str, second: str) -> None:
    with pytest.raises(InvalidRequest, match="is within what is mounted at"):
        wished({"name": "a", "mount": first}, {"name": "b", "mount": second})
    assert wished({"name": "a", "mount": "/data"}, {"name": "b", "mount": "/data-b"}), (
        "only a beginning of the name"
    )


def test_one_volume_is_not_had_twice_nor_too_many() -> None:
    with pytest.raises(InvalidRequest, match="twice"):
        wished({"name": "a", "mount": "/a"}, {"name": "a", "mount": "/b"})
    many = [{"name": f"v{n}", "mount": f"/v{n}"} for n in range(MOST_OF_ONE + 1)]
    assert len(wished(*many[:-1])) == MOST_OF_ONE
    with pytest.raises(InvalidRequest, match="more than"):
        wished(*many)
    with pytest.raises(InvalidRequest, match="must be a list"):
        wishes_of(spec(driver_config={"volumes": {"name": "a"}}))


def test_workspaces_have_volumes_of_their_own() -> None:
    names = [("", "a"), ("w", "a"), ("w", "b"), ("../w", "a"), ("w\0a", "")]
    assert len({volume_id(*name) for name in names}) == len(names)
    assert all(volume_id(*name).isalnum() for name in names)


def test_the_schema_names_what_a_volume_may_have() -> None:
    schema = driver_config_schema({})["properties"]["volumes"]
    assert set(schema["items"]["properties"]) == set(Wish.model_fields)
