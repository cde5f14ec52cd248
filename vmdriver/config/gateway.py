"""The settings about the gateway: how it finds the driver, and how guests find it."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from vmdriver.config.paths import AbsolutePath
from vmdriver.lifecycle.launch.environment import guest_endpoint
from vmdriver.model.spec import Frozen
from vmdriver.telemetry.listen import CollectorUrl


class GatewaySettings(Frozen):
    """Both directions of the connection, and what a stock gateway says that we do not need."""

    bind_socket: AbsolutePath = Field(
        Path("/run/vmdriver/compute-driver.sock"),
        description="the gRPC socket to serve on",
    )
    openshell_endpoint: str = Field(
        "http://127.0.0.1:17670",
        description="the gateway's URL, as this host reaches it",
    )
    driver_name: str = Field(
        "vmdriver", description="name that GetCapabilities answers with"
    )
    gateway_manages_lifecycle: bool = Field(
        False,
        description=(
            "true: the gateway stops all sandboxes when it ends and starts them again"
        ),
    )
    expected_peer_pid: int | None = Field(
        None,
        ge=1,
        le=2**31 - 1,
        description="process that launched the driver (a gateway says its own): the driver "
        "ends when that has ended, machines go on",
    )
    guest_tls_ca: AbsolutePath | None = Field(
        None, description="CA certificate that guests trust for the gateway"
    )
    guest_tls_cert: AbsolutePath | None = Field(
        None, description="the guests' client certificate"
    )
    guest_tls_key: AbsolutePath | None = Field(
        None, description="the guests' client key"
    )
    allow_same_uid_peer: bool = Field(
        False, description="accepted for stock gateways; no meaning here"
    )
    bootstrap_image: str = Field(
        "", description="accepted for stock gateways; no meaning here"
    )
    krun_log_level: int = Field(
        1, description="accepted for stock gateways; no meaning here"
    )
    otlp_endpoint: CollectorUrl = Field(
        "",
        description="OpenTelemetry collector that metrics and traces are sent to, by gRPC, such "
        "as http://127.0.0.1:4317; https: with the host's certificates",
    )

    @field_validator("openshell_endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        guest_endpoint(value)
        return value

    @model_validator(mode="after")
    def _tls_together(self) -> Self:
        tls = (self.guest_tls_ca, self.guest_tls_cert, self.guest_tls_key)
        if any(tls) and not all(tls):
            raise ValueError(
                "guest_tls_ca, guest_tls_cert and guest_tls_key go together: all "
                "or none"
            )
        if self.openshell_endpoint.startswith("https:") and not all(tls):
            raise ValueError(
                "openshell_endpoint is https: guest_tls_ca, guest_tls_cert and "
                "guest_tls_key are needed"
            )
        return self
