"""Programs and readers without rights: box, filter of system calls, namespaces."""
