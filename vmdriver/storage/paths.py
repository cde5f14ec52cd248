"""Which files a launch uses: implements lifecycle.ports.paths.Paths on the state directory."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from vmdriver.lifecycle.ports.paths import BootChoice, SandboxPaths
from vmdriver.model.plan import MachineUser
from vmdriver.storage.layout import Layout
from vmdriver.storage.programs import boot


@dataclass(frozen=True)
class FilePaths:
    """Implements lifecycle.ports.paths.Paths."""

    layout: Layout

    def boot(self) -> BootChoice:
        found = boot.load(self.layout.boot)
        kernel, initramfs = str(found.kernel), str(found.initramfs)
        return BootChoice(kernel, initramfs, found.digest, found.knows)

    def of(self, sandbox_id: str) -> SandboxPaths:
        files = self.layout.sandbox(sandbox_id)
        return SandboxPaths(
            seed=str(files.seed),
            status=str(files.status),
            console=str(files.console),
            suspended=str(files.suspended),
            mapped=str(files.mapped),
            kept=str(files.kept),
            snapshots=str(files.snapshots),
            part=str(files.part),
            scratch=str(files.scratch),
            folders=str(files.folders),
        )

    def new_layer(self, sandbox_id: str, user: MachineUser | None) -> str:
        folder = self.layout.layers / str(user.uid if user else "")
        return str(folder / f"{sandbox_id}.{secrets.token_hex(4)}.qcow2")

    def volume_copy(self, sandbox_id: str, user: MachineUser | None) -> str:
        return self.new_layer(sandbox_id, user).removesuffix(".qcow2") + ".raw"

    def volume(self, volume_id: str) -> str:
        return str(self.layout.volume(volume_id).disk)
