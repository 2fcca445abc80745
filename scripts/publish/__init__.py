"""What leaves this machine.

`push`: the verified image, to a registry
`attestation`: what it was made from, by whom
`github`: the issue and the release page of a pipeline
`summary`: the page of Markdown of a pipeline
"""
