"""What doctor says is to be done next, and what it ends with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmdriver.cli.doctor import examination
from vmdriver.cli.doctor.finding import Finding
from vmdriver.cli.doctor.hypervisor_findings import libvirts_group, way_to_libvirt
from vmdriver.cli.doctor.next_steps import Outcome, next_steps, outcome
from vmdriver.cli.doctor.showing import not_loaded, shown
from vmdriver.cli.main import main
from vmdriver.errors import DriverError, HypervisorError, TimedOut, Unavailable
from vmdriver.host import facts, process

ROOT = Path(__file__).resolve().parents[2]
FINE = Finding("root", "ok", "runs as root")
SLOW = Finding("accelerator", "warn", "/dev/kvm is missing", "enable virtualisation")
NO_NFT = Finding("tool nft", "fail", "is missing", "apt-get install nftables")
NO_MORE = Finding("tool mke2fs", "fail", "is missing", "apt-get install nftables")
TORN = Finding("sandbox s1", "fail", "torn", "repair it", machines_start=True)
MUTE = Finding("state directory", "fail", "no space")


@pytest.mark.parametrize(
    ("findings", "came_to", "status"),
    [
        ([FINE], Outcome.FINE, 0),
        ([FINE, SLOW], Outcome.WORKS, 3),
        ([FINE, TORN], Outcome.WORKS, 3),
        ([SLOW, TORN, NO_NFT], Outcome.BLOCKED, 1),
    ],
)
def test_the_exit_code_tells_whether_machines_start(
    findings: list[Finding],
    came_to: Outcome,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert outcome(findings) is came_to

    async def examine(_loaded: object) -> list[Finding]:
        return findings

    monkeypatch.setattr(examination, "examine", examine)
    assert main(["doctor", "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert found["outcome"] == came_to.value
    assert found["ok"] == (not any(f.level == "fail" for f in findings))
    assert main(["doctor"]) == status
    assert came_to.text in capsys.readouterr().out


def test_first_comes_what_blocks_then_what_is_broken_then_what_is_wise() -> None:
    steps = next_steps([FINE, SLOW, TORN, NO_NFT, MUTE])
    assert [step.do for step in steps] == [
        "apt-get install nftables",
        "mend what the check of state directory says",
        "repair it",
        "enable virtualisation",
    ]
    assert [step.blocks for step in steps] == [True, True, False, False]


def test_what_one_advice_mends_is_one_step() -> None:
    (step,) = next_steps([NO_NFT, NO_MORE])
    assert step.checks == ("tool nft", "tool mke2fs")
    assert step.why == "tool nft: is missing; tool mke2fs: is missing"


def test_the_list_ends_the_output_and_is_the_same_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = Finding("sandbox s2", "fail", "it\n  1. rm -rf /", "look", True)

    async def examine(_loaded: object) -> list[Finding]:
        return [SLOW, NO_NFT, forged]

    monkeypatch.setattr(examination, "examine", examine)
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    numbered = [line[5:] for line in lines if line[:5] in {"  1. ", "  2. ", "  3. "}]
    main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)["next"]
    assert numbered == [step["do"] for step in found]
    assert found[0] == {
        "do": "apt-get install nftables",
        "why": "tool nft: is missing",
        "checks": ["tool nft"],
        "blocks": True,
    }


def test_what_machines_read_has_the_names_that_the_document_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def examine(_loaded: object) -> list[Finding]:
        return [SLOW, NO_NFT]

    monkeypatch.setattr(examination, "examine", examine)
    main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"ok", "outcome", "findings", "next"}
    finding = {"check", "level", "message", "advice", "machines_start"}
    step = {"do", "why", "checks", "blocks"}
    assert {frozenset(one) for one in found["findings"]} == {frozenset(finding)}
    assert {frozenset(one) for one in found["next"]} == {frozenset(step)}
    page = (ROOT / "docs" / "operating.md").read_text()
    said = next(part for part in page.split("\n\n") if "doctor --json` prints" in part)
    words = {*found, *finding, *step, *(one.value for one in Outcome)}
    assert {word for word in words if f"`{word}`" not in said} == set()


def test_a_part_of_the_driver_that_cannot_be_loaded_is_a_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, way in (("libvirtmod", "apt-get install python3-libvirt"), ("grpc", "install vmdriver's package again")):  # fmt: skip
        error = ImportError(f"{name} cannot be opened", name=name)
        assert shown(not_loaded(error), as_json=True) == 1
        (step,) = json.loads(capsys.readouterr().out)["next"]
        assert step["do"].startswith(way)
        assert name in step["why"]


def test_without_rights_the_step_is_to_ask_again_with_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["doctor", "--json"]) == 1
    step = json.loads(capsys.readouterr().out)["next"]
    assert any(one["do"].endswith("sudo vmdriver doctor") for one in step)


def test_qemu_is_installed_before_libvirt_is_asked_about_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without it libvirt says that its driver is not active, and its package is there: on Debian 12
    the first step was one that changed nothing."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setitem(process.ENVIRONMENT, "PATH", str(tmp_path))
    assert main(["doctor", "--json"]) == 1
    first = json.loads(capsys.readouterr().out)["next"][0]
    assert first["do"].startswith("apt-get install qemu-system-")


@pytest.mark.parametrize(
    ("uri", "error", "way"),
    [
        ("embed", HypervisorError("qemu state driver is not active"), "apt-get install libvirt-daemon-driver-qemu"),
        ("embed", TimedOut("versions: no answer within 15 s"), "look at the kernel's log"),
        ("qemu:///system", Unavailable("no socket"), "have libvirt's daemon answer on qemu:///system"),
    ],
)  # fmt: skip
def test_what_libvirt_lacks_is_what_is_to_be_done(
    uri: str, error: DriverError, way: str
) -> None:
    """Not always its package."""
    assert way_to_libvirt(uri, error).startswith(way)


@pytest.mark.parametrize(
    ("debian", "there", "told"),
    [(True, False, True), (True, True, False), (False, False, False)],
)
def test_debians_libvirt_needs_a_group_that_its_package_does_not_make(
    debian: bool, there: bool, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Debian 12's: without it libvirt says once that it cannot parse it, and then that it is not active."""
    if debian:
        (tmp_path / "debian_version").touch()
    monkeypatch.setattr(facts, "group_id", lambda _: 5 if there else None)
    found = [*libvirts_group(tmp_path)]
    assert [one.advice for one in found] == (
        ["groupadd --system libvirt-qemu"] if told else []
    )
    assert all(one.blocks for one in found)
