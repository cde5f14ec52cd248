"""A real registry (docker-registry) on loopback, for the demo and the system tests."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.fakes.ports import free_port


@contextlib.contextmanager
def registry(directory: Path, *, guarded: bool = False) -> Iterator[str]:
    """Serve `directory`; yields host:port. `guarded`: with TLS (its own CA in certs/) and for
    USER with PASSWORD only.
    """
    directory.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    config = directory / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: '{directory}/data'}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{address}'{_guard(directory, address) if guarded else '}'}\n"
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


USER, PASSWORD = "robot", "hush-hush"


def _guard(directory: Path, address: str) -> str:
    """Makes certificates and a password file; the rest of the configuration's http section."""
    certs = directory / "certs" / address
    certs.mkdir(parents=True)
    make_certificate(certs, "IP:127.0.0.1")
    salt = "$2b$05$" + "abcdefghijklmnopqrstuu"
    program = "print crypt($ENV{PASSWORD}, $ENV{SALT})"
    hashed = subprocess.run(
        ["perl", "-e", program],
        env={"PASSWORD": PASSWORD, "SALT": salt},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (directory / "htpasswd").write_text(f"{USER}:{hashed}\n")
    tls = f"certificate: '{certs}/server.crt', key: '{certs}/server.pem'"
    return (
        f", tls: {{{tls}}}}}\n"
        f"auth: {{htpasswd: {{realm: test, path: '{directory}/htpasswd'}}}}"
    )


def make_certificate(directory: Path, name: str) -> None:
    """A CA of its own, ca.crt, and server.crt with server.pem (its key) for one name."""

    def openssl(*arguments: object) -> None:
        command = ["openssl", *(str(argument) for argument in arguments)]
        subprocess.run(command, check=True, capture_output=True, cwd=directory)

    new = ("req", "-newkey", "rsa:2048", "-nodes", "-subj")
    openssl(
        *new,
        "/CN=test CA",
        "-x509",
        "-days",
        "2",
        "-keyout",
        "ca.pem",
        "-out",
        "ca.crt",
    )
    openssl(*new, "/CN=registry", "-keyout", "server.pem", "-out", "server.csr")
    (directory / "names").write_text(f"subjectAltName={name}\n")
    sign = ("-CA", "ca.crt", "-CAkey", "ca.pem", "-CAcreateserial", "-days", "2")
    openssl(
        "x509",
        "-req",
        "-in",
        "server.csr",
        *sign,
        "-extfile",
        "names",
        "-out",
        "server.crt",
    )
    for left in (
        "ca.pem",
        "names",
        "server.csr",
    ):  # a .key beside a .crt would be a client's
        (directory / left).unlink()


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
