"""What a TLS connection is made with, of the operator's files."""

from __future__ import annotations

import hashlib
import os
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

from vmdriver.errors import ConfigError
from vmdriver.service.tls.keys import Keys, Side

PROTOCOL = "h2"
"""What gRPC speaks inside (RFC 7301); anything else is somebody else's."""
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; those of 1.3 are all of that kind."""


def context(keys: Keys, side: Side) -> ssl.SSLContext:
    """Whoever connects by it has been asked for a certificate of `tls_ca`'s, in TLS 1.2 or 1.3; no
    session is taken up again, since that would ask nobody. ConfigError names setting and way out.
    """
    for setting, path in (*keys.trust(), *keys.own()):
        _check_readable(setting, path)
    _check_closed(keys.key)
    server = side is Side.SERVER
    made = ssl.SSLContext(
        ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
    )
    made.verify_mode = ssl.CERT_REQUIRED
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(_CIPHERS)
    made.set_alpn_protocols([PROTOCOL])
    made.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    if server:
        made.num_tickets = 0
    else:
        made.hostname_checks_common_name = False
    _load_trust(made, keys)
    _load_own(made, keys)
    return made


def digest(files: Iterator[tuple[str, Path]]) -> bytes:
    """Of what is in them. ConfigError, OSError."""
    found = hashlib.sha256()
    for setting, path in files:
        _check_readable(setting, path)
        data = path.read_bytes()
        found.update(len(data).to_bytes(8) + data)
    return found.digest()


def _load_trust(made: ssl.SSLContext, keys: Keys) -> None:
    try:
        made.load_verify_locations(cafile=keys.ca)
    except (ssl.SSLError, OSError) as error:
        raise _unusable("tls_ca", keys.ca, "certificates", error) from error
    if not made.cert_store_stats()["x509_ca"]:
        raise ConfigError(
            f"tls_ca: {keys.ca} holds no certificate of an authority",
            resolution="name the CA's own certificate there (docs/remote.md makes one)",
        )
    if keys.crl is None:
        return
    authorities = made.cert_store_stats()["x509"]
    try:
        made.load_verify_locations(cafile=keys.crl)
    except (ssl.SSLError, OSError) as error:
        raise _unusable("tls_crl", keys.crl, "lists of revocations", error) from error
    if not made.cert_store_stats()["crl"]:
        raise ConfigError(
            f"tls_crl: {keys.crl} holds no list of revocations",
            resolution="write one with openssl ca -gencrl (docs/remote.md)",
        )
    if made.cert_store_stats()["x509"] != authorities:
        # A list is signed and may come by any way; a certificate in it would be trusted.
        raise ConfigError(
            f"tls_crl: {keys.crl} holds certificates that are not in {keys.ca}",
            resolution="leave only lists of revocations in it; authorities are for tls_ca",
        )
    made.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN


def _load_own(made: ssl.SSLContext, keys: Keys) -> None:
    try:
        made.load_cert_chain(keys.certificate, keys.key, password=_no_password)
    except _Encrypted as error:
        raise ConfigError(
            f"tls_key: {keys.key} is encrypted, and nobody is asked for its password",
            resolution="store it without one, readable by the driver's user only",
        ) from error
    except (ssl.SSLError, OSError) as error:
        if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"tls_key: {keys.key} is not the key of {keys.certificate}",
                resolution="set tls_certificate and tls_key to files that were made together",
            ) from error
        what = f"a certificate, with its key in {keys.key}"
        raise _unusable("tls_certificate", keys.certificate, what, error) from error


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    """OpenSSL would ask at a terminal."""
    raise _Encrypted


def _check_readable(setting: str, path: Path) -> None:
    """Nobody is waited for: who opens a pipe otherwise stands until somebody writes into it."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            kind = os.fstat(opened).st_mode
        finally:
            os.close(opened)
    except OSError as error:
        raise ConfigError(
            f"{setting}: {path} cannot be read: {error.strerror}",
            resolution=f"put it there, or set {setting} to where it is",
        ) from error
    if not stat.S_ISREG(kind):
        raise ConfigError(
            f"{setting}: {path} is not a plain file", resolution=f"set {setting} to one"
        )


def _check_closed(key: Path) -> None:
    """A key that others read is theirs, too."""
    info = key.stat()
    if info.st_mode & 0o077:
        raise ConfigError(
            f"tls_key: {key} is open to others than its owner "
            f"(mode {stat.S_IMODE(info.st_mode):04o})",
            resolution=f"chmod 0600 {key}; if others may have read it, make a new one",
        )
    if info.st_uid not in {0, os.geteuid()}:
        raise ConfigError(
            f"tls_key: {key} belongs to uid {info.st_uid}, not to us",
            resolution=f"chown {os.geteuid()} {key}",
        )


def _unusable(setting: str, path: Path, what: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"{setting}: {path} cannot be read as {what} (PEM)",
        detail=str(error),
        resolution="make it anew (docs/remote.md)",
    )
