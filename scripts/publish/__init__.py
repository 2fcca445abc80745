"""What leaves this machine.

`push`: the verified image, to a registry
`github`: the issue and the release page of a pipeline
`summary`: the page of Markdown of a pipeline
"""
