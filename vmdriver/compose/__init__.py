"""A compute driver in front of another one, with extensions around its calls.

`driver` is the flow of each call, `request` what is read from and changed in a request, `base`
the driver behind, `dialect` what it says otherwise than the contract, `relay` its stream of
events, `store` what is on disk, `server` the edge.
"""
