"""Images: reference -> shared OCI layout -> root file system -> base disk, cached by
digest.
"""
