"""Spans of a sandbox's life: one trace from the caller to the last step."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROGRAM = """
import asyncio, json, sys, tempfile
from pathlib import Path
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

kept, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
import grpc
from tests.fakes.driver import FakeDriver
from tests.fakes.service import sandbox, served
from vmdriver._proto import admin_pb2, compute_driver_pb2 as pb
from vmdriver._proto.admin_pb2_grpc import AdminStub

async def live(folder):
    async with served(folder) as s:
        metadata = (("traceparent", sys.argv[1]),)
        request = pb.CreateSandboxRequest(sandbox=sandbox("s1", sandbox_token="CANARY"))
        await s.stub.CreateSandbox(request, metadata=metadata)
        await s.driver.settled()
        try:
            await s.stub.CreateSandbox(request)
        except grpc.aio.AioRpcError:
            pass
        await s.stub.ListSandboxes(pb.ListSandboxesRequest())
        await s.stub.GetSandbox(pb.GetSandboxRequest(sandbox_id="s1"))
        await s.stub.WatchSandboxes(pb.WatchSandboxesRequest()).read()
        operators = f"unix:{s.socket.with_name('admin.sock')}"
        async with grpc.aio.insecure_channel(operators) as channel:
            await AdminStub(channel).Observe(admin_pb2.ObserveRequest()).read()
        await s.stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="s1"))
        await s.stub.StartSandbox(pb.StartSandboxRequest(sandbox_id="s1"))
        await s.driver.settled()
        s.driver.world.end_machine(s.driver.plan("s1").domain)
        s.driver.hint("s1")
        await s.driver.until("s1", lambda record: record.failure is not None)
        await s.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))

with tempfile.TemporaryDirectory() as folder:
    asyncio.run(live(Path(folder)))
print("[" + ",".join(span.to_json(indent=None) for span in kept.get_finished_spans()) + "]")
"""
"""In a process of its own: there is one provider in each."""
Span = dict[str, Any]


@cache
def lived() -> list[Span]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"00-{TRACE}-{PARENT}-01"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "CANARY" not in done.stdout
    found: list[Span] = json.loads(done.stdout)
    return found


def called(name: str) -> list[Span]:
    return [span for span in lived() if span["name"] == name]


def identity(span: Span) -> tuple[str, str]:
    """Of the trace, and its own."""
    context = span["context"]
    return context["trace_id"].removeprefix("0x"), context["span_id"]


def children(of: Span) -> set[str]:
    mine = identity(of)
    return {
        span["name"]
        for span in lived()
        if (identity(span)[0], span["parent_id"]) == mine
    }


def test_a_launch_is_below_the_call_that_asked_for_it_and_that_below_the_gateways() -> (
    None
):
    create = called("CreateSandbox")[0]
    assert identity(create)[0] == TRACE
    assert create["parent_id"] == f"0x{PARENT}"
    assert create["attributes"] == {"sandbox": "s1"}
    assert children(create) == {"booted"}
    (booted,) = called("booted")
    assert {"booted: tap", "booted: machine", "booted: image"} <= children(booted)


def test_each_call_that_changes_something_begins_a_trace_of_its_own() -> None:
    (stop,), (start,) = called("StopSandbox"), called("StartSandbox")
    assert children(stop) == {"stopped"}
    assert children(start) == {"relaunched"}
    assert children(called("DeleteSandbox")[0]) == {"deleted"}
    traces = {identity(span)[0] for span in (stop, start)}
    assert len(traces | {TRACE}) == 3
    assert {stop["parent_id"], start["parent_id"]} == {None}


def test_looks_are_no_spans() -> None:
    looks = ("Get", "List", "Watch", "Observe")
    assert [s["name"] for s in lived() if s["name"].startswith(looks)] == []


def test_of_a_refusal_the_span_has_the_reason_alone() -> None:
    refused = called("CreateSandbox")[1]
    assert refused["status"] == {
        "status_code": "ERROR",
        "description": "AlreadyExists",
    }
    assert refused["events"] == []


def test_what_the_driver_sees_for_itself_is_a_trace_too() -> None:
    (seen,) = called("record end")
    assert seen["parent_id"] is None
    assert seen["attributes"] == {"sandbox": "s1"}
