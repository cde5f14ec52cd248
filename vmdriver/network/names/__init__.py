"""Names for guests, from the host's own resolver."""
