"""The pinned upstreams, cloned.

`trees`: clone them, look at their trees, export them
"""
