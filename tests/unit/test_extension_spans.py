"""What a collector is sent of an extension's call."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

kept, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
from types import SimpleNamespace as Some
from vmdriver.errors import Refused
from vmdriver.lifecycle.extending.calls import Calls

async def fail():
    raise ValueError("https://user:SECRET@host does not answer")

async def main():
    try:
        sandbox = Some(id="s1", workspace="w")
        await Calls([]).make(Some(name="ext", timeout_s=5), "prepare", sandbox, fail())
    except Refused:
        (span,) = kept.get_finished_spans()
        print(span.to_json(indent=None))

asyncio.run(main())
"""
"""In a process of its own: there is one provider in each."""


def test_what_an_extension_raised_is_not_told_to_another_host() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert "SECRET" not in done.stdout
    assert "SECRET" in done.stderr, "the log has it"
    status = json.loads(done.stdout)["status"]
    assert status["status_code"] == "ERROR"
    assert "failed in prepare: ValueError" in status["description"]
