"""What packages are made of agrees with what the code says; nothing is built here."""

from __future__ import annotations

import fnmatch
import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import vmdriver
from vmdriver.config import SETTINGS
from vmdriver.host.packages import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    found = importlib.util.spec_from_file_location("pages", PACKAGING / "pages.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def debian(kind: str) -> set[str]:
    lines = (PACKAGING / "debian-packages").read_text().splitlines()
    return {
        word
        for line in lines
        if line.startswith(f"{kind} ")
        for word in line.split()[1:]
    }


def test_the_version_is_written_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "vmdriver.__version__"
    }
    files = [
        *(path for path in PACKAGING.rglob("*") if path.suffix != ".pyc"),
        *(ROOT / "vmdriver").rglob("*.py"),
        ROOT / "pyproject.toml",
    ]
    places = [
        path
        for path in files
        if path.is_file() and f'"{vmdriver.__version__}"' in path.read_text()
    ]
    assert places == [ROOT / "vmdriver" / "__init__.py"]


def test_each_program_that_the_driver_runs_is_in_a_package_that_is_installed() -> None:
    always = {"util-linux", "perl-base"}  # essential: on every Debian
    emulators = {"qemu-system-x86", "qemu-system-arm"}
    wanted = {name for names in PACKAGES.values() for name in names.split()}
    assert wanted - always - emulators <= debian("run")
    assert "@qemu@" in debian("run")


def test_manual_and_completion_name_every_command_and_setting(
    pages: ModuleType,
) -> None:
    manual, settings = pages.command_page(), pages.settings_page()
    names = [name for name, _ in pages.every_command(pages.parser())]
    assert len(names) > 20
    for name in names:
        assert f"\\fBvmdriver {name.replace('-', chr(92) + '-')}\\fR" in manual, name
        assert f'"{name}")' in pages.completion(), name
    for name in SETTINGS:
        assert f"\\fB{name}\\fR" in settings, name


def test_the_settings_file_changes_nothing_and_shows_every_setting(
    pages: ModuleType,
) -> None:
    text = pages.settings_file()
    assert tomllib.loads(text) == {}
    for name in SETTINGS:
        if name not in {"extension", "request_parameters"}:
            assert re.search(rf"^#{name} =", text, re.MULTILINE), name


def test_the_completion_is_a_script(pages: ModuleType) -> None:
    subprocess.run(["bash", "-n"], input=pages.completion(), text=True, check=True)


def test_the_audit_log_of_the_manual_is_rotated() -> None:
    rule = (PACKAGING / "logrotate.conf").read_text()
    (pattern,) = re.findall(r"^(/\S+) \{$", rule, re.MULTILINE)
    for place in "docs/extensions.md", "vmdriver/extensions/audit_log.py":
        found = re.search(r'^path = "(/var/log/\S+)"', (ROOT / place).read_text(), re.M)
        assert found is not None, place
        assert fnmatch.fnmatch(found[1], pattern), place
