"""Folders of the host for machines, by virtiofs: the only room that knows virtiofsd."""
