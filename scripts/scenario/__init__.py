"""Scenarios: clients that are really killed, and what must come of it.

`cases`: what is done to a client, and what must come of it
`verify`: the clients of `inv verify`, on both images
`judge`: what came, compared with what had to
`outcome`: what a run came to: its images, and a result for each case and image
"""
