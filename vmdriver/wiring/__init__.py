"""The core, wired: what each part of the lifecycle is given. It knows no adapter: the worlds that
it works on are given to it, real ones by vmdriver.app.
"""

from vmdriver.wiring.core import Core, Installed

__all__ = ["Core", "Installed"]
