"""Machines for which libvirt asks nothing: when, how they are rendered, and what is known of their processor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.questioned import CAPABILITIES, FakeQuestioned
from tests.unit.test_plan_rendering import KVM, TCG, Golden, plan
from vmdriver.errors import DriverError, HypervisorError, TimedOut
from vmdriver.host import facts
from vmdriver.hypervisor.abilities import Abilities
from vmdriver.hypervisor.domain_xml import (
    UNASKED,
    cpu_mode,
    for_restore,
    render,
    render_probe,
)
from vmdriver.hypervisor.questions import processor, verdict
from vmdriver.hypervisor.questions.trial import QuestionsTrial
from vmdriver.hypervisor.questions.verdict import Said, Verdict, difference
from vmdriver.hypervisor.wall.sealing import ReadOnlyMapping
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.plan import Processor

# --- what is rendered


@pytest.mark.parametrize(("name", "host"), [("tcg", TCG), ("kvm", KVM)])
def test_the_domain_xml_without_questions(name, host, golden: Golden) -> None:
    golden(
        f"domain-{name}-unasked.xml", render(plan(), replace(host, unasked=True), "m")
    )


def test_the_cpu_is_the_hosts_own_only_where_nobody_asks() -> None:
    assert cpu_mode(KVM) == "host-model", "libvirt records what the guest has"
    assert cpu_mode(replace(KVM, unasked=True)) == "host-passthrough"
    assert cpu_mode(TCG) == cpu_mode(replace(TCG, unasked=True)) == "maximum"
    probe = ("p", ("/k", "/i"), "/s", "/c")
    text = render_probe(*probe, replace(KVM, unasked=True), Ownership(1, 1))
    assert 'mode="host-passthrough"' in text, "KVM is tried with what machines get"
    assert UNASKED in text


@pytest.mark.parametrize("had", [False, True])
@pytest.mark.parametrize("gets", [False, True])
def test_a_machine_comes_back_as_it_is_done_now(had: bool, gets: bool) -> None:
    saved = render(plan(), replace(TCG, unasked=had), "m")
    text = for_restore(saved, plan(), "m", "/memory", ReadOnlyMapping(), unasked=gets)
    assert text.count(UNASKED) == gets
    again = for_restore(text, plan(), "m", "/memory", ReadOnlyMapping(), unasked=gets)
    assert again == text


def test_what_libvirt_has_recorded_it_compares_itself() -> None:
    """A machine of an earlier driver on KVM: its CPU has a name and features, for which libvirt has to ask."""
    saved = render(plan(), KVM, "m")
    named = '<cpu mode="custom" match="exact" check="full"><model>EPYC</model></cpu>'
    saved = saved.replace('<cpu mode="host-model" />', named)
    text = for_restore(saved, plan(), "m", "/memory", ReadOnlyMapping(), unasked=True)
    assert UNASKED not in text
    own = render(plan(), replace(KVM, unasked=True), "m")
    assert UNASKED in for_restore(
        own, plan(), "m", "/memory", ReadOnlyMapping(), unasked=True
    )


# --- the processor


def test_the_hosts_processor_is_what_the_kernel_says(tmp_path: Path) -> None:
    source = tmp_path / "cpuinfo"
    first = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Intel(R)  Xeon\nstepping\t: 8\n"
    first += "microcode\t: 0x2b\ncpu MHz\t\t: 2000.1\nflags\t\t: sse avx\n"
    source.write_text(f"{first}\n{first.replace('0x2b', '0x2c')}\n")
    entry = facts.processor_entry(source)
    found = processor.passed_through(entry, {"kvm_intel": "Y\n"})
    assert found == Processor(
        model="GenuineIntel 6 143 8 Intel(R) Xeon",
        microcode="0x2b",
        flags=("avx", "kvm_intel.nested=Y", "sse"),
    )
    arm = (
        "processor : 0\nFeatures : fp asimd\nCPU implementer : 0x41\nCPU part : 0xd0c\n"
    )
    source.write_text(arm)
    found = processor.passed_through(facts.processor_entry(source), {})
    assert found == Processor(model="0x41 0xd0c", flags=("asimd", "fp"))
    assert facts.processor_entry(tmp_path / "nothing") == {}


def test_without_kvm_it_is_what_libvirt_says_of_qemus_own() -> None:
    found = processor.emulated(CAPABILITIES)
    assert found == Processor(model="QEMU's own, like EPYC", flags=("no vme", "umip"))
    assert processor.emulated("<domainCapabilities/>") == Processor(model="QEMU's own")


# --- the verdict


def said(cpu: str = "<cpu mode='maximum'/>", more: str = "", **words: int) -> Said:
    return Said(f"<domain id='1'><name>a</name>{cpu}{more}</domain>", words)


def test_machines_are_compared_by_what_they_say_and_not_by_what_is_always_new() -> None:
    asked = said(eax=1)
    qemu = "xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'"
    more = f"<genid>x</genid><seclabel/><q:capabilities {qemu}/>"
    assert difference(asked, said(more=more, eax=1)) == ""
    assert difference(asked, said(eax=2, ebx=0)) == "its CPU differs in eax, ebx"
    named = said("<cpu mode='custom'/>", eax=1)
    assert "custom" in difference(asked, named)
    assert difference(asked, said(more="<new/>", eax=1)) != ""


def test_what_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    assert verdict.load(path) == {}
    one = Verdict(spared=True, about="a")
    verdict.store(path, "qemu", one)
    verdict.store(path, "kvm", Verdict(spared=False, reason="r", about="b"))
    assert verdict.load(path)["qemu"] == one
    assert verdict.load(path)["kvm"].reason == "r"
    later = {**json.loads(path.read_text()), "schema_version": 99}
    for text in ("", "[]", "null", '{"verdicts": 1}', json.dumps(later)):
        path.write_text(text)
        assert verdict.load(path) == {}


# --- the trial


@pytest.fixture
def libvirt_(monkeypatch: pytest.MonkeyPatch) -> FakeQuestioned:
    monkeypatch.setattr(facts, "machine_architecture", lambda: "aarch64")
    return FakeQuestioned()


def trial(connection: FakeQuestioned, results: Path) -> QuestionsTrial:
    owner = Ownership(1, 1)
    abilities = Abilities(connection, owner)  # type: ignore[arg-type]
    return QuestionsTrial(
        connection=connection,  # type: ignore[arg-type]
        abilities=abilities,
        boxes=None,
        name="t-questions",
        owner=owner,
        results=results,
    )


async def test_it_is_tried_with_questions_and_without_and_the_verdict_is_kept(
    libvirt_: FakeQuestioned, tmp_path: Path
) -> None:
    results = tmp_path / "q"
    for _start in range(2):
        driver = trial(libvirt_, results)
        for _launch in range(3):
            assert await driver.spared("qemu")
    assert libvirt_.begun == [True, False]
    libvirt_.version += 1
    assert await trial(libvirt_, results).spared("qemu")
    assert libvirt_.begun == [True, False] * 2


async def test_a_refusal_twice_is_a_verdict_and_told(
    libvirt_: FakeQuestioned, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(asked: bool) -> None:
        if not asked:
            raise HypervisorError("guest CPU doesn't match specification")

    libvirt_.how = refuse
    results = tmp_path / "q"
    for _start in range(2):
        driver = trial(libvirt_, results)
        assert not await driver.spared("qemu")
    assert libvirt_.begun == [True, False, True, False]
    assert "doesn't match" in verdict.load(results)["qemu"].reason
    assert len(caplog.records) == 2, "once per start"
    assert all("doesn't match" in record.getMessage() for record in caplog.records)


async def test_a_qemu_that_was_killed_once_is_no_verdict_on_the_way(
    libvirt_: FakeQuestioned, tmp_path: Path
) -> None:
    def once(asked: bool) -> None:
        if not asked and libvirt_.begun.count(False) == 1:
            raise HypervisorError("qemu unexpectedly closed the monitor")

    libvirt_.how = once
    assert await trial(libvirt_, tmp_path / "q").spared("qemu")


@pytest.mark.parametrize("late", [True, False])
async def test_what_says_nothing_of_the_way_is_not_kept(
    libvirt_: FakeQuestioned,
    tmp_path: Path,
    late: bool,
) -> None:
    """The ordinary machine cannot be begun, or nobody answers in time: today's way, and another try later."""

    def fail(asked: bool) -> None:
        error: DriverError = HypervisorError("no memory")
        if late:
            error = TimedOut("no answer within 60 s")
        if asked is not late:
            raise error

    libvirt_.how = fail
    results = tmp_path / "q"
    driver = trial(libvirt_, results)
    assert not await driver.spared("qemu")
    assert verdict.load(results) == {}
    begun = len(libvirt_.begun)
    libvirt_.how = lambda _asked: None
    assert not await driver.spared("qemu"), "not at every launch"
    assert len(libvirt_.begun) == begun
    driver.again_s = 0.0
    assert await driver.spared("qemu")


async def test_a_verdict_that_cannot_be_written_down_counts_all_the_same(
    libvirt_: FakeQuestioned, tmp_path: Path
) -> None:
    assert await trial(libvirt_, tmp_path / "no" / "folder").spared("qemu")
