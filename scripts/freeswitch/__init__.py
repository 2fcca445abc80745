"""A running FreeSWITCH, from outside.

`container`: its container, and what it answers
`recorder`: its events, all that came
`events`: its events, over the event socket
`watch`: `inv watch`, those that are reports, printed
`sip`: a SIP client that owns its socket
`subscriber`: `inv watch` for a container
`dtls`: the key that it wants for DTLS
`capture`: what goes over the wire next to a container
`packets`: the segments and messages in it
"""
