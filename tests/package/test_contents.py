"""What packaging/build-deb has built: looked at with Debian's and PyPI's own tools. See scripts/test --package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.test_supply_chain import locked
from vmdriver import __version__

FOLDER = Path(os.environ.get("VMDRIVER_PACKAGE", "/nonexistent"))
pytestmark = pytest.mark.skipif(
    not FOLDER.exists(), reason="scripts/test --package builds what is looked at"
)


def output(*words: str | Path) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def package() -> Path:
    (found,) = FOLDER.glob(f"vmdriver_{__version__}_*.deb")
    return found


@pytest.fixture(scope="module")
def tree(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("package")
    output("dpkg-deb", "-x", package, root)
    return root


# It unpacks and reads all of it.
@pytest.mark.timeout(900)
def test_lintian_finds_nothing_that_is_not_explained(package: Path) -> None:
    words = ["lintian", "--allow-root", "--fail-on", "error,warning", package]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(900)
def test_every_override_of_lintians_is_needed(package: Path) -> None:
    words = ["lintian", "--allow-root", "--tags", "unused-override,mismatched-override"]
    assert output(*words, package) == ""


def test_twine_takes_wheel_and_source_archive() -> None:
    files = [*FOLDER.glob("vmdriver-*.whl"), *FOLDER.glob("vmdriver-*.tar.gz")]
    assert [__version__ in path.name for path in files] == [True, True]
    said = output(".work/twine/bin/python", "-m", "twine", "check", "--strict", *files)
    assert said.count("PASSED") == 2


def test_what_is_locked_is_what_is_in_it_for_both_pythons(tree: Path) -> None:
    wanted = {
        name.replace("-", "_"): version for name, (version, _) in locked("run").items()
    }
    del wanted["libvirt_python"]  # Debian's own, of the libvirt that is there
    wanted["vmdriver"] = __version__
    for python in ("python3.11", "python3.13"):
        site = tree / "usr/lib/vmdriver/lib" / python / "site-packages"
        names = [
            path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info")
        ]
        found = dict(name.rsplit("-", 1) for name in names)
        assert {n.lower().replace(".", "_"): v for n, v in found.items()} == wanted


def test_nothing_in_it_is_from_this_machine(tree: Path) -> None:
    here = str(Path.cwd()).encode()
    found = [p for p in tree.rglob("*") if p.is_file() and here in p.read_bytes()]
    assert found == []


def test_what_prometheus_and_grafana_are_given_is_in_it(tree: Path) -> None:
    folder = tree / "usr/share/doc/vmdriver/dashboards"
    assert {path.name for path in folder.iterdir()} >= {"alerts.yml", "vmdriver.json"}


def test_lists_of_files_name_what_is_there(tree: Path) -> None:
    for site in (tree / "usr/lib/vmdriver/lib").glob("*/site-packages"):
        for record in site.glob("*.dist-info/RECORD"):
            named = [line.split(",")[0] for line in record.read_text().splitlines()]
            assert [name for name in named if not (site / name).exists()] == [], record


def test_manual_pages_have_no_mistakes(tree: Path) -> None:
    for page in (tree / "usr/share/man").rglob("*.gz"):
        text = subprocess.run(
            ["gzip", "-dc", page], capture_output=True, check=True
        ).stdout
        done = subprocess.run(
            ["mandoc", "-T", "lint", "-W", "warning"],
            input=text,
            capture_output=True,
            text=False,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["sn"], "snapshot"),
        (["snapshot", "r"], "restore"),
        (["serve", "--mem"], "--mem-mib"),
        (["doctor", "--at"], "--attack"),
        (["ls", "--js"], "--json"),
    ],
)
def test_the_shell_completes(typed: list[str], offered: str, tree: Path) -> None:
    script = tree / "usr/share/bash-completion/completions/vmdriver"
    words = " ".join(["vmdriver", *typed])
    said = output(
        "bash",
        "-c",
        f"source {script}; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _vmdriver; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
    )
    assert offered in said.split()


def test_the_settings_file_is_one_that_the_driver_takes(
    tree: Path, tmp_path: Path
) -> None:
    text = (tree / "etc/vmdriver/config.toml").read_text()
    plain = [
        line[1:]
        for line in text.splitlines()
        if line[:1] == "#" and line[1:2] not in {" ", "["}
    ]
    for name, content in (
        ("as it is", text),
        (
            "without its marks",
            "\n".join(line for line in plain if not line.endswith("=")),
        ),
    ):
        file = tmp_path / "config.toml"
        file.write_text(content)
        done = subprocess.run(
            [sys.executable, "-m", "vmdriver", "config", "--json", "--config", file],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.environ["PATH"]},
        )
        assert done.returncode == 0, (name, done.stderr)
