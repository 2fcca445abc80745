"""A running FreeSWITCH, from outside.

`events`: its events, over the event socket, and `inv watch`
`subscriber`: `inv watch` for a container
`capture`: what goes over the wire next to a container
`packets`: the segments and messages in it
"""
