"""One sandbox through its whole life on this host, with a driver, a stand-in for the gateway and an
image of its own.
"""
