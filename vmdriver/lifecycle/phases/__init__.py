"""Moved to vmdriver.extension; works for one release more."""
