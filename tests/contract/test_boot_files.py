"""The guest's kernel and initramfs are compared with what was built before they are used."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.fakes.serve import WORK
from vmdriver.errors import Refused
from vmdriver.storage.programs import boot


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A build in the directory `boot`."""
    build = tmp_path / "boot" / "build"
    build.mkdir(parents=True)
    manifest = {"digest": "build", "architecture": "x86_64", "kernel_release": "6.1"}
    for name in ("kernel", "initramfs"):
        (build / name).write_text(name)
        manifest[f"{name}_sha256"] = hashlib.sha256(name.encode()).hexdigest()
    (build / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "boot" / "current").symlink_to("build")
    return build


def test_what_is_as_it_was_built_is_used(build: Path) -> None:
    assert boot.load(build.parent).kernel == build / "kernel"


@pytest.mark.parametrize("name", ["kernel", "initramfs"])
@pytest.mark.parametrize("known", [True, False])
def test_what_was_changed_since_is_refused_with_the_way_out(
    build: Path, name: str, known: bool
) -> None:
    if known:
        boot.load(build.parent)
    before = (build / name).stat()
    (build / name).write_text(name[::-1])
    os.utime(build / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Refused, match=f"{name} is not what") as caught:
        boot.load(build.parent)
    assert caught.value.reason == "BootFilesDamaged"
    assert "build-boot-files" in caught.value.resolution
    (build / name).write_text(name)
    boot.load(build.parent)


def test_an_older_build_that_says_nothing_of_digests_is_used(build: Path) -> None:
    manifest = json.loads((build / "manifest.json").read_text())
    for name in ("kernel", "initramfs"):
        del manifest[f"{name}_sha256"]
    (build / "manifest.json").write_text(json.dumps(manifest))
    assert boot.load(build.parent).kernel_release == "6.1"


def test_the_manifest_of_a_real_build_names_packages_with_version_and_digest() -> None:
    current = WORK / "boot" / "current"
    found = json.loads((current / "manifest.json").read_text())
    named = {package["name"]: package for package in found["packages"]}
    assert any(name.startswith("linux-image-") for name in named)
    assert "busybox-static" in named
    for package in named.values():
        assert package["version"]
        assert len(package["sha256"]) == 64
    assert {package["name"] for package in found["linked"]} >= {"libc6-dev"}
    boot.load(WORK / "boot")
