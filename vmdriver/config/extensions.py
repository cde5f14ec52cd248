"""The settings about extensions."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from vmdriver.model.spec import Frozen


class ExtensionSettings(Frozen):
    """Which are loaded, whom requests may speak to, and each one's own table."""

    extensions: list[str] = Field(
        [],
        description=(
            "extensions to load, in this order (entry points vmdriver.extensions)"
        ),
    )
    request_parameters: list[str] = Field(
        [],
        description="extensions that requests may give parameters to through driver_config",
    )
    extension: dict[str, dict[str, Any]] = Field(
        {}, description="[extension.<name>] tables, one per extension"
    )
