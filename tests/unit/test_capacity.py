"""scripts/capacity.py: what it makes of figures, what it refuses, and what must hold whatever they are."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import capacity
from scripts.capacity import BadFigure, Kind, Measured, answer

MEASURED = Measured(
    memory_mib=512,
    host_memory_mib=16384,
    cores=2,
    accelerator="tcg",
    kinds={
        "fork": Kind(each=100.0, code=50.0, guest=20.0, common=60.0),
        "cold": Kind(each=200.0, code=60.0, guest=130.0, common=90.0),
    },
    starts_per_hour={"fork": 7200.0, "cold": 800.0},
    disk_ratio=0.9,
    get_cpu_ms=None,
    creates_per_hour=None,
)


def value(name: str, **figures: Any) -> Any:
    return answer(figures, MEASURED).value(name)


def test_the_arithmetic_is_what_a_person_would_do() -> None:
    # 16384 - 1024 for the host, 60 once, and each (3/4 x 100 + 1/4 x (100 - 20 + 512)).
    assert value("mib_each") == pytest.approx(0.75 * 100 + 0.25 * 592)
    assert value("per_host", committed_mib=1e6) == math.floor((15360 - 60) / 223)
    assert value("hosts", sandboxes=1000, committed_mib=1e6) == math.ceil(1000 / 68)
    assert value("on_one", sandboxes=69, committed_mib=1e6) == 35
    assert value("gib_new", hosts=1000, image_mib=1024) == 1000
    assert value(
        "new_s", hosts=2, image_mib=500, registry_mbit=8.388608
    ) == pytest.approx(1000)
    # Each creates at most as often as there are sandboxes, and asks at most once in image_refresh_s.
    assert value("lookups", hosts=3, sandboxes=30, churn=1) == 30
    assert value("lookups", hosts=3, sandboxes=30, churn=60, refresh_s=360) == 30
    assert value("starts_share", hosts=1, sandboxes=72, churn=10, committed_mib=1e6) == pytest.approx(680 / 7200)  # fmt: skip
    assert value("calls", hosts=1, sandboxes=9, reconcile_s=30) == 20


def test_what_all_have_in_common_is_there_once_for_each_template() -> None:
    assert value("mib_common", templates=3) == 180
    assert value("mib_common", templates=3, start="cold") == 90
    few = value("mib_taken", sandboxes=10, hosts=1, busy=0)
    assert few == pytest.approx(60 + 10 * 100)
    assert value("mib_saved", sandboxes=10, hosts=1, busy=0) == pytest.approx(90 + 2000 - few)  # fmt: skip
    assert value("mib_saved", start="cold") == 0


def test_what_bounds_a_host_is_said_with_the_way_out() -> None:
    found = answer({}, MEASURED)
    assert found.value("per_host") == 32
    assert found.value("bound") == "committed_mib"
    assert any("max_committed_mem_mib" in note for note in found.notes)
    large = answer({"host_memory_mib": 1e7, "committed_mib": 1e8}, MEASURED)
    assert (large.value("per_host"), large.value("bound")) == (1000, "max_sandboxes")


def test_what_is_not_measured_is_not_made_up() -> None:
    assert value("most_starts", accelerator="kvm") is None
    assert value("starts_share", accelerator="kvm") is None
    assert value("calls_share") is None
    known = dataclasses.replace(MEASURED, get_cpu_ms=2.0)
    assert answer({"sandboxes": 30, "hosts": 1}, known).value(
        "calls_share"
    ) == pytest.approx(30 * 2 / 60_000)


def test_more_cores_begin_more_only_as_far_as_the_driver_was_measured() -> None:
    def most(cores: int, creates: float | None = None, **figures: Any) -> Any:
        known = dataclasses.replace(MEASURED, creates_per_hour=creates)
        found = answer({"host_cores": cores, **figures}, known)
        return found.value("most_starts")

    assert [most(1), most(2), most(64)] == [3600, 7200, 7200]
    assert [most(1, 20_000), most(4, 20_000), most(64, 20_000)] == [3600, 14400, 20_000]
    assert most(64, 20_000, start="cold") == 800


def test_what_does_not_fit_and_what_a_sweep_does_not_see_is_noted() -> None:
    notes = answer({"hosts": 2, "sandboxes": 100}, MEASURED).notes
    assert any("36 sandboxes do not fit: 2 more hosts" in note for note in notes)
    notes = answer({"hosts": 100, "gateways": "one"}, MEASURED).notes
    assert any("500 rows" in note for note in notes)
    notes = answer({"churn": 3600}, MEASURED).notes
    assert any(note.startswith("churn:") for note in notes)


@pytest.mark.parametrize(
    ("figures", "name"),
    [
        ({"hosts": 0}, "hosts"),
        ({"hosts": 1.5}, "hosts"),
        ({"hosts": "many"}, "hosts"),
        ({"busy": 1.1}, "busy"),
        ({"busy": "nan"}, "busy"),
        ({"host_memory_mib": "inf"}, "host_memory_mib"),
        ({"image_mib": -1}, "image_mib"),
        ({"registry_mbit": 0}, "registry_mbit"),
        ({"start": "warm"}, "start"),
        ({"gateways": ""}, "gateways"),
        ({"busy_memory_mib": 513}, "busy_memory_mib"),
        ({"reserved_mib": 16384}, "reserved_mib"),
        ({"memory_mib": 32768}, "committed_mib"),
        ({"host_memory_mib": 1100, "committed_mib": 1e6}, "host_memory_mib"),
        ({"host_memory": 1100}, "host_memory"),
    ],
)
def test_a_figure_that_cannot_be_is_named(figures: Any, name: str) -> None:
    with pytest.raises(BadFigure) as caught:
        answer(figures, MEASURED)
    assert caught.value.name == name
    assert str(caught.value).startswith(f"{name}: ")


_ANY = st.fixed_dictionaries(
    {},
    optional={
        "host_memory_mib": st.floats(8192, 2**22),
        "committed_mib": st.floats(65536, 2**24),
        "memory_mib": st.integers(64, 4096),
        "busy": st.floats(0, 1),
        "start": st.sampled_from(["fork", "cold"]),
        "accelerator": st.sampled_from(["tcg", "kvm"]),
        "templates": st.integers(1, 10),
        "churn": st.floats(0, 100),
        "gateways": st.sampled_from(["per-host", "one"]),
    },
)


def found(figures: Any, **more: Any) -> Any:
    return answer({**figures, **more}, MEASURED)


@given(_ANY, st.integers(1, 2000), st.integers(1, 100_000))
def test_more_hosts_never_have_fewer_sandboxes_nor_more_on_one(
    figures: Any, hosts: int, sandboxes: int
) -> None:
    for wanted in ({}, {"sandboxes": sandboxes}):
        few, many = (found(figures, hosts=n, **wanted) for n in (hosts, hosts + 1))
        assert many.value("sandboxes") >= few.value("sandboxes")
        assert many.value("on_one") <= few.value("on_one")
        assert many.value("gib_first") > few.value("gib_first")


@given(_ANY, st.integers(1, 100_000))
def test_the_hosts_that_are_needed_are_enough_and_one_less_is_not(
    figures: Any, sandboxes: int
) -> None:
    enough = found(figures, sandboxes=sandboxes)
    assert enough.value("sandboxes") == sandboxes
    hosts = enough.value("hosts")
    assert enough.value("on_one") <= enough.value("per_host")
    if hosts > 1:
        fewer = found(figures, sandboxes=sandboxes, hosts=hosts - 1)
        assert fewer.value("sandboxes") < sandboxes
        assert any("1 more hosts" in note for note in fewer.notes)


@given(_ANY, st.floats(0, 2**20), st.floats(0, 1))
def test_more_memory_never_holds_fewer_and_more_work_never_more(
    figures: Any, more_mib: float, busy: float
) -> None:
    here = found(figures)
    size = here.figures["host_memory_mib"]
    larger = found(figures, host_memory_mib=size + more_mib)
    assert larger.value("per_host") >= here.value("per_host")
    quiet, loud = sorted([here.figures["busy"], busy])
    assert found(figures, busy=quiet).value("per_host") >= found(
        figures, busy=loud
    ).value("per_host")


@given(_ANY)
def test_what_is_taken_fits_and_kvm_takes_no_more_than_tcg(figures: Any) -> None:
    here = found(figures)
    room = here.figures["host_memory_mib"] - here.figures["reserved_mib"]
    assert here.value("mib_taken") <= room + 1e-6
    assert here.value("per_host") * here.figures["memory_mib"] <= here.figures["committed_mib"]  # fmt: skip
    kvm, tcg = (found(figures, accelerator=a) for a in ("kvm", "tcg"))
    assert kvm.value("per_host") >= tcg.value("per_host")


def test_the_measured_file_has_what_the_model_needs_and_no_default_is_typed() -> None:
    measured = Measured.read()
    assert measured.kinds["fork"].each < measured.kinds["cold"].each
    runs = json.loads(capacity.MEASURED.read_text())
    density = runs["density"]["figures"]["density"]
    # What the bench says fits into 16 GiB is what the model says fits there, when nobody works.
    for start in ("fork", "cold"):
        fits = answer(
            {
                "host_memory_mib": 16 * 1024,
                "reserved_mib": 0,
                "committed_mib": 1e8,
                "busy": 0,
                "start": start,
            },
            measured,
        )
        assert fits.value("per_host") == density[start]["fit"]
    for name in ("host_memory_mib", "memory_mib", "host_cores", "accelerator"):
        assert capacity.BY_NAME[name].source.startswith("measured")


def test_what_the_bench_finds_later_is_taken_up(tmp_path: Path) -> None:
    runs = json.loads(capacity.MEASURED.read_text())
    sides = {"none": {"get_cpu_ms": 1.5, "create_per_s": 50.0}}
    sides["ten"] = {"get_cpu_ms": 2.5, "create_per_s": 40.0}
    runs["control"] = {"figures": {"control": sides}}
    (tmp_path / "m.json").write_text(json.dumps(runs))
    measured = Measured.read(tmp_path / "m.json")
    assert (measured.get_cpu_ms, measured.creates_per_hour) == (2.5, 40 * 3600)


def test_a_missing_part_is_no_default(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = json.loads(capacity.MEASURED.read_text())
    del runs["density"]
    (tmp_path / "m.json").write_text(json.dumps(runs))
    with pytest.raises(KeyError, match="density"):
        Measured.read(tmp_path / "m.json")
    monkeypatch.setattr(capacity, "MEASURED", tmp_path / "m.json")
    assert capacity.main([]) == 1
    assert "has no 'density': scripts/bench" in capsys.readouterr().err


def test_the_command_says_every_figure_and_its_source_and_refuses_by_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert capacity.main(["--hosts", "10", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["figures"]["hosts"] == 10
    assert told["sources"]["hosts"] == "given"
    assert set(told["sources"]) == set(capacity.BY_NAME)
    assert all(set(row) == {"says", "value", "unit", "how"} for row in told["rows"].values())  # fmt: skip
    assert capacity.main(["--sandboxes", "500", "--start", "cold"]) == 0
    text = capsys.readouterr().out
    for row in told["rows"].values():
        assert row["says"] in text
    assert capacity.main(["--host-memory-mib", "lots"]) == 2
    assert capsys.readouterr().err == "capacity: host_memory_mib: 'lots' is not a number\n"  # fmt: skip
