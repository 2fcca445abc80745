"""The pinned upstreams, cloned.

`trees`: clone them, look at their trees
`export`: the files that are built, as a tar
"""
