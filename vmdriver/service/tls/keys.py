"""The files that make one end of a TLS connection: whom it trusts, and no more; who it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class Side(Enum):
    """Who waits to be called, and who calls. `usage`: the extendedKeyUsage of its certificate."""

    SERVER = "serverAuth"
    CLIENT = "clientAuth"

    @property
    def usage(self) -> str:
        """As openssl writes it."""
        return self.value


@dataclass(frozen=True)
class Keys:
    """Paths, as the settings tls_ca, tls_certificate, tls_key and tls_crl name them."""

    ca: Path
    certificate: Path
    key: Path
    crl: Path | None = None

    def trust(self) -> Iterator[tuple[str, Path]]:
        """Setting and file of what decides who is trusted."""
        yield "tls_ca", self.ca
        if self.crl is not None:
            yield "tls_crl", self.crl

    def own(self) -> Iterator[tuple[str, Path]]:
        """Setting and file of what says who we are."""
        yield "tls_certificate", self.certificate
        yield "tls_key", self.key
