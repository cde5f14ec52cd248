"""vmdriver doctor --bundle: what a bug report needs of a host, and nothing secret."""

from vmdriver.cli.bundle.command import bundle

__all__ = ["bundle"]
