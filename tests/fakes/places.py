"""Names of files that are in no file system."""

from __future__ import annotations

from vmdriver.lifecycle.ports.paths import BootChoice, SandboxPaths


class FakePlaces:
    layers = 0

    def boot(self) -> BootChoice:
        return BootChoice("/kernel", "/initramfs", "boot")

    def paths(self, sandbox_id: str) -> SandboxPaths:
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
                    ),
                )
            )
        )

    def new_layer(self, sandbox_id: str) -> str:
        self.layers += 1
        return f"layers/{sandbox_id}.{self.layers}.{id(self)}.qcow2"
