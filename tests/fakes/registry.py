"""A real registry (docker-registry) on loopback, for the demo and the system tests."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def registry(directory: Path) -> Iterator[str]:
    """Serve `directory`; yields host:port."""
    directory.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    config = directory / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: '{directory}/data'}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )
    with (directory / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=log, stderr=log
        )
        try:
            _wait(address, process)
            yield address
        finally:
            process.terminate()
            process.wait()


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    host, _, port = address.partition(":")
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError(f"docker-registry ended with {process.returncode}")
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host, int(port)), 1),
        ):
            return
        time.sleep(0.05)
    raise TimeoutError("docker-registry did not start")


def push(layout: Path, tag: str, target: str, *options: str) -> None:
    """Copy an image from an OCI layout into the registry."""
    subprocess.run(
        [
            "skopeo",
            "copy",
            "--quiet",
            *options,
            "--dest-tls-verify=false",
            f"oci:{layout}:{tag}",
            f"docker://{target}",
        ],
        check=True,
        capture_output=True,
    )
