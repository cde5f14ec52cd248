"""What the programs that make a disk of an image can see and do on the host, and what is believed of what they leave."""

from __future__ import annotations

import base64
import json
import os
import stat
import struct
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_hostile_images import Bench, look, names
from tests.fakes.oci_layout import Layout, directory, entry, layer, link
from tests.fakes.registry import PASSWORD, USER
from tests.fakes.settings import image_rules
from vmdriver.errors import ConfigError, ImageError
from vmdriver.host import process
from vmdriver.host.confined.box import Box, User
from vmdriver.host.confined.user_namespace import FIRST, UserNamespace, give
from vmdriver.oci import files, trust
from vmdriver.oci.boxes import ImageBoxes
from vmdriver.oci.cache import Cache
from vmdriver.oci.fetched import FetchedLayout
from vmdriver.oci.manifest import Layer, Manifest
from vmdriver.oci.policy import ImagePolicy
from vmdriver.storage.programs.program_bundle import bundle_of


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    policy = image_rules(
        allowed_directories=(tmp_path,),
        max_content=64 * 2**20,
        max_files=20_000,
        refresh_s=0,
    )
    bench = Bench(tmp_path, policy)
    await bench.store.open()
    yield bench
    bench.threads.close()


@pytest.fixture
def numbers() -> UserNamespace:
    return UserNamespace()


# --- images


async def test_owners_links_and_capabilities_are_on_the_disk_as_the_image_says(
    bench: Bench,
) -> None:
    raise_net = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    attributes = {"SCHILY.xattr.security.capability": raise_net.decode("latin-1")}
    disk = await bench.disk(
        layer(
            directory("deep", 0o700),
            entry("deep/own", "x", uid=70_001, gid=99_999, mode=0o600),
            entry("ping", "x", mode=0o755, pax_headers=attributes),
            entry("su", "x", mode=0o6755, uid=0, gid=42),
            link("twin", "su", hard=True),
            link("dangling", "/nowhere"),
            entry("pipe", kind=tarfile.FIFOTYPE, uid=5, gid=5),
        )
    )
    owner = look(disk, "stat /deep/own")
    assert b"User: 70001" in owner
    assert b"Group: 99999" in owner
    assert b"Mode:  0600" in owner
    su = look(disk, "stat /twin")
    assert b"Mode:  06755" in su
    assert b"Group:    42" in su
    assert b"Links: 2" in su
    assert raise_net.hex(" ").encode() in look(
        disk, "ea_get -x /ping security.capability"
    )
    assert b"Type: FIFO" in look(disk, "stat /pipe")
    assert b'Fast link dest: "/nowhere"' in look(disk, "stat /dangling")


async def test_only_what_stands_for_a_device_node_is_left_out_with_it(
    bench: Bench,
) -> None:
    node = {"kind": tarfile.CHRTYPE, "devmajor": 1, "devminor": 1}
    lower = layer(
        directory("dev"),
        entry("dev/mem", **node),
        link("dev/twin", "dev/mem", hard=True),
        entry("dev/later", **node),
        entry("dev/empty", ""),
    )
    upper = layer(entry("./dev/later", ""), entry("dev/mode0", "", mode=0))
    disk = await bench.disk(lower, upper)
    assert names(disk, "/dev") == {b"empty", b"later", b"mode0"}


@pytest.mark.parametrize("depth", [300, 2000])
async def test_folders_that_are_too_deep_are_refused_and_removed(
    bench: Bench, depth: int
) -> None:
    deep = layer(entry("a/" * depth + "f", "x"))
    assert "folders" in await bench.refused(layer(entry("b", "1")), deep)


async def test_extended_attributes_without_end_are_an_error(bench: Bench) -> None:
    for value, count in (("x" * 2**21, 1), ("x" * 60_000, 1), ("x" * 900, 5_000)):
        attributes = {f"SCHILY.xattr.user.n{n}": value for n in range(count)}
        await bench.refused(layer(entry("f", "x", pax_headers=attributes)))


async def test_zeros_that_expand_without_end_are_refused_by_number(
    bench: Bench,
) -> None:
    bomb = layer(entry("zeros", bytes(300 * 2**20)))
    text = await bench.refused(layer(entry("a", "1")), bomb)
    assert "layer 2 of 2" in text
    assert len(bomb) < 2**21


async def test_devices_without_end_are_refused(bench: Bench) -> None:
    node = {"kind": tarfile.CHRTYPE, "devmajor": 1, "devminor": 1}
    fills = [entry(f"dev/{number}", **node) for number in range(10_001)]
    assert "device nodes" in await bench.refused(layer(*fills))


# --- what the programs see


async def lists(box: Box, script: str) -> str:
    done = await process.run(["sh", "-c", script], deadline_s=30, box=box)
    return done.stdout.decode()


Asking = Callable[[ImageBoxes, Path], Any]


async def fetching(boxes: ImageBoxes, mine: Path) -> Box:
    return await boxes.fetching([(trust.AUTH, b"{}")], mine, 2**20)


async def copying(boxes: ImageBoxes, mine: Path) -> Box:
    return boxes.copying([], mine, None)


async def unpacking(boxes: ImageBoxes, mine: Path) -> Box:
    return await boxes.unpacking(mine, mine)


async def scanning(boxes: ImageBoxes, mine: Path) -> Box:
    return await boxes.scanning(mine, ())


async def making_disk(boxes: ImageBoxes, mine: Path) -> Box:
    return await boxes.making_disk(mine, mine)


@pytest.mark.parametrize(
    "asking", [fetching, copying, unpacking, scanning, making_disk]
)
async def test_a_program_sees_its_own_folder_and_nothing_else_of_the_host(
    asking: Asking, tmp_path: Path, numbers: UserNamespace
) -> None:
    for name in ("mine", "other"):
        (tmp_path / name).mkdir(0o777)
    box = await asking(ImageBoxes(image_rules(), numbers), tmp_path / "mine")
    assert await lists(box, f"ls {tmp_path}") == "mine\n"
    seen = set((await lists(box, "ls / /etc /run 2>/dev/null; true")).split())
    hidden = {"root", "home", "var", "shadow", "dbus", "sys"}
    assert not seen & hidden - set(tmp_path.parts)
    # umoci is told who root is; of the host's users, nothing.
    users = await lists(box, "cat /etc/passwd 2>/dev/null; true")
    assert users in {"", "root:x:0:0:root:/:/bin/false\n"}
    network = (await lists(box, "readlink /proc/self/ns/net")).strip()
    hosts = os.readlink("/proc/self/ns/net")
    assert (network == hosts) == (asking is fetching)
    assert await lists(box, "ls /proc | grep -c '^[0-9]'") < "9"


async def test_a_supervisor_that_root_alone_can_read_is_looked_into(
    tmp_path: Path, numbers: UserNamespace
) -> None:
    program = tmp_path / "program"
    program.write_bytes(Path("/usr/bin/true").read_bytes())
    program.chmod(0o700)
    found = await bundle_of(program, Path("/"), await numbers.root())
    assert found.interpreter is not None


# --- what is believed of what they leave


def wanted(*digests: str) -> Manifest:
    layers = tuple(Layer(digest, 1, "") for digest in digests)
    return Manifest("sha256:" + "0" * 64, digests[0], layers)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "images")
    cache.open()
    return cache


def test_a_layer_of_the_cache_can_be_read_by_the_next_fetch_and_not_written(
    cache: Cache, tmp_path: Path
) -> None:
    digest = "sha256:" + "a" * 64
    cache.blob(digest).write_text("layer")
    layout = FetchedLayout(tmp_path / "layout", cache)
    layout.make(wanted(digest), theirs=True)
    seen = tmp_path / "layout" / "blobs" / "sha256" / ("a" * 64)
    assert seen.stat().st_ino == cache.blob(digest).stat().st_ino
    assert (seen.stat().st_uid, stat.S_IMODE(seen.stat().st_mode)) == (0, 0o444)
    assert seen.parent.stat().st_uid == FIRST


def test_what_is_no_plain_file_never_becomes_the_caches(
    cache: Cache, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    layout = FetchedLayout(tmp_path / "layout", cache)
    digests = ["sha256:" + letter * 64 for letter in "abcde"]
    layout.make(wanted(*digests), theirs=True)
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    (blobs / ("b" * 64)).symlink_to(secret)
    os.mkfifo(blobs / ("c" * 64))
    os.link(secret, blobs / ("d" * 64))
    (blobs / "..evil").write_text("no digest")
    (blobs / ("e" * 64)).write_text("a layer")
    (blobs / ("f" * 64)).write_text("a layer of another image")
    layout.keep()
    assert [path.name for path in cache.all_blobs()] == ["e" * 64]
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


@pytest.mark.parametrize("where", ["blobs", "blobs/sha256"])
def test_a_folder_that_leads_elsewhere_leads_root_nowhere(
    where: str, cache: Cache, tmp_path: Path
) -> None:
    digest = "b" * 64
    host = tmp_path / "host"
    (host / "sha256").mkdir(parents=True)
    for place in (host, host / "sha256"):
        (place / digest).write_text('{"config": {}, "layers": []}')
        (place / digest).chmod(0o600)
    layout = FetchedLayout(tmp_path / "layout", cache)
    layout.make(wanted(f"sha256:{digest}"), theirs=True)
    index = {"manifests": [{"digest": f"sha256:{digest}"}]}
    (layout.path / "index.json").write_text(json.dumps(index))
    (layout.path / where).rename(layout.path / "aside")
    (layout.path / where).symlink_to(host)
    layout.keep()
    with pytest.raises(ImageError, match="not fetched as it should be"):
        layout.layers(None, "the-image")
    assert not cache.all_blobs()
    for place in (host, host / "sha256"):
        assert stat.S_IMODE((place / digest).stat().st_mode) == 0o600


def test_a_layout_with_other_layers_than_were_asked_for_is_not_used(
    cache: Cache, tmp_path: Path
) -> None:
    layout = FetchedLayout(tmp_path / "layout", cache)
    layout.make(wanted("sha256:" + "a" * 64), theirs=True)
    other = Layout(tmp_path / "other")
    other.image("it", [layer(entry("a", "1"))])
    for path in other.path.rglob("*"):
        if path.is_file():
            (layout.path / path.relative_to(other.path)).write_bytes(path.read_bytes())
    with pytest.raises(ImageError, match="was changed while"):
        layout.layers(wanted("sha256:" + "a" * 64), "the-image")


@pytest.mark.parametrize("kind", ["link", "pipe", "huge", "elsewhere", "absent"])
def test_an_index_that_leads_elsewhere_is_an_error_at_once(
    kind: str, cache: Cache, tmp_path: Path
) -> None:
    layout = FetchedLayout(tmp_path / "layout", cache)
    layout.make(wanted("sha256:" + "a" * 64), theirs=True)
    index = tmp_path / "layout" / "index.json"
    if kind == "link":
        index.symlink_to("/etc/passwd")
    elif kind == "pipe":
        os.mkfifo(index)
    elif kind == "huge":
        with index.open("wb") as file:
            file.truncate(2**40)
    elif kind == "elsewhere":
        index.write_text(json.dumps({"manifests": [{"digest": "sha256:../../x"}]}))
    with pytest.raises(ImageError, match="the-image"):
        layout.layers(None, "the-image")


@pytest.mark.parametrize("kind", ["link", "pipe", "second name", "folder"])
def test_what_a_program_left_is_taken_over_as_a_plain_file_only(
    kind: str, tmp_path: Path
) -> None:
    secret, left = tmp_path / "secret", tmp_path / "disk"
    secret.write_text("root's")
    secret.chmod(0o600)
    if kind == "link":
        left.symlink_to(secret)
    elif kind == "pipe":
        os.mkfifo(left)
    elif kind == "folder":
        left.mkdir()
    else:
        os.link(secret, left)
    with pytest.raises(OSError, match=r".+"):
        files.take_over(left, 0o444)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_a_tree_that_is_a_link_is_not_walked(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "tree").symlink_to(tmp_path / "there")
    with pytest.raises(NotADirectoryError):
        files.tidy(tmp_path / "tree")


def test_a_tree_is_removed_however_deep_it_is_and_nothing_behind_its_links(
    tmp_path: Path,
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "precious").touch()
    tree = tmp_path / "tree"
    tree.mkdir()
    at = os.open(tree, os.O_RDONLY)
    for _ in range(5000):
        os.symlink(kept, "way", dir_fd=at)
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    files.remove_tree(tree)
    assert not tree.exists()
    assert (kept / "precious").exists()


async def test_a_program_cannot_change_what_is_roots(
    tmp_path: Path, numbers: UserNamespace, cache: Cache
) -> None:
    digest = "sha256:" + "a" * 64
    cache.blob(digest).write_text("layer")
    layout = FetchedLayout(tmp_path / "layout", cache)
    layout.make(wanted(digest), theirs=True)
    box = await ImageBoxes(image_rules(), numbers).fetching([], layout.path, 2**20)
    blob = layout.path / "blobs" / "sha256" / ("a" * 64)
    tries = f"echo evil >{blob}; chmod 666 {blob}; chown 0 {blob}; rm {blob}"
    await lists(box, f"({tries}) 2>/dev/null")
    assert cache.blob(digest).read_text() == "layer"
    assert stat.S_IMODE(cache.blob(digest).stat().st_mode) == 0o444


# --- trust


def logins(path: Path, **registries: str) -> Path:
    auths = {
        name.replace("_", "."): {"auth": base64.b64encode(text.encode()).decode()}
        for name, text in registries.items()
    }
    path.write_text(json.dumps({"auths": auths}))
    return path


def shown(policy: ImagePolicy, registry: str) -> set[str]:
    return set(trust.credentials(policy, registry))


def test_credentials_are_shown_to_the_registry_that_was_asked_if_it_is_listed(
    tmp_path: Path,
) -> None:
    both = {"a_test": f"{USER}:{PASSWORD}", "b_test": "other:one"}
    auth = logins(tmp_path / "auth.json", **both)
    assert shown(image_rules(auth_file=auth), "a.test") == set()
    one = image_rules(auth_file=auth, credential_registries=("a.test",))
    assert shown(one, "a.test") == {"a.test"}
    assert shown(one, "b.test") == set()
    assert shown(one, "") == set()
    assert not [p for p, _ in trust.given(one, "b.test") if p == trust.AUTH]
    assert PASSWORD not in repr(trust.given(one, "b.test"))


def test_credentials_for_parts_of_a_registry_and_of_docker_hub_are_found(
    tmp_path: Path,
) -> None:
    auth = tmp_path / "auth.json"
    names = ["a.test/team", "https://index.docker.io/v1/", "a.test.evil"]
    auth.write_text(json.dumps({"auths": {name: {"auth": "eDp5"} for name in names}}))
    policy = image_rules(auth_file=auth, credential_registries=("a.test", "docker.io"))
    assert shown(policy, "a.test") == {"a.test/team"}
    assert shown(policy, "docker.io") == {"https://index.docker.io/v1/"}


def test_a_file_of_credentials_that_is_none_is_said_to_be_so(tmp_path: Path) -> None:
    auth = tmp_path / "auth.json"
    policy = image_rules(auth_file=auth, credential_registries=("a.test",))
    for content in (None, "[]", "{", '{"auths": 3}'):
        if content is not None:
            auth.write_text(content)
        with pytest.raises(ConfigError, match="image_auth_file"):
            trust.credentials(policy, "a.test")


def test_the_signature_policy_is_the_operators_else_the_hosts_else_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, hosts = tmp_path / "own.json", tmp_path / "policy.json"
    own.write_text("own")
    monkeypatch.setattr(trust, "HOST_POLICY", hosts)
    ours = json.loads(trust.signature_policy(image_rules()))
    assert ours["default"] == [{"type": "reject"}]
    assert set(ours["transports"]) == {
        *("docker", "oci", "containers-storage", "docker-daemon")
    }
    hosts.write_text("the host's")
    assert trust.signature_policy(image_rules()) == b"the host's"
    assert trust.signature_policy(image_rules(signature_policy=own)) == b"own"


@pytest.mark.parametrize("type_", ["reject", "insecureAcceptAnything", None])
async def test_the_policy_in_force_decides(
    type_: str | None, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = tmp_path / "policy.json"
    if type_:
        hosts.write_text(json.dumps({"default": [{"type": type_}]}))
    monkeypatch.setattr(trust, "HOST_POLICY", hosts)
    if type_ == "reject":
        assert "reject" in await bench.refused(layer(entry("a", "1")))
    else:
        await bench.disk(layer(entry("a", "1")))


def test_keys_that_a_signature_policy_names_are_given_with_it(tmp_path: Path) -> None:
    key, own = tmp_path / "key.gpg", tmp_path / "own.json"
    key.write_text("key")
    rule = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(key)}
    own.write_text(json.dumps({"default": [rule]}))
    assert (key, b"key") in trust.given(image_rules(signature_policy=own), "a.test")


async def test_what_root_alone_may_read_is_given_as_a_copy(
    tmp_path: Path, numbers: UserNamespace
) -> None:
    box = Box(await numbers.root(), given=((trust.AUTH, b"secret"),))
    assert await lists(box, f"cat {trust.AUTH}") == "secret"
    assert "secret" not in " ".join(box.around(["true"], [7]))
    mine = tmp_path / "mine"
    mine.write_text("x")
    give(mine)
    assert await lists(Box(User(0, 0), read=(mine,)), f"cat {mine}") == "x"


def test_doctor_is_told_which_policy_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.json"
    monkeypatch.setattr(trust, "HOST_POLICY", tmp_path / "absent")
    assert trust.policy_in_force(image_rules()).startswith("vmdriver's own: any image")
    policy = image_rules(signature_policy=own)
    for broken in ("{", "[]", "{}", '{"default": [3]}'):
        own.write_text(broken)
        with pytest.raises(ConfigError, match="image_signature_policy"):
            trust.policy_in_force(policy)
    own.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    assert trust.policy_in_force(policy).endswith("default insecureAcceptAnything")
