"""Disks of machines: qcow2 layers, whose they are, and who reads what they wrote."""
