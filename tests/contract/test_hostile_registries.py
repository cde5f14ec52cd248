"""Registries that mean harm: what they send is bounded, and whom they name is not asked."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Protocol

import pytest

from tests.fakes.hostile_registry import (
    GZIP,
    HostileRegistry,
    digest,
    hostile_registry,
)
from tests.fakes.oci_layout import entry, layer
from tests.fakes.settings import image_rules
from vmdriver.errors import DriverError, Exhausted, ImageError, Refused
from vmdriver.host import facts
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.images import BaseDisk
from vmdriver.oci.cache import Cache
from vmdriver.oci.image_service import ImageService

BLOB = "sha256:" + "a" * 64


class Prepare(Protocol):
    """Asks for an image of that registry, with changes of the operator's rules."""

    async def __call__(
        self, hostile: HostileRegistry, **changes: object
    ) -> BaseDisk: ...


@pytest.fixture
async def prepare(tmp_path: Path) -> AsyncIterator[Prepare]:
    threads = Threads("images", 2)

    async def run(hostile: HostileRegistry, **changes: object) -> BaseDisk:
        rules = image_rules((hostile.address,), **changes)
        store = ImageService(
            tmp_path / "store", threads, rules, numbers=UserNamespace()
        )
        await store.open()
        try:
            return await store.prepare(f"{hostile.address}/x:1", "s1", lambda _p: None)
        finally:
            await store.close()
            assert not list((tmp_path / "store").glob(".work-*"))

    yield run
    threads.close()


async def test_a_layer_that_does_not_end_is_not_fetched_further_than_it_is_said_to_be(
    prepare: Prepare,
) -> None:
    with hostile_registry() as hostile:
        hostile.image("x", [{"mediaType": GZIP, "digest": BLOB, "size": 1000}])
        hostile.pours(f"x/blobs/{BLOB}", 2**31)
        with pytest.raises(ImageError, match=r"sends more than|file too large"):
            await prepare(hostile)
        assert hostile.poured < 200 * 2**20


async def test_free_space_is_watched_while_layers_are_fetched(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([2**40, 2**40])
    monkeypatch.setattr(Cache, "free_bytes", lambda _cache: next(free, 1000))
    with hostile_registry() as hostile:
        hostile.image("x", [{"mediaType": GZIP, "digest": BLOB, "size": 2**30}])
        hostile.pours(f"x/blobs/{BLOB}", 2**31)
        with pytest.raises(Exhausted, match="disk space"):
            await prepare(hostile)


async def test_a_layer_that_is_elsewhere_is_asked_for_nowhere(
    prepare: Prepare,
) -> None:
    content = layer(entry("a", "1"))
    config = {
        "architecture": facts.oci_architecture(),
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest(gzip.decompress(content))]},
    }
    with hostile_registry() as hostile, hostile_registry() as internal:
        described = {
            "mediaType": GZIP,
            "digest": digest(content),
            "size": len(content),
            "urls": [f"http://{internal.address}/secret"],
        }
        hostile.image("x", [described], json.dumps(config).encode())
        with pytest.raises(Refused, match="fetched from elsewhere"):
            await prepare(hostile)
        assert internal.asked == []


async def test_credentials_do_not_follow_a_redirection(
    prepare: Prepare, tmp_path: Path
) -> None:
    def challenge(request: BaseHTTPRequestHandler) -> None:
        shown = request.headers.get("Authorization")
        request.send_response(200 if shown else 401)
        if not shown:
            request.send_header("WWW-Authenticate", 'Basic realm="x"')
        request.send_header("Content-Length", "0")
        request.end_headers()

    with hostile_registry() as hostile, hostile_registry() as other:
        login = {"auth": base64.b64encode(b"robot:hush").decode()}
        auth = tmp_path / "auth.json"
        auth.write_text(json.dumps({"auths": {hostile.address: login}}))
        hostile.answers[""] = challenge
        for target in (
            f"http://{other.address}/v2/x/manifests/1",
            "file:///etc/passwd",
        ):
            hostile.redirects("x/manifests/1", target)
            with pytest.raises(DriverError) as caught:
                await prepare(
                    hostile,
                    auth_file=auth,
                    credential_registries=(hostile.address,),
                )
            assert "root:" not in f"{caught.value} {caught.value.detail}"
        assert ("/v2/x/manifests/1", "") in other.asked
        assert {shown for _, shown in other.asked} == {""}
        assert any(shown for _, shown in hostile.asked)


async def test_a_registry_that_is_not_listed_names_a_token_server_that_learns_nothing(
    prepare: Prepare, tmp_path: Path
) -> None:
    with hostile_registry() as hostile, hostile_registry() as thief:

        def challenge(request: BaseHTTPRequestHandler) -> None:
            realm = f'Bearer realm="http://{thief.address}/token",service="s"'
            request.send_response(401)
            request.send_header("WWW-Authenticate", realm)
            request.send_header("Content-Length", "0")
            request.end_headers()

        hostile.answers[""] = challenge
        login = {"auth": base64.b64encode(b"robot:hush").decode()}
        auth = tmp_path / "auth.json"
        auth.write_text(
            json.dumps({"auths": {hostile.address: login, thief.address: login}})
        )
        with pytest.raises(DriverError):
            await prepare(
                hostile, auth_file=auth, credential_registries=(thief.address,)
            )
        assert thief.asked
        assert {shown for _, shown in thief.asked} == {""}
