"""What root in the guest wrote is a report, whatever it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fakes.driver import spec
from vmdriver.host import console_file
from vmdriver.lifecycle.launch import endings
from vmdriver.model.condition import status_of
from vmdriver.model.phase import DomainState, Phase, machine_state
from vmdriver.model.record import SandboxRecord, utc_now
from vmdriver.storage.sandboxes.guest_report import parse_report, read_report

LINES = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.builds(
            lambda name, value: name + b"=" + value,
            st.sampled_from(
                [b"phase", b"code", b"reason", b"init", b"modules", b"supervisor"]
            ),
            st.one_of(
                st.binary(max_size=400),
                st.text(max_size=40).map(lambda t: t.encode("utf-8", "replace")),
                st.text(st.characters(categories=["Nd", "No"]), max_size=8).map(
                    str.encode
                ),
                st.integers().map(lambda n: str(n).encode()),
                st.floats().map(lambda n: str(n).encode()),
                st.sampled_from([b"started", b"exited", b"failed", b"waiting"]),
            ),
        ),
    ),
    max_size=12,
)
RECORDS = st.one_of(st.binary(max_size=4096), LINES.map(b"\n".join))


@given(RECORDS)
@example(b"phase=exited\ncode=\xc2\xb2\n")
@example(b"phase=started\ninit=" + b"9" * 309)
@example(b"phase=failed\nreason=\x1b]0;owned\x07\xe2\x80\xae\xed\xa0\x80" + b"x" * 4000)
def test_whatever_the_guest_writes_is_a_report_and_a_record_that_loads(
    data: bytes,
) -> None:
    report = parse_report(data)
    assert report.phase in {"", "waiting", "started", "exited", "failed", "probed"}
    assert report.exit_code is None or 0 <= report.exit_code <= 255
    assert len(report.reason) <= 500
    assert report.reason.isprintable()
    assert all(0 <= seconds < 1e9 for seconds in report.stamps.values())
    machine = machine_state(DomainState.OFF, report.phase)
    record = SandboxRecord(
        spec=spec(),
        created_at=utc_now(),
        changed_at=utc_now(),
        boot_seconds=report.stamps,
        failure=endings.of_machine(machine, report, Phase.LAUNCHING, "", retry=False),
    )
    assert SandboxRecord.model_validate_json(record.model_dump_json()) == record
    status_of(record)


def test_a_report_is_read_as_init_writes_it() -> None:
    report = parse_report(
        b"phase=exited\ncode=3\ninit=2.79 modules=3.30 supervisor=3.81\n".ljust(
            4096, b"\0"
        )
    )
    assert (report.phase, report.exit_code) == ("exited", 3)
    assert report.stamps == {"init": 2.79, "modules": 3.3, "supervisor": 3.81}


@pytest.mark.parametrize(
    "code", [b"256", b"-1", b"+1", b" 1", b"1 ", b"1_0", "٣".encode(), b""]
)
def test_a_code_that_wait_cannot_give_is_not_said(code: bytes) -> None:
    assert parse_report(b"phase=exited\ncode=" + code).exit_code is None


def test_the_first_of_two_fields_counts_and_nothing_behind_a_nul() -> None:
    report = parse_report(b"phase=started\nphase=exited\n\0\nreason=x\ninit=1\n")
    assert (report.phase, report.reason, report.stamps) == ("started", "", {})


def test_a_record_with_a_stamp_that_json_could_not_hold_is_read() -> None:
    record = SandboxRecord(
        spec=spec(),
        created_at=utc_now(),
        changed_at=utc_now(),
        boot_seconds={"init": float("inf"), "modules": 1.5},
    )
    text = record.model_dump_json()
    assert '"init":null' in text, "as it was stored before stamps were bounded"
    assert SandboxRecord.model_validate_json(text).boot_seconds == {"modules": 1.5}


def test_a_disk_or_console_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    assert read_report(str(tmp_path)).phase == ""
    assert read_report(str(tmp_path / "none")).phase == ""
    assert console_file.tail(tmp_path) == ""
