"""A compute driver for another host: gRPC as it is on a Unix socket, through TLS between two hosts
that both say who they are. Everything that knows TLS is here.

`keys` is what an operator names, `context` what OpenSSL makes of it, `certificate` what is in it,
`identity` the same followed while it changes, `listener` the driver's end, `tunnel` the composed
driver's, `ends` what passes between.
"""
