"""Published names: resolved once with skopeo and a registry, and what they were then from there on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.hostile_registry import hostile_registry
from tests.fakes.oci_layout import Layout, entry, layer
from tests.fakes.registry import push, registry
from tests.fakes.settings import image_rules
from vmdriver.config import config_of
from vmdriver.config.views import image_policy
from vmdriver.errors import HostError, ImageError, NotFound
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.threads import Threads
from vmdriver.oci import files
from vmdriver.oci.image_service import KEPT, ImageService
from vmdriver.oci.kept import KeptNames

BEFORE, AFTER = "what it was\n", "what it is\n"


class Published:
    """A registry with images of two names, and stores that keep the one of them."""

    def __init__(self, root: Path, address: str) -> None:
        self.root, self.address = root, address
        self.layout = Layout(root / "layout")
        self.before = self.layout.image("before", [layer(entry("said", BEFORE))])
        self.after = self.layout.image("after", [layer(entry("said", AFTER))])
        self.name = f"{address}/base:latest"
        self.moving = f"{address}/moving:latest"
        for name in (self.name, self.moving):
            push(self.layout.path, "before", name)

    def move(self) -> None:
        """Both tags mean something else from now on."""
        for name in (self.name, self.moving):
            push(self.layout.path, "after", name)

    def store(self) -> ImageService:
        """As the next driver has it."""
        repositories = (f"{self.address}/base", f"{self.address}/supervisor")
        policy = image_rules(
            (self.address,), refresh_s=0, kept_repositories=repositories
        )
        threads = Threads("kept", 2)
        return ImageService(
            self.root / "store", threads, policy, numbers=UserNamespace()
        )

    def kept(self) -> dict[str, str]:
        return json.loads((self.root / "store" / KEPT).read_text())


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Published]:
    with registry(tmp_path / "registry") as address:
        yield Published(tmp_path, address)


async def test_a_published_name_stays_what_it_was_until_it_is_asked_for_again(
    published: Published,
) -> None:
    store = published.store()
    await store.open()
    first = await store.prepare(published.name, "s", lambda _: None)
    assert first.digest == published.before
    assert published.kept() == {published.name: published.before}
    published.move()
    for same in (store, published.store()):
        again = await same.prepare(published.name, "s", lambda _: None)
        assert again.digest == published.before, "also by the next driver"
    moving = await store.prepare(published.moving, "s", lambda _: None)
    assert moving.digest == published.after, "others are what they are now"
    new = await store.prepare(published.name, "s", lambda _: None, again=True)
    assert new.digest == published.after
    assert published.kept() == {published.name: published.after}
    await store.close()


async def test_what_a_name_is_kept_to_is_fetched_once_more_where_the_cache_has_lost_it(
    published: Published,
) -> None:
    store = published.store()
    await store.open()
    first = await store.prepare(published.name, "s", lambda _: None)
    published.move()
    store.release("s")
    Path(first.path).with_suffix(".json").unlink()
    again = await published.store().prepare(published.name, "s", lambda _: None)
    assert again.digest == published.before


async def test_a_kept_image_needs_no_registry(tmp_path: Path) -> None:
    with registry(tmp_path / "registry") as address:
        published = Published(tmp_path, address)
        store = published.store()
        await store.open()
        await store.prepare(published.name, "s", lambda _: None)
        _, digest = await store.tree(published.name, "supervisor", lambda _: None)
        assert digest == published.before
    offline = published.store()
    disk = await offline.prepare(published.name, "s", lambda _: None)
    tree, digest = await offline.tree(published.name, "supervisor", lambda _: None)
    assert (disk.digest, digest) == (published.before, published.before)
    assert (tree / "said").read_text() == BEFORE
    with pytest.raises(HostError):
        await offline.prepare(published.moving, "s", lambda _: None)
    with pytest.raises(HostError):
        await offline.prepare(published.name, "s", lambda _: None, again=True)
    assert published.kept() == {published.name: published.before}, "nothing is lost"


async def test_a_name_that_is_not_there_is_kept_to_nothing(
    published: Published,
) -> None:
    store = published.store()
    await store.open()
    with pytest.raises(NotFound):
        await store.prepare(f"{published.address}/base:gone", "s", lambda _: None)
    assert not (published.root / "store" / KEPT).exists()


@pytest.mark.parametrize("content", ["{", "[]", "7", ""])
def test_a_damaged_file_of_names_counts_for_nothing(
    content: str, tmp_path: Path
) -> None:
    path = tmp_path / KEPT
    path.write_text(content)
    names = KeptNames(path, ("example.org/base",))
    assert names.digest("example.org/base:1") == ""
    names.keep("example.org/base:1", "sha256:" + "0" * 64)
    assert KeptNames(path, ("example.org/base",)).last("example.org/base:") != ""


def test_only_what_upstream_publishes_is_kept_and_only_while_nothing_else_is_set() -> (
    None
):
    default = image_policy(config_of({})).kept_repositories
    assert default == (
        "ghcr.io/nvidia/openshell-community/sandboxes/base",
        "ghcr.io/nvidia/openshell/supervisor",
    )
    own = config_of({"default_image": "example.org/a:1", "supervisor_image": ""})
    assert image_policy(own).kept_repositories == ()


def test_the_last_name_of_a_beginning_is_the_one_that_was_kept_last(
    tmp_path: Path,
) -> None:
    names = KeptNames(tmp_path / KEPT, ("example.org/s",))
    for tag in ("1", "2", "1"):
        names.keep(f"example.org/s:{tag}", f"sha256:{tag * 64}")
    names.keep("example.org/other:3", "sha256:" + "3" * 64)
    assert names.last("example.org/s:") == "example.org/s:2"
    names.keep("example.org/s:1", "sha256:" + "9" * 64)
    assert names.last("example.org/s:") == "example.org/s:1"


def test_two_names_that_are_kept_at_once_are_both_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a driver's first create does: its image, and the supervisor's."""
    names = KeptNames(tmp_path / KEPT, ("example.org/a", "example.org/b"))
    inside, publish = threading.Semaphore(0), files.publish
    failed: list[BaseException] = []

    def slow(*arguments: Any, **named: Any) -> None:
        inside.release()
        # The other one, if it gets that far; it does not where one is kept after the other.
        both.wait(0.5)
        publish(*arguments, **named)

    def keep(name: str) -> None:
        try:
            names.keep(f"example.org/{name}:1", f"sha256:{name * 64}")
        except BaseException as error:
            failed.append(error)

    both = threading.Event()
    monkeypatch.setattr(files, "publish", slow)
    threads = [threading.Thread(target=keep, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    assert inside.acquire(timeout=5)
    if inside.acquire(timeout=0.3):
        both.set()
    for thread in threads:
        thread.join(10)
    assert failed == []
    again = KeptNames(tmp_path / KEPT, ("example.org/a", "example.org/b"))
    for name in "ab":
        assert again.digest(f"example.org/{name}:1") == f"sha256:{name * 64}"


async def test_a_registry_that_sends_something_else_for_a_digest_moves_no_kept_name(
    tmp_path: Path,
) -> None:
    with hostile_registry() as hostile:
        name = f"{hostile.address}/base:1"
        rules = image_rules(
            (hostile.address,),
            refresh_s=0,
            kept_repositories=(f"{hostile.address}/base",),
        )
        store = ImageService(
            tmp_path / "store", Threads("kept", 2), rules, numbers=UserNamespace()
        )
        await store.open()
        first = hostile.image("base", [])
        (tmp_path / "store" / KEPT).write_text(json.dumps({name: first}))
        other = hostile.image("base", [], b"{}")
        answers = hostile.answers
        answers[f"base/manifests/{first}"] = answers[f"base/manifests/{other}"]
        for reference in (name, f"{hostile.address}/base@{first}"):
            with pytest.raises(ImageError, match=f"its manifest is not {first}"):
                await store.prepare(reference, "s", lambda _: None)
            with pytest.raises(ImageError, match=f"its manifest is not {first}"):
                await store.tree(reference, "s", lambda _: None)
        kept = json.loads((tmp_path / "store" / KEPT).read_text())
        assert kept == {name: first}
        await store.close()
