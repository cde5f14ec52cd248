"""Users of this host: which one a machine runs as, and who may open what."""
