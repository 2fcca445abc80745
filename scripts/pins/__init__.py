"""What is built: the pins of the upstreams, and all other settings.

`settings`: invoke.yaml, the environment, `--set`
`releases`: the releases of the upstreams that the series is made for
"""
