"""Asks registries and other image stores, and fetches from them, with skopeo."""

from __future__ import annotations

from pathlib import Path

from vmdriver.errors import CommandError, ImageError
from vmdriver.host import facts, process
from vmdriver.host.confined.box import Box
from vmdriver.host.retry import retried
from vmdriver.host.threads import Threads
from vmdriver.oci import refusals, trust
from vmdriver.oci.boxes import ImageBoxes
from vmdriver.oci.fetched import IMAGE
from vmdriver.oci.manifest import Manifest
from vmdriver.oci.policy import ImagePolicy, Source

_ASK_DEADLINE_S = 120.0
SLACK = 16 * 2**20
"""Bytes that may come beyond what a manifest says: it and the configuration are files, too."""
Given = list[tuple[Path, bytes]]


class Skopeo:
    """With the operator's credentials, mirrors, certificates and signature policy. Every call
    raises NotFound, Refused (denied), ImageError or ConfigError.
    """

    def __init__(
        self, policy: ImagePolicy, boxes: ImageBoxes, threads: Threads
    ) -> None:
        self._policy, self._boxes, self._threads = policy, boxes, threads

    async def manifest(self, source: Source) -> bytes:
        """The manifest or index, byte for byte."""
        return await self._inspect(source, "--raw")

    async def config(self, source: Source) -> bytes:
        """The image's configuration, byte for byte."""
        return await self._inspect(source, "--raw", "--config")

    async def _inspect(self, source: Source, *what: str) -> bytes:
        given = await self._threads.run(trust.given, self._policy, source.registry)
        command = [
            *self._program(given),
            *("inspect", *what, *self._access(source, given, "")),
            source.name,
        ]
        box = await self._box(source, given, None)
        return await self._run(command, source, _ASK_DEADLINE_S, box)

    async def copy(self, source: Source, layout: Path, wanted: Manifest) -> None:
        """Fetch into an OCI layout, several layers at a time. What is in its `blobs` is not
        fetched again. Of a registry, no file becomes larger than what is `wanted`.
        """
        given = await self._threads.run(trust.given, self._policy, source.registry)
        command = [
            *self._program(given),
            *("--policy", str(trust.POLICY), "--tmpdir", str(layout)),
            *("copy", "--quiet", "--dest-oci-accept-uncompressed-layers"),
            *self._access(source, given, "src-"),
            source.name,
            f"oci:{layout}:{IMAGE}",
        ]
        largest = max((layer.size for layer in wanted.layers), default=0) + SLACK
        box = await self._box(source, given, layout, largest)
        await self._run(command, source, self._policy.fetch_deadline_s, box)

    async def _box(
        self, source: Source, given: Given, layout: Path | None, largest: int = SLACK
    ) -> Box:
        if source.registry:
            return await self._boxes.fetching(given, layout, largest)
        if source.directory is not None:
            return self._boxes.copying(given, source.directory, layout)
        return self._boxes.from_store(given, source.name.partition(":")[0], layout)

    def _program(self, given: Given) -> list[str]:
        architecture = facts.oci_architecture()
        command = ["skopeo", "--override-os", "linux", "--override-arch", architecture]
        # Not in its --help; the variable CONTAINERS_REGISTRIES_CONF is not heeded (1.9.3).
        conf = ["--registries-conf", str(trust.REGISTRIES)]
        return [*command, *(conf if _has(given, trust.REGISTRIES) else [])]

    def _access(self, source: Source, given: Given, prefix: str) -> list[str]:
        found = []
        if _has(given, trust.AUTH):
            found += ["--authfile", str(trust.AUTH)]
        if source.registry in self._policy.insecure_registries:
            # Never "true": that would overrule what registries.conf says of mirrors.
            found.append(f"--{prefix}tls-verify=false")
        if _has(given, trust.CERTIFICATES):
            found += [f"--{prefix}cert-dir", str(trust.CERTIFICATES)]
        return found

    async def _run(
        self, command: list[str], source: Source, deadline_s: float, box: Box
    ) -> bytes:
        async def attempt() -> process.Completed:
            try:
                return await self._once(command, source, deadline_s, box)
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

    async def _once(
        self, command: list[str], source: Source, deadline_s: float, box: Box
    ) -> process.Completed:
        proxies = self._policy.proxies
        environment = proxies.environment if source.registry else {}
        try:
            return await process.run(
                command, deadline_s=deadline_s, box=box, environment=environment
            )
        except CommandError as error:
            error.message = proxies.hidden(error.message)
            error.detail = proxies.hidden(error.detail)
            error.args = (error.message,)
            raise


def _has(given: Given, path: Path) -> bool:
    return any(found == path or path in found.parents for found, _ in given)
