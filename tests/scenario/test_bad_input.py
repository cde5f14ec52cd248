"""Bad requests: the documented status, the field named, nothing left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from google.protobuf import struct_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.service import sandbox, served
from tests.fakes.world import World
from vmdriver._proto import compute_driver_pb2 as pb

INVALID, REFUSED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
IMAGE = "example.org/image:1"


def struct(**values: object) -> struct_pb2.Struct:
    result = struct_pb2.Struct()
    result.update(values)
    return result


def template(**fields: object) -> pb.DriverSandbox:
    fields.setdefault("image", IMAGE)
    return sandbox(template=pb.DriverSandboxTemplate(**fields))


def resources(**fields: str) -> pb.DriverSandbox:
    return template(resources=pb.DriverResourceRequirements(**fields))


CASES = {
    "no sandbox": (None, INVALID, "sandbox"),
    "no spec": (pb.DriverSandbox(id="s1", name="n"), INVALID, "sandbox.spec"),
    "path in id": (sandbox("../x"), INVALID, "sandbox.id"),
    "dots as id": (sandbox(".."), INVALID, "sandbox.id"),
    "empty id": (sandbox(""), INVALID, "sandbox.id"),
    "long id": (sandbox("x" * 129), INVALID, "sandbox.id"),
    "control character in id": (sandbox("a\nb"), INVALID, "sandbox.id"),
    "control character in name": (sandbox(name="a\x1bb"), INVALID, "sandbox.name"),
    "a terminal's introducer": (sandbox(name="a\x9b2J"), INVALID, "sandbox.name"),
    "letters backwards": (template(image="a/\u202eb"), INVALID, "template.image"),
    "unknown driver_config key": (
        template(driver_config=struct(cpu=1)),
        INVALID,
        "template.driver_config.cpu",
    ),
    "wrong driver_config type": (
        template(driver_config=struct(on_stop=3)),
        INVALID,
        "template.driver_config.on_stop",
    ),
    "wrong driver_config value": (
        template(driver_config=struct(on_stop="never")),
        INVALID,
        "template.driver_config.on_stop",
    ),
    "non-integer number": (
        template(driver_config=struct(on_stop=1.5)),
        INVALID,
        "template.driver_config.on_stop",
    ),
    "infinite number": (
        template(driver_config=struct(on_stop=float("inf"))),
        INVALID,
        "template.driver_config",
    ),
    "platform_config": (
        template(platform_config=struct(host_users=True)),
        REFUSED,
        "platform_config",
    ),
    "agent_socket_path": (
        template(agent_socket_path="/x"),
        REFUSED,
        "agent_socket_path",
    ),
    "gpu": (
        sandbox(
            resource_requirements=pb.ResourceRequirements(
                gpu=pb.GpuResourceRequirements()
            )
        ),
        REFUSED,
        "gpu",
    ),
    "gpu count 0": (
        sandbox(
            resource_requirements=pb.ResourceRequirements(
                gpu=pb.GpuResourceRequirements(count=0)
            )
        ),
        INVALID,
        "gpu",
    ),
    "environment name": (sandbox(environment={"1A": "x"}), INVALID, "spec.environment"),
    "reserved environment name": (
        sandbox(environment={"OPENSHELL_X": "x"}),
        INVALID,
        "OPENSHELL_X",
    ),
    "NUL in a value": (sandbox(environment={"A": "x\0y"}), INVALID, "spec.environment"),
    "NUL in an argument": (sandbox(command=["a\0b"]), INVALID, "spec.command[0]"),
    "empty program": (sandbox(command=["", "x"]), INVALID, "spec.command[0]"),
    "environment too large": (
        sandbox(environment={f"A{n}": "x" * 8000 for n in range(17)}),
        INVALID,
        "spec.environment",
    ),
    "command too large": (sandbox(command=["x" * 30000] * 4), INVALID, "spec.command"),
    "zero cpu": (resources(cpu_limit="0"), INVALID, "template.resources.cpu_limit"),
    "negative memory": (
        resources(memory_limit="-1Gi"),
        INVALID,
        "template.resources.memory_limit",
    ),
    "malformed cpu": (
        resources(cpu_request="two"),
        INVALID,
        "template.resources.cpu_request",
    ),
    "request above limit": (
        resources(cpu_request="4", cpu_limit="2"),
        INVALID,
        "template.resources.cpu_request",
    ),
    "too many cpus": (
        resources(cpu_limit="1000"),
        INVALID,
        "template.resources.cpu_limit",
    ),
    "too much memory": (
        resources(memory_limit="100Ti"),
        INVALID,
        "template.resources.memory_limit",
    ),
    "too little memory": (
        resources(memory_limit="1Mi"),
        INVALID,
        "template.resources.memory_limit",
    ),
    "huge exponent": (
        resources(memory_limit="1e999"),
        INVALID,
        "template.resources.memory_limit",
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_bad_create_is_refused_with_its_field(
    case: str, tmp_path: Path
) -> None:
    message, code, field = CASES[case]
    world = World()
    async with served(tmp_path, world=world) as s:
        for request, method in (
            (
                pb.ValidateSandboxCreateRequest(sandbox=message),
                s.stub.ValidateSandboxCreate,
            ),
            (pb.CreateSandboxRequest(sandbox=message), s.stub.CreateSandbox),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(request)
            assert caught.value.code() is code, caught.value.details()
            assert field in (caught.value.details() or "")
        assert not s.driver.sandboxes()
    assert world.objects() == set()
    assert world.records == {}


async def test_whole_cpus_are_rounded_up_and_fractions_become_a_quota(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as s:
        message = resources(cpu_request="250m", cpu_limit="1500m", memory_limit="300M")
        await s.stub.CreateSandbox(pb.CreateSandboxRequest(sandbox=message))
        await s.driver.settled()
        plan = s.driver.plan()
        assert (plan.vcpus, plan.cpu_quota_millis, plan.memory_mib) == (2, 1500, 287)


TEXT = st.text(max_size=40)
MESSAGES = st.builds(
    pb.DriverSandbox,
    id=st.one_of(TEXT, st.from_regex(r"\A[a-z0-9.-]{1,20}\Z")),
    name=TEXT,
    namespace=TEXT,
    workspace=TEXT,
    spec=st.one_of(
        st.none(),
        st.builds(
            pb.DriverSandboxSpec,
            log_level=TEXT,
            environment=st.dictionaries(TEXT, TEXT, max_size=3),
            sandbox_token=TEXT,
            command=st.lists(TEXT, max_size=3),
            tty=st.booleans(),
            resource_requirements=st.one_of(
                st.none(), st.builds(pb.ResourceRequirements)
            ),
            template=st.builds(
                pb.DriverSandboxTemplate,
                image=TEXT,
                labels=st.dictionaries(TEXT, TEXT, max_size=2),
                resources=st.builds(
                    pb.DriverResourceRequirements, cpu_limit=TEXT, memory_request=TEXT
                ),
                driver_config=st.one_of(
                    st.none(),
                    st.dictionaries(
                        TEXT,
                        st.one_of(st.none(), st.booleans(), st.floats(), TEXT),
                        max_size=2,
                    ).map(lambda d: struct(**{str(k): v for k, v in d.items()})),
                ),
            ),
        ),
    ),
)
CALLS = st.one_of(
    st.tuples(st.sampled_from(["ValidateSandboxCreate", "CreateSandbox"]), MESSAGES),
    st.tuples(
        st.sampled_from(["GetSandbox", "StopSandbox", "StartSandbox", "DeleteSandbox"]),
        st.tuples(TEXT, TEXT),
    ),
    st.tuples(st.sampled_from(["EnsureWorkspace", "DeleteWorkspace"]), TEXT),
    st.tuples(
        st.sampled_from(
            ["GetCapabilities", "GetGatewayListenerRequirements", "ListSandboxes"]
        ),
        st.booleans(),
    ),
)
UNWANTED = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


def request_for(method: str, content: object) -> object:
    kind = getattr(pb, f"{method}Request")
    if isinstance(content, pb.DriverSandbox):
        return kind(sandbox=content)
    if isinstance(content, tuple):
        return kind(sandbox_id=content[0], sandbox_name=content[1])
    if isinstance(content, str):
        return kind(workspace=content)
    return (
        pb.GetCapabilitiesRequest(gateway=pb.GatewayIdentity())
        if content and method == "GetCapabilities"
        else kind()
    )


def test_arbitrary_messages_never_surprise_the_driver(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("h")

    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.lists(CALLS, min_size=1, max_size=12))
    def play(calls: list) -> None:
        async def run() -> None:
            async with served(directory) as s:
                for method, content in calls:
                    try:
                        await getattr(s.stub, method)(
                            request_for(method, content), timeout=10
                        )
                    except grpc.aio.AioRpcError as error:
                        assert error.code() not in UNWANTED, (
                            method,
                            content,
                            error.details(),
                        )
                await s.driver.settled()

        asyncio.run(run())

    play()
