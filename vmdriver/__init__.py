"""A compute driver for OpenShell: every sandbox is a virtual machine of its own."""

__version__ = "0.1.0"
