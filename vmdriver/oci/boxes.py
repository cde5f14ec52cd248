"""The boxes of the programs that turn an image into a disk: each sees what it works on, and nothing
else of the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vmdriver.host.confined.box import Box, Limits, User
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.oci.policy import ImagePolicy

_MIB = 2**20
_MEMORY = 4 * 2**30
_SCAN_MEMORY = 512 * _MIB
"""Headers are read into memory, and may say that they are as large as they like. zstd takes no more
than 128 MiB for what it looks back to.
"""
_RESOLVER = (
    "resolv.conf",
    "hosts",
    "host.conf",
    "nsswitch.conf",
    "gai.conf",
    "services",
)
_TRUSTED = ("/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted")
_NAMES = (
    (Path("/etc/passwd"), b"root:x:0:0:root:/:/bin/false\n"),
    (Path("/etc/group"), b"root:x:0:\n"),
    (Path("/etc/nsswitch.conf"), b"passwd: files\ngroup: files\n"),
)
"""umoci asks for the name of each file's owner, again and again where there is none: a sixth of
all that unpacking took.
"""
_ROOT = User(0, 0)
"""Without any capability: reads what is root's alone."""
_STOREKEEPER = User(
    0, 0, ("chown", "dac_override", "fowner", "fsetid", "mknod", "setfcap", "sys_admin")
)
"""containers-storage mounts layers on each other (containers/storage's overlay driver)."""
_STORES = {
    "docker-daemon": (Path("/var/run/docker.sock"),),
    "containers-storage": (
        Path("/var/lib/containers/storage"),
        Path("/run/containers/storage"),
    ),
}


class ImageBoxes:
    """Makes them. `numbers`: who the programs are that unpack."""

    def __init__(self, policy: ImagePolicy, numbers: UserNamespace) -> None:
        self._policy, self._numbers = policy, numbers

    async def fetching(
        self, given: Sequence[tuple[Path, bytes]], layout: Path | None, largest: int
    ) -> Box:
        """For skopeo at a registry: the host's network, how names are resolved there, whose
        certificates are trusted; its configuration as copies; the layout that it fills, with files
        of `largest` bytes at most.
        """
        return Box(
            await self._numbers.root(),
            write=(layout,) if layout else (),
            read_if_there=tuple(
                Path(path)
                for path in (*(f"/etc/{name}" for name in _RESOLVER), *_TRUSTED)
            ),
            given=tuple(given),
            network=True,
            limits=self._limits(_MEMORY, min(largest, self._policy.max_content)),
        )

    def copying(
        self, given: Sequence[tuple[Path, bytes]], source: Path, layout: Path | None
    ) -> Box:
        """For skopeo at an image in a directory of the operator's, which root alone may be able to
        read: no network.
        """
        return Box(
            _ROOT,
            read=(source,),
            write=(layout,) if layout else (),
            given=tuple(given),
            limits=self._limits(_MEMORY),
        )

    def from_store(
        self, given: Sequence[tuple[Path, bytes]], store: str, layout: Path | None
    ) -> Box:
        """For skopeo at the store of a container engine of this host, which the operator has
        listed: the store, and what its files ask of root; no network.
        """
        engine = store == "docker-daemon"
        return Box(
            _ROOT if engine else _STOREKEEPER,
            write=(*_STORES[store], *((layout,) if layout else ())),
            read_if_there=(Path("/etc/containers/storage.conf"),),
            given=tuple(given),
            limits=self._limits(_MEMORY),
        )

    async def decompressing(self, layer: Path, place: Path, most: int) -> Box:
        """For zstd: one layer, and the folder that is to have it as an archive of `most` bytes."""
        root = await self._numbers.root()
        return Box(root, (layer,), (place,), limits=self._limits(_SCAN_MEMORY, most))

    async def unpacking(self, layout: Path, target: Path) -> Box:
        """For umoci: the layout, and the folder that is to have the tree."""
        root = await self._numbers.root()
        limits = self._limits(_MEMORY)
        return Box(root, (layout,), (target,), given=_NAMES, limits=limits)

    async def scanning(self, layout: Path, needed: Sequence[Path]) -> Box:
        """For our scan: the layout, and what the interpreter needs."""
        root = await self._numbers.root()
        limits = self._limits(_SCAN_MEMORY)
        return Box(root, read=(layout, *needed), limits=limits)

    async def making_disk(self, tree: Path, place: Path) -> Box:
        """For mke2fs: the tree, its configuration, and the folder that is to have the disk."""
        return Box(
            await self._numbers.root(),
            read=(tree,),
            read_if_there=(Path("/etc/mke2fs.conf"),),
            write=(place,),
            limits=self._limits(_MEMORY, 2 * self._policy.max_content + 2**30),
        )

    def _limits(self, memory: int, file_size: int = 0) -> Limits:
        """The file size is of one file: a hostile one cannot fill the disk between two looks."""
        return Limits(
            cpu_s=int(self._policy.build_deadline_s),
            address_space=memory,
            file_size=file_size or self._policy.max_content,
        )
