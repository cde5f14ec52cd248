"""Registries with certificates, credentials, mirrors and signatures."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fakes.oci_layout import Layout, entry, layer
from tests.fakes.registry import PASSWORD, USER, push, registry
from tests.fakes.settings import image_rules
from vmdriver.errors import DriverError, HostError, NotFound, Refused
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.images import BaseDisk
from vmdriver.oci.image_service import ImageService
from vmdriver.oci.policy import ImagePolicy


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = Layout(tmp_path_factory.mktemp("images") / "layout")
    found.image("it", [layer(entry("hello", "x"))])
    return found.path


def auth_file(path: Path, **registries: str) -> Path:
    """containers-auth.json(5): registry -> user:password."""
    auths = {
        name: {"auth": base64.b64encode(text.encode()).decode()}
        for name, text in registries.items()
    }
    path.write_text(json.dumps({"auths": auths}))
    return path


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, layout: Path
) -> Iterator[tuple[str, Path]]:
    """host:port, and the directory with its certificates."""
    base = tmp_path_factory.mktemp("guarded")
    with registry(base / "registry", guarded=True) as address:
        certs = base / "registry" / "certs"
        auth = auth_file(base / "push.json", **{address: f"{USER}:{PASSWORD}"})
        secure = ("--dest-tls-verify=true", "--dest-cert-dir", str(certs / address))
        push(layout, "it", f"{address}/it:1", "--authfile", str(auth), *secure)
        yield address, certs


@pytest.fixture
async def prepare(tmp_path: Path) -> AsyncIterator[object]:
    threads = Threads("images", 2)

    async def run(reference: str, policy: ImagePolicy) -> BaseDisk:
        store = ImageService(
            tmp_path / "store", threads, policy, numbers=UserNamespace()
        )
        await store.open()
        try:
            return await store.prepare(reference, "s1", lambda _progress: None)
        finally:
            await store.close()

    yield run
    threads.close()


async def test_each_registry_gets_its_own_credentials_over_tls(
    prepare, guarded: tuple[str, Path], tmp_path: Path
) -> None:
    address, certs = guarded
    auth = auth_file(
        tmp_path / "auth.json",
        **{"other.test": "someone:else", address: f"{USER}:{PASSWORD}"},
    )
    policy = image_rules(
        auth_file=auth, certificates=certs, credential_registries=(address,)
    )
    assert Path((await prepare(f"{address}/it:1", policy)).path).exists()
    for wrong in (
        auth_file(tmp_path / "wrong.json", **{address: f"{USER}:guessed"}),
        auth_file(tmp_path / "none.json"),
    ):
        with pytest.raises(Refused, match="does not give out") as caught:
            await prepare(
                f"{address}/it:1", dataclasses.replace(policy, auth_file=wrong)
            )
        shown = f"{caught.value} {caught.value.detail} {caught.value.resolution}"
        assert PASSWORD not in shown
        assert "guessed" not in shown


async def test_a_certificate_that_nobody_vouches_for_is_an_error(
    prepare, guarded: tuple[str, Path], tmp_path: Path
) -> None:
    address, _ = guarded
    auth = auth_file(tmp_path / "auth.json", **{address: f"{USER}:{PASSWORD}"})
    with pytest.raises(HostError, match=r"certificate|x509"):
        await prepare(
            f"{address}/it:1",
            image_rules(auth_file=auth, credential_registries=(address,)),
        )


async def test_a_mirror_is_used_where_registries_conf_says_so(
    prepare, layout: Path, tmp_path: Path
) -> None:
    with registry(tmp_path / "mirror") as mirror:
        push(layout, "it", f"{mirror}/mirrored/it:1")
        conf = tmp_path / "registries.conf"
        conf.write_text(
            '[[registry]]\nprefix = "far.test/team"\nlocation = "far.test/team"\n'
            f'[[registry.mirror]]\nlocation = "{mirror}/mirrored"\ninsecure = true\n'
            '[[registry]]\nlocation = "blocked.test"\nblocked = true\n'
        )
        policy = image_rules(registries_conf=conf)
        disk = await prepare("far.test/team/it:1", policy)
        assert Path(disk.path).exists()
        with pytest.raises(DriverError, match=r"blocked\.test"):
            await prepare("blocked.test/it:1", policy)


async def test_the_signature_policy_decides(
    prepare, layout: Path, tmp_path: Path
) -> None:
    with registry(tmp_path / "plain") as address:
        push(layout, "it", f"{address}/it:1")
        rules = {"default": [{"type": "reject"}]}
        strict = tmp_path / "policy.json"
        strict.write_text(json.dumps(rules))
        policy = image_rules(
            insecure_registries=(address,), signature_policy=strict, refresh_s=0
        )
        with pytest.raises(DriverError, match=r"(?i)reject|policy"):
            await prepare(f"{address}/it:1", policy)
        rules["transports"] = {
            "docker": {address: [{"type": "insecureAcceptAnything"}]}
        }
        strict.write_text(json.dumps(rules))
        assert Path((await prepare(f"{address}/it:1", policy)).path).exists()


async def test_a_registry_that_is_not_there_is_said_to_be_so(prepare) -> None:
    with pytest.raises(HostError, match="did not answer"):
        await prepare("127.0.0.1:1/it:1", image_rules(("127.0.0.1:1",)))


async def test_a_guarded_registry_does_not_tell_what_it_has(
    prepare, guarded: tuple[str, Path]
) -> None:
    address, certs = guarded
    with pytest.raises((Refused, NotFound)):
        await prepare(f"{address}/nothing:1", image_rules(certificates=certs))
