"""What libvirt asks QEMU about a CPU, and what is known without it."""
