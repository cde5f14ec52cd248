"""Images as directories: several who want one at once, and what a killed driver left of one."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from tests.contract import test_images
from tests.contract.test_images import opened, push, registry
from tests.fakes.settings import image_rules

images = test_images.layout


async def test_several_who_want_an_image_as_a_directory_at_once_get_one(
    tmp_path: Path, images: Path
) -> None:
    with registry(tmp_path / "registry") as address:
        push(images, "tiny", f"{address}/sup:1")
        async for store in opened(tmp_path / "store", image_rules((address,))):
            found = await asyncio.gather(
                *(
                    store.tree(f"{address}/sup:1", f"o{n}", lambda _: None)
                    for n in range(6)
                )
            )
            assert len(set(found)) == 1
            tree = found[0][0]
            assert (tree / "etc" / "hello").read_text() == "hello\n"
            assert len(list((store.root / "trees").iterdir())) == 1
            assert not list(store.root.glob(".work-*"))


async def test_a_directory_that_was_half_removed_is_made_anew_and_never_given_away(
    tmp_path: Path, images: Path
) -> None:
    with registry(tmp_path / "registry") as address:
        push(images, "tiny", f"{address}/sup:1")
        async for store in opened(tmp_path / "store", image_rules((address,))):
            tree, _ = await store.tree(f"{address}/sup:1", "x", lambda _: None)
            (tree.parent / "source.json").unlink()  # as a removal begins
            shutil.rmtree(tree / "etc")
            again, _ = await store.tree(f"{address}/sup:1", "x", lambda _: None)
            assert again == tree
            assert (again / "etc" / "hello").read_text() == "hello\n"
