"""Asks registries and other image stores, and fetches from them, with skopeo."""

from __future__ import annotations

from pathlib import Path

from vmdriver.errors import CommandError, ImageError
from vmdriver.host import facts, process
from vmdriver.host.retry import retried
from vmdriver.oci import refusals
from vmdriver.oci.policy import ImagePolicy, Source

_ASK_DEADLINE_S = 120.0
IMAGE = "image"
"""Tag of the image in a layout that was fetched."""


class Skopeo:
    """With the operator's credentials, mirrors, certificates and signature policy. Every call
    raises NotFound, Refused (denied) or ImageError.
    """

    def __init__(self, policy: ImagePolicy) -> None:
        self._policy = policy

    async def manifest(self, source: Source) -> bytes:
        """The manifest or index, byte for byte."""
        return await self._inspect(source, "--raw")

    async def config(self, source: Source) -> bytes:
        """The image's configuration, byte for byte."""
        return await self._inspect(source, "--raw", "--config")

    async def _inspect(self, source: Source, *what: str) -> bytes:
        command = [*self._program(), "inspect", *what, *self._access(source, "")]
        return await self._run([*command, source.name], source, _ASK_DEADLINE_S)

    async def copy(self, source: Source, layout: Path) -> None:
        """Fetch into an OCI layout, several layers at a time. What is in its `blobs` is not
        fetched again.
        """
        command = [
            *self._program(),
            *(["--policy", str(p)] if (p := self._policy.signature_policy) else []),
            *("copy", "--quiet", "--dest-oci-accept-uncompressed-layers"),
            *self._access(source, "src-"),
            source.name,
            f"oci:{layout}:{IMAGE}",
        ]
        await self._run(command, source, self._policy.fetch_deadline_s)

    def _program(self) -> list[str]:
        architecture = facts.oci_architecture()
        command = ["skopeo", "--override-os", "linux", "--override-arch", architecture]
        conf = self._policy.registries_conf
        # Not in its --help; the variable CONTAINERS_REGISTRIES_CONF is not heeded (1.9.3).
        return [*command, *(["--registries-conf", str(conf)] if conf else [])]

    def _access(self, source: Source, prefix: str) -> list[str]:
        policy, found = self._policy, []
        if policy.auth_file is not None:
            found += ["--authfile", str(policy.auth_file)]
        if not source.registry:
            return found
        if source.registry in policy.insecure_registries:
            # Never "true": that would overrule what registries.conf says of mirrors.
            found.append(f"--{prefix}tls-verify=false")
        if policy.certificates is not None:
            directory = policy.certificates / source.registry
            if directory.is_dir():
                found += [f"--{prefix}cert-dir", str(directory)]
        return found

    async def _run(
        self, command: list[str], source: Source, deadline_s: float
    ) -> bytes:
        async def attempt() -> process.Completed:
            try:
                return await process.run(command, deadline_s=deadline_s)
            except CommandError as error:
                if refusals.is_passing(error):
                    raise ImageError(
                        f"the registry did not answer: {error}", detail=error.detail
                    ) from error
                raise  # a plain no is final

        try:
            done = await retried(attempt, on=ImageError, attempts=3)
        except CommandError as error:
            raise refusals.translated(source.name, error) from error
        return done.stdout
