"""What is built: the pins of the upstreams, and all other settings.

`settings`: invoke.yaml, the environment, `--set`
`schema`: what may be in invoke.yaml
`environment`: the variables that Invoke reads
`releases`: the releases of the upstreams that the series is made for
`model`: what the models of the two files share
"""
