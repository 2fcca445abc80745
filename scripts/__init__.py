"""Patch, build and verify FreeSWITCH with reports of lost SIP connections.

Data flows one way, from the top to the bottom. Each room knows only those
above it; what is in a wing, its own map tells.

`errors`: the exceptions that the user sees
`machine`: what every step stands on: Docker, registries, files, the terminal
`pins`: what is built: settings, releases
`templates`: the files below templates/, filled in
`sources`: the pinned upstreams
`patchset`: the series of patches
`image`: the images that are built of both
`freeswitch`: a running FreeSWITCH, from outside: events, packets
`scenario`: clients that are really killed, and what must come of it
`report`: what came, for people and programs
`verify`: from the images to the report: `inv verify`
`publish`: what leaves this machine
`bench`: the benchmark
`upkeep`: doctor, clean, lint
`example`: the example of examples/compose
`cli`: what every task has in common
"""
