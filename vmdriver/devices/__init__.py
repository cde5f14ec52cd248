"""PCI functions of this host: the kernel's files about them."""
