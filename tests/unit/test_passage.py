"""Our paths as QEMU names them."""

from __future__ import annotations

from xml.etree import ElementTree as Xml

import pytest

from tests.unit.test_plan_rendering import plan
from vmdriver.hypervisor.abilities import Host
from vmdriver.hypervisor.domain_reading import read_root_layer
from vmdriver.hypervisor.domain_xml import for_restore, render
from vmdriver.hypervisor.wall.sealing import ReadOnlyMapping
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.passage import DIRECT, Passage

STATE = ("/state", "/run/vmd-qemu/state")
BOOT = ("/checkout/boot", "/run/vmd-qemu/boot")
HOST = Host("qemu", "x86_64", "pc-q35-7.2", "/usr/bin/qemu", Ownership(64055, 106))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("/state", "/run/vmd-qemu/state"),
        ("/state/layers/a b.qcow2", "/run/vmd-qemu/state/layers/a b.qcow2"),
        ("/state2/layers", "/state2/layers"),
        ("/checkout/boot/d/kernel", "/run/vmd-qemu/boot/d/kernel"),
        ("/usr/share/kernel", "/usr/share/kernel"),
        ("", ""),
    ],
)
def test_a_path_has_two_names_and_each_is_found_from_the_other(
    ours: str, theirs: str
) -> None:
    passage = Passage((STATE, BOOT), (STATE, BOOT))
    assert passage.theirs(ours) == theirs
    assert passage.ours(theirs) == ours
    assert DIRECT.theirs(ours) == DIRECT.ours(ours) == ours
    later = Passage((), (STATE, BOOT))
    assert later.theirs(ours) == ours
    assert later.ours(theirs) == ours, "an earlier driver's names are known"


def paths(text: str) -> set[str]:
    """Every path of files of ours in a domain."""
    root = Xml.fromstring(text)
    found = {e.text or "" for tag in ("kernel", "initrd") for e in root.iter(tag)}
    for element in root.iter("source"):
        found |= {element.get("file", ""), element.get("path", "")}
    return found - {""}


WAYS = (
    ("/state", "/p/state"),
    ("/kernel", "/p/kernel"),
    ("/initramfs", "/p/initramfs"),
)
THERE = Passage(WAYS, WAYS)


def test_a_machine_is_told_the_names_that_it_can_reach() -> None:
    ours = paths(render(plan(), HOST, "mark"))
    theirs = paths(render(plan(), HOST, "mark", THERE))
    assert theirs == {THERE.theirs(path) for path in ours}
    assert len(ours) > 6
    assert all(path.startswith("/p/") for path in theirs)


@pytest.mark.parametrize("then", [DIRECT, THERE], ids=["walked", "came in"])
@pytest.mark.parametrize("now", [Passage((), WAYS), THERE], ids=["walks", "comes in"])
def test_a_kept_machine_comes_back_under_the_names_of_now(
    then: Passage, now: Passage
) -> None:
    saved = render(plan(), HOST, "mark", then)
    memory = "/state/sandboxes/s1/mapped/memory"
    text = for_restore(saved, plan(), "mark", memory, ReadOnlyMapping(), now)
    assert paths(text) == paths(render(plan(), HOST, "mark", now))
    assert f"mem-path={now.theirs('/state/sandboxes/s1/mapped/memory')}," in text
    assert now.ours(read_root_layer(text)) == plan().disk("root").path
