"""Machines' networks stay as they were made: told by the kernel, compared, made again."""
