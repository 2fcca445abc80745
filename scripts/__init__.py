"""Patch, build and verify FreeSWITCH with reports of lost SIP connections.

Data flows one way through the modules: `settings` (pins) -> `sources` ->
`patchset` -> `image` -> `scenario` -> `report`.
"""
