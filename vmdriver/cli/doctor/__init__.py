"""vmdriver doctor: what it finds of this host, what is to be done about that, and its attack on
what runs. Its report is `cli/bundle`.
"""
