"""Who asks, and may they: the sandboxes of this driver, admission, upkeep."""
