"""What is in certificates and lists of revocations: names, until when, and whether they hold."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import ssl
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vmdriver.errors import ConfigError
from vmdriver.service.tls.context import context
from vmdriver.service.tls.keys import Keys, Side

Decoded = Mapping[str, Any]
"""As SSLSocket.getpeercert() says it."""
_CRL = re.compile(rb"-----BEGIN X509 CRL-----(.+?)-----END X509 CRL-----", re.DOTALL)
_SEQUENCE, _INTEGER = 0x30, 0x02
_TIMES = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
"""UTCTime and GeneralizedTime, as RFC 5280 has them in a list of revocations."""

_CLOCK = "set this host's clock, if it is slow, or wait"
_OF_LISTS = {3, 8, 11, 12}
_WAYS_OUT = {
    2: "put the authority above it into tls_ca, too, up to one that has signed itself",
    3: "put a list of each authority of the chain into it",
    8: "have lists say whose they are (crl_extensions with an authorityKeyIdentifier), or give "
    "each authority a name of its own",
    9: _CLOCK,
    10: "have tls_ca's authority sign a new one; it is taken up by itself",
    11: _CLOCK,
    12: "write a new list (openssl ca -gencrl); it is taken up by itself",
    20: "use one that tls_ca's authority has signed, with the certificates of authorities in "
    "between behind it, in the same file",
    23: "have another one signed, with a new key",
    26: "have one signed with extendedKeyUsage={usage}",
}
"""X509_V_ERR_… of openssl/x509_vfy.h."""


@dataclass(frozen=True)
class Validity:
    """Of one thing that ends by itself. `setting`: in whose file it is."""

    setting: str
    name: str
    until: datetime


def names_of(found: Decoded) -> frozenset[str]:
    """Every DNS name, address and URI that the certificate is for. Its common name is none: what an
    authority checks are these (RFC 6125).
    """
    kinds = {"DNS", "IP Address", "URI"}
    entries = found.get("subjectAltName", ())
    return frozenset(text.lower() for kind, text in entries if kind in kinds)


def admitted(found: Decoded, allowed: Collection[str]) -> str | None:
    """The first of `allowed` that it is for, letter by letter: `*` stands for nothing else."""
    names = names_of(found)
    return next((name for name in allowed if name.lower() in names), None)


def until_of(found: Decoded) -> datetime:
    """From then on it is no good."""
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(found["notAfter"]), UTC)


def subject_of(found: Decoded) -> str:
    """For people: what it is for, else its common name."""
    if names := names_of(found):
        return ", ".join(sorted(names))
    words = {key: text for rdn in found.get("subject", ()) for key, text in rdn}
    return str(words.get("commonName", "without a name"))


def validities(keys: Keys, side: Side) -> list[Validity]:
    """Of our own certificate, of the authorities, of their lists. ConfigError where the other end
    would refuse ours.
    """
    own = own_certificate(keys, side)
    found = [Validity("tls_certificate", subject_of(own), until_of(own))]
    trusted = context(keys, side)
    for one in trusted.get_ca_certs():
        found.append(Validity("tls_ca", subject_of(one), until_of(one)))
    if keys.crl is not None:
        for until in crl_ends(keys.crl):
            found.append(Validity("tls_crl", "list of revocations", until))
    return found


def own_certificate(keys: Keys, side: Side) -> Decoded:
    """As the other end will see it: it is shown to ourselves, in memory. ConfigError where it does
    not hold.
    """
    server, client = context(keys, Side.SERVER), context(keys, Side.CLIENT)
    client.check_hostname = False  # of what it is for, whoever calls is the judge
    if side is Side.SERVER:
        server.verify_mode = ssl.CERT_NONE
    else:
        client.verify_mode = ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(4):
            for end in (one, other):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
        judge = one if side is Side.SERVER else other
        found = judge.getpeercert()
    except (ssl.SSLError, ValueError) as error:
        raise _refused(keys, side, error) from error
    if not found:
        raise ConfigError(f"tls_certificate: {keys.certificate} says nothing")
    if not names_of(found):
        raise ConfigError(
            f"tls_certificate: {keys.certificate} is for no name; its common name "
            f"({subject_of(found)}) is none that the other end would look at",
            resolution="have one signed with a subjectAltName (docs/remote.md)",
        )
    return found


def _refused(keys: Keys, side: Side, error: Exception) -> ConfigError:
    code = getattr(error, "verify_code", 0)
    text = getattr(error, "verify_message", "") or str(error)
    of_list = code in _OF_LISTS
    where = (
        f"tls_crl: {keys.crl}" if of_list else f"tls_certificate: {keys.certificate}"
    )
    way_out = _WAYS_OUT.get(code, "use one that tls_ca's authority has signed")
    return ConfigError(f"{where}: {text}", resolution=way_out.format(usage=side.usage))


def crl_ends(path: Path) -> Iterator[datetime]:
    """Until when each list in it is good; one that does not say is left out. ConfigError."""
    try:
        for found in _CRL.findall(path.read_bytes()):
            end = _next_update(base64.b64decode(found, validate=False))
            if end is not None:
                yield end
    except (OSError, ValueError, IndexError, binascii.Error) as error:
        raise ConfigError(
            f"tls_crl: {path} cannot be read as lists of revocations (PEM)",
            detail=str(error),
            resolution="write one with openssl ca -gencrl (docs/remote.md)",
        ) from error


def _element(data: bytes, at: int) -> tuple[int, int, int]:
    """Kind, begin and end of the DER element at that place."""
    kind, size, at = data[at], data[at + 1], at + 2
    if size & 0x80:
        more = size & 0x7F
        size, at = int.from_bytes(data[at : at + more]), at + more
    if at + size > len(data):
        raise ValueError("it is cut off")
    return kind, at, at + size


def _next_update(data: bytes) -> datetime | None:
    """RFC 5280, 5.1: CertificateList, tbsCertList: [version,] signature, issuer, thisUpdate,
    nextUpdate.
    """
    _, at, _ = _element(data, 0)
    kind, at, _ = _element(data, at)
    if kind != _SEQUENCE:
        raise ValueError("it is no list")
    kind, _, end = _element(data, at)
    at = end if kind == _INTEGER else at
    for _ in ("signature", "issuer", "thisUpdate"):
        _, _, at = _element(data, at)
    kind, at, end = _element(data, at)
    if kind not in _TIMES:
        return None
    text = data[at:end].decode("ascii")
    return datetime.strptime(text, _TIMES[kind]).replace(tzinfo=UTC)
