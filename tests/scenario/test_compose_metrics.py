"""What a composed driver shows of itself, and says in its log."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.collector import Collector
from tests.fakes.eager import EAGER
from tests.fakes.ports import free_port
from tests.fakes.process_driver import ProcessDriver
from tests.fakes.prometheus_queries import known
from tests.fakes.service import sandbox
from tests.fakes.waiting import until
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = (("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),)
SETTINGS = """
extensions = ["workspace-quota"]
log_format = "json"
[extension.workspace-quota.default]
sandboxes = 1
"""


@contextmanager
def composed(base: ProcessDriver, folder: Path, *flags: str) -> Iterator[Any]:
    """A stub of one in a process of its own, whose log is `folder`/log; it ends by SIGTERM, soon and with 0."""
    config, bound = folder / "compose.toml", folder / "c" / "c.sock"
    config.write_text(SETTINGS)
    words = ("--base", f"unix:{base.socket}", "--bind-socket", str(bound))
    state = ("--state-dir", str(folder / "s"), "--config", str(config))
    program = [sys.executable, "-m", "vmdriver", "compose", *words, *state, *flags]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(program, stderr=log)
    try:
        with grpc.insecure_channel(f"unix:{bound}", options=EAGER) as channel:
            stub: Any = pb_grpc.ComputeDriverStub(channel)
            nothing = pb.GetCapabilitiesRequest()
            stub.GetCapabilities(nothing, wait_for_ready=True, timeout=30)
            yield stub
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0, (folder / "log").read_text()


def create(stub: Any, name: str) -> None:
    one = sandbox(name, sandbox_token="CANARY")
    stub.CreateSandbox(pb.CreateSandboxRequest(sandbox=one), metadata=PARENT)


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    assert "CANARY" not in text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    found = [v for (n, own), v in samples.items() if n == name and wanted <= own]
    assert found, f"{name} is not there"
    return sum(found)


def test_a_composed_driver_is_seen(base: ProcessDriver, tmp_path: Path) -> None:
    port, collector = free_port(), Collector()
    listen = ("--metrics-listen", f"127.0.0.1:{port}")
    with composed(base, tmp_path, *listen, "--otlp-endpoint", collector.url) as stub:
        name = "vmdriver_composed_base_connected"
        until(lambda: value(scraped(port), name) == 1)
        create(stub, "s1")
        with pytest.raises(grpc.RpcError, match="may have 1 sandbox"):
            create(stub, "s2")
        base.stop()
        until(lambda: value(scraped(port), name) == 0)
        with pytest.raises(grpc.RpcError):
            stub.GetSandbox(pb.GetSandboxRequest(sandbox_id="s1"), timeout=20)
        base.start()
        until(lambda: value(scraped(port), name) == 1)
        found = scraped(port)
        assert value(found, "vmdriver_composed_sandboxes", stage="present") == 1
        assert value(found, "vmdriver_composed_base_sandboxes") == 1
        assert value(found, "vmdriver_composed_sandboxes_troubled") == 0
        assert value(found, "vmdriver_composed_held", extension="workspace-quota") == 0
        calls = "vmdriver_composed_call_duration_seconds_count"
        assert value(found, calls, method="CreateSandbox", outcome="ok") == 1
        assert value(found, calls, method="CreateSandbox", outcome="refused") == 1
        assert value(found, calls, method="GetSandbox", outcome="failed") == 1
        told = "vmdriver_extension_call_duration_seconds_count"
        assert value(found, told, extension="workspace-quota", outcome="failed") == 1
        assert value(found, "vmdriver_loop_lag_seconds_count") > 0
        ours = {n for n, _ in found if n.startswith("vmdriver_")}
        assert {n.removesuffix("_created") for n in ours} <= known().keys()
    names = {name for name, _ in collector.spans}
    assert "CreateSandbox" in names
    assert any(name.startswith("extension workspace-quota.") for name in names)
    assert "vmdriver.composed.sandboxes" in collector.metrics
    collector.close()


def test_its_log_says_whose_a_line_is_and_what_led_to_it(
    base: ProcessDriver, tmp_path: Path
) -> None:
    with composed(base, tmp_path) as stub:
        create(stub, "s1")
    text = (tmp_path / "log").read_text()
    assert "CANARY" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    calls = [line for line in lines if "s1: workspace-quota." in line["message"]]
    assert calls
    assert {line["sandbox"] for line in calls} == {"s1"}
    asked = [line for line in calls if "validate_request" in line["message"]]
    assert {line["trace"] for line in asked} == {TRACE}


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        (("--metrics-listen", "0.0.0.0:9464"), "metrics_listen: is neither"),
        (("--metrics-listen", "unix:/nowhere/m"), "metrics_listen: unix:/nowhere/m"),
        (("--otlp-endpoint", "http://u:CANARY@h:1"), "otlp_endpoint: may hold no"),
        (("--log-level", "loud"), "log_level: 'loud' is none of"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    base: ProcessDriver, tmp_path: Path, flag: tuple[str, str], words: str
) -> None:
    program = [sys.executable, "-m", "vmdriver", "compose", *flag]
    where = ("--bind-socket", str(tmp_path / "c" / "c.sock"))
    state = ("--state-dir", str(tmp_path / "s"), "--base", f"unix:{base.socket}")
    done = subprocess.run(
        [*program, *where, *state],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "CANARY" not in done.stderr
