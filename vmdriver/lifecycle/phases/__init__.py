"""Lifecycle extensions for any compute driver: the phases, what they may change, who runs them.

`api` is the manual for authors, `mutation` says what may be changed when, `activation` who takes
part, `runner` calls them.
"""
