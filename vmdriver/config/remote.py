"""The settings about gateways on other hosts."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from vmdriver.config.paths import AbsolutePath
from vmdriver.model.spec import Frozen
from vmdriver.service.tls.address import parse_address


class RemoteSettings(Frozen):
    """Off unless `bind_tls` is set."""

    bind_tls: str = Field(
        "",
        description="where the gateway's calls are served to other hosts, by mutual TLS, as "
        "0.0.0.0:7443 (docs/remote.md); empty: nowhere",
    )
    tls_ca: AbsolutePath | None = Field(
        None, description="certificates of the authorities whose clients bind_tls takes"
    )
    tls_certificate: AbsolutePath | None = Field(
        None, description="this driver's certificate for bind_tls"
    )
    tls_key: AbsolutePath | None = Field(
        None, description="its key, which nobody else may read"
    )
    tls_crl: AbsolutePath | None = Field(
        None,
        description="those authorities' lists of revoked certificates; none: nothing is revoked",
    )
    tls_clients: list[str] = Field(
        [],
        description="names (subjectAltName) of the clients that bind_tls takes",
    )

    @field_validator("bind_tls")
    @classmethod
    def _address(cls, value: str) -> str:
        if value:
            parse_address(value)
        return value

    @field_validator("tls_clients")
    @classmethod
    def _names(cls, value: list[str]) -> list[str]:
        for name in value:
            if not name or name != name.strip() or "*" in name:
                raise ValueError(f"{name!r} is not the whole name of a client")
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        """All of them come into force at one time, so that none is forgotten."""
        needed = ("tls_ca", "tls_certificate", "tls_key", "tls_clients")
        missing = [key for key in needed if not getattr(self, key)]
        if self.bind_tls and missing:
            raise ValueError(f"bind_tls needs {', '.join(missing)}, too")
        return self
