"""What stands between a QEMU and its host: box, cgroup, memory that it may only read."""
