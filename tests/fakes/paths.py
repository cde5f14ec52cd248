"""Names of files that are in no file system."""

from __future__ import annotations

import itertools

from vmdriver.lifecycle.ports.paths import BootChoice, SandboxPaths
from vmdriver.model.plan import MachineUser

_made = itertools.count()


class FakePaths:
    """A layer's name is never used twice, also by the next driver: not one by what is at an
    address of memory, which may be given again.
    """

    def boot(self) -> BootChoice:
        return BootChoice("/kernel", "/initramfs", "boot", ("volumes", "host_mounts"))

    def of(self, sandbox_id: str) -> SandboxPaths:
        return SandboxPaths(
            *(
                f"{sandbox_id}/{name}"
                for name in (
                    *("seed.img", "status.img", "console.log", "suspended"),
                    *(
                        "mapped",
                        "not-restored",
                        "snapshots",
                        "capture.part",
                        "load.image",
                        "folders",
                    ),
                )
            )
        )

    def new_layer(self, sandbox_id: str, user: MachineUser | None) -> str:
        return f"layers/{sandbox_id}.{next(_made)}.qcow2"

    def volume_copy(self, sandbox_id: str, user: MachineUser | None) -> str:
        return f"layers/{sandbox_id}.{next(_made)}.raw"

    def volume(self, volume_id: str) -> str:
        return f"volumes/{volume_id}/disk.raw"
