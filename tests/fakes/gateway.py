"""The demo's stand-in for a gateway, where tests look for fakes."""

from vmdriver.demo.gateway import Completed, Gateway, Session

__all__ = ["Completed", "Gateway", "Session"]
