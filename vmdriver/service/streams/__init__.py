"""Operators' commands over a Unix socket of their own: what goes both ways as it comes, and the
kernel's word on who asks, which gRPC does not pass on.
"""
