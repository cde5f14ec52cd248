"""What is installed is what was looked at: by version and by digest, and nothing beside it."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LISTS = ROOT / "scripts" / "wheels"
NAMES = ("build", "run", "test", "bench", "package")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Package -> version and digests."""
    text = (LISTS / f"{name}.txt").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        package, version = re.match(r"([a-z0-9.-]+)==(\S+)", line).groups()
        found[package] = (version, re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_package_has_one_version_and_its_digests(name: str) -> None:
    packages = locked(name)
    assert packages
    assert [p for p, (_, digests) in packages.items() if not digests] == []


def test_a_package_has_the_same_version_and_digests_in_every_list() -> None:
    test = locked("test")
    for name in ("build", "run", "bench", "package"):
        for package, found in locked(name).items():
            assert test.get(package, found) == found, package


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("run", PROJECT["dependencies"]),
        (
            "test",
            PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"],
        ),
        ("bench", PROJECT["optional-dependencies"]["bench"]),
        ("package", PROJECT["optional-dependencies"]["package"]),
        ("build", ["setuptools>=77"]),
    ],
)
def test_what_the_project_asks_for_is_in_its_list(name: str, wanted: list[str]) -> None:
    packages = locked(name)
    for text in wanted:
        asked = Requirement(text)
        version, _ = packages[canonicalize_name(asked.name)]
        assert asked.specifier.contains(version), text


def test_what_these_tests_run_with_is_what_is_locked() -> None:
    for package, (version, _) in locked("test").items():
        assert importlib.metadata.version(package) == version, package


def test_the_set_up_installs_nothing_without_a_digest() -> None:
    text = (ROOT / "scripts" / "prepare-host").read_text()
    assert text.count("-m pip") == 1, "all goes through one function"
    assert "--no-build-isolation" in text
    calls = re.findall(r"^ +install (.+)$", text, re.MULTILINE)
    assert len(calls) == 4
    for call in calls:
        own = call == "--no-index --no-deps -e ."
        assert own or ("--require-hashes" in call and "--only-binary" in call), call
