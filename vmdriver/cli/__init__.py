"""The commands: vmdriver and openshell-driver-vm."""

from vmdriver.cli.main import main, main_gateway_launched

__all__ = ["main", "main_gateway_launched"]
